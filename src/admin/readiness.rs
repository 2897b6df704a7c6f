//! Whether the node can serve a new client: its own state, and everything that each client needs. Certificates are added
//! by `certificates`.

use std::fs::File;

use super::Sources;
use super::awaited::Awaited;
use crate::authz::UnixMillis;
use crate::control::api::HoldStatus;
use crate::engine::ServicePhase;
use crate::telemetry::Cause;

/// Readiness of the node for new clients.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Readiness {
    Ready,
    /// Ready: the guard holds these groups, and the rest is in force.
    Holding(String),
    /// Ready: something is missing that does not keep clients from being served now.
    Impaired(String),
    /// Not ready: new clients are refused, or soon will be.
    Draining(ServicePhase),
    /// Not ready: there is no snapshot, or it is too old.
    Undecided(Cause, Option<&'static str>),
    /// Not ready: something is missing that every new client needs.
    Unable(String),
}

impl Sources {
    pub(super) fn readiness(&self) -> Readiness {
        match self.engine.phase() {
            ServicePhase::Serving => {}
            phase => return Readiness::Draining(phase),
        }
        let awaited = Awaited::now(self);
        if let Some(undecided) = self.authority.trouble(UnixMillis::now()) {
            let waits = awaited.store.is_some().then_some(WAITS_FOR_STORE);
            return Readiness::Undecided(undecided.into(), waits);
        }
        let status = self.control.get();
        let missing = self
            .missing_name_or_directory()
            .or_else(|| missing_at_start(&awaited))
            .or_else(|| self.missing_room())
            .or_else(|| status.lacks_addresses.then(no_addresses));
        if let Some(missing) = missing {
            return Readiness::Unable(missing);
        }
        if !status.held.is_empty() {
            let subjects: Vec<String> = status.held.iter().map(HoldStatus::subject).collect();
            return Readiness::Holding(subjects.join(", "));
        }
        if !awaited.addresses.is_empty() {
            return Readiness::Impaired(listens_not(&awaited));
        }
        match status.warnings.stale_addresses.len() {
            0 => Readiness::Ready,
            // Everybody may read this, and their names are paths.
            sources => Readiness::Impaired(format!(
                "{sources} of the sources in vpn.addresses gives no newer addresses; `sluicegate status` says which"
            )),
        }
    }

    /// What a node among others lacks.
    fn missing_name_or_directory(&self) -> Option<String> {
        if self.authority.is_stand_by() {
            return Some("another process has this node's name; this one is its stand-by".to_owned());
        }
        let has_peers = self.engine.config().forward.listen.is_some();
        (has_peers && !self.authority.directory().get().is_known()).then(|| NO_DIRECTORY.to_owned())
    }

    /// What a new session has no room for.
    fn missing_room(&self) -> Option<String> {
        if self.engine.is_full() {
            let sessions = self.engine.sessions_max();
            return Some(format!("there is no room for another session; {sessions} is the most"));
        }
        // One for the client, and one for the device.
        let opened = [(); 2].map(|()| File::open("/dev/null"));
        opened.iter().any(Result::is_err).then(|| "no file descriptor is left for another session".to_owned())
    }
}

/// What every new client needs and this machine does not have yet.
fn missing_at_start(awaited: &Awaited) -> Option<String> {
    if awaited.lacks_all_clients {
        return Some(listens_not(awaited));
    }
    // Everybody may read this, and need not know the name.
    awaited.interface.as_ref().map(|_| "the network interface of vpn.interface is not there yet".to_owned())
}

fn listens_not(awaited: &Awaited) -> String {
    let addresses: Vec<String> = awaited.addresses.iter().map(ToString::to_string).collect();
    format!("waiting for {}: no address of this machine yet", addresses.join(", "))
}

/// Why there is no snapshot yet. The store's error names hosts, and everybody may read this.
const WAITS_FOR_STORE: &str = "the store cannot be read, and no state is kept from before";

/// Why devices of other nodes could not be reached.
const NO_DIRECTORY: &str = "the directory of nodes was not read yet";

fn no_addresses() -> String {
    "no source in vpn.addresses has given an address since the start, so no device can be reached".to_owned()
}
