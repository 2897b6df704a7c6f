//! What the node waits for since its start: addresses to listen on, the VPN's interface, the store. It goes on by itself
//! once they are there.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Sources;
use super::api::ListenerUse;
use crate::engine::not_here;
use crate::telemetry::LogOnChange;

/// What is not there.
#[derive(Default)]
pub(super) struct Awaited {
    /// Addresses of listeners.
    pub addresses: Vec<IpAddr>,
    /// None of the listeners for clients has its address.
    pub lacks_all_clients: bool,
    /// `vpn.interface`.
    pub interface: Option<String>,
    /// Error of the store, where nothing is in force for it.
    pub store: Option<String>,
}

impl Awaited {
    pub fn now(sources: &Sources) -> Self {
        let listeners = sources.identity.lock().listeners.clone();
        let config = sources.engine.config();
        let clients = listeners.iter().filter(|listener| listener.serves == ListenerUse::Clients);
        let clients: Vec<SocketAddr> = clients.map(|listener| listener.address).collect();
        let others = listeners.iter().filter(|listener| listener.serves == ListenerUse::Nodes);
        let others = others.map(|listener| listener.address);
        let admin = [Some(config.admin.address), config.admin.health_address];
        let missing = not_here(clients.iter().copied());
        let lacks_all_clients = !clients.is_empty() && missing.len() == clients.len();
        let mut addresses = missing;
        addresses.extend(not_here(others.chain(admin.into_iter().flatten())));
        addresses.sort_unstable();
        addresses.dedup();
        let interface = config.vpn.interface.clone().filter(|_| config.vpn.lacks_interface());
        let status = sources.control.get();
        let store = status.last_error.filter(|_| status.generation.is_none());
        Self { addresses, lacks_all_clients, interface, store }
    }

    /// One sentence for each thing, for an operator.
    fn lines(&self) -> Vec<String> {
        let address = |ip: &IpAddr| format!("{ip}, which is no address of this machine yet");
        let interface =
            self.interface.iter().map(|name| format!("the network interface {name} of vpn.interface"));
        let store = self.store.iter().map(|error| format!("the store: {error}"));
        self.addresses.iter().map(address).chain(interface).chain(store).collect()
    }
}

/// Logs what the node waits for: when that begins, when it changes, and when it ends.
pub(super) async fn watch(sources: Sources) -> std::convert::Infallible {
    let mut waiting = LogOnChange::default();
    loop {
        let lines = Awaited::now(&sources).lines();
        if lines.is_empty() {
            if waiting.ends() {
                tracing::info!("everything is there that this node has waited for");
            }
        } else if waiting.changes_to(lines.join("; ")) {
            tracing::warn!("waiting for {}; the node goes on by itself", lines.join("; "));
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Time between two looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);
