//! What the network and the peers say of masses of devices that the store lost sight of, or moved.

use std::collections::{HashMap, HashSet};
use std::mem::discriminant;
use std::time::{Duration, Instant};

use super::ControlThread;
use crate::authz::{Device, DeviceId, UnixMillis};
use crate::config::Config;
use crate::control::api::ChangeKind;
use crate::control::guard::NetworkVerdict;
use crate::control::locations::{DisplacedDevices, NetworkAnswer, PeerPolls, PeerWord, ProbeTarget, Prober};

/// The ways to ask, one for each kind of change.
pub(super) struct Locations {
    node: Option<String>,
    unlocated: Asking,
    moved: Asking,
    /// Time of the next look at the answers.
    poll_at: Instant,
}

/// Questions about one kind of change.
struct Asking {
    prober: Prober,
    peers: PeerPolls,
}

impl Locations {
    pub(super) fn new(config: &Config) -> Self {
        let asking = || Asking { prober: Prober::new(config), peers: PeerPolls::new(config) };
        Self { node: config.vpn.node.clone(), unlocated: asking(), moved: asking(), poll_at: Instant::now() }
    }

    pub(super) fn reconfigure(&mut self, config: &Config) {
        *self = Self::new(config);
    }

    pub(super) fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    fn asking(&mut self, kind: ChangeKind) -> &mut Asking {
        match kind {
            ChangeKind::Moved => &mut self.moved,
            _ => &mut self.unlocated,
        }
    }
}

impl ControlThread {
    /// Asks about the devices that are held for their number, and has the guard judge by the answer.
    pub(super) fn poll_network(&mut self, now: UnixMillis) {
        if Instant::now() < self.locations.poll_at {
            return;
        }
        self.locations.poll_at = Instant::now() + POLL_EVERY;
        for kind in [ChangeKind::Unlocated, ChangeKind::Moved] {
            let held = self.guard.held_devices(kind);
            if held.is_empty() {
                self.locations.asking(kind).prober.forget();
                if *self.guard.network_verdict_on(kind) != NetworkVerdict::Unknown {
                    // The answer was about a mass that is over; the next one is asked about anew.
                    let judged = self.guard.set_network_verdict(kind, NetworkVerdict::Unknown, now);
                    self.publish(judged, None);
                }
                continue;
            }
            let verdict = self.ask(kind, &held);
            // Other figures of the same answer change nothing.
            let is_new = discriminant(&verdict) != discriminant(self.guard.network_verdict_on(kind));
            if verdict != NetworkVerdict::Unknown && is_new {
                let judged = self.guard.set_network_verdict(kind, verdict, now);
                self.publish(judged, None);
            }
        }
    }

    fn ask(&mut self, kind: ChangeKind, held: &[Device]) -> NetworkVerdict {
        let node = self.locations.node.clone();
        let is_elsewhere = |device: &Device| {
            node.is_some() && device.node.is_some() && device.node != node.as_deref().map(Into::into)
        };
        let (elsewhere, here): (Vec<&Device>, Vec<&Device>) =
            held.iter().partition(|device| is_elsewhere(device));
        let by_network = self.ask_devices(kind, &here);
        let by_peers = self.ask_peers(kind, &elsewhere);
        match (by_network, by_peers) {
            (answers @ NetworkVerdict::Answers { .. }, _) | (_, answers @ NetworkVerdict::Answers { .. }) => {
                answers
            }
            (NetworkVerdict::Silent, NetworkVerdict::Silent) => NetworkVerdict::Silent,
            _ => NetworkVerdict::Unknown,
        }
    }

    fn ask_devices(&mut self, kind: ChangeKind, here: &[&Device]) -> NetworkVerdict {
        if here.is_empty() {
            return NetworkVerdict::Silent;
        }
        let devices: HashSet<DeviceId> = here.iter().map(|device| device.id).collect();
        let targets: Vec<ProbeTarget> = here.iter().filter_map(|device| ProbeTarget::of(device)).collect();
        let guard = &self.guard;
        let is_its_own = |target: &ProbeTarget| !guard.is_anothers_place(target.device);
        match self.locations.asking(kind).prober.poll(&devices, &targets, is_its_own) {
            NetworkAnswer::Silent => NetworkVerdict::Silent,
            NetworkAnswer::Answers { answered, sampled } => NetworkVerdict::Answers {
                figures: format!("{answered} of {sampled} that were asked still answer there").into(),
            },
            NetworkAnswer::Asked | NetworkAnswer::Unasked => NetworkVerdict::Unknown,
        }
    }

    /// A node cannot dial the devices of another one, which knows itself how many it has.
    fn ask_peers(&mut self, kind: ChangeKind, elsewhere: &[&Device]) -> NetworkVerdict {
        let Some(in_force) = self.guard.in_force().filter(|_| !elsewhere.is_empty()) else {
            return NetworkVerdict::Silent;
        };
        let mut by_node: HashMap<&str, Vec<DeviceId>> = HashMap::new();
        for device in elsewhere {
            if let Some(node) = device.holder() {
                by_node.entry(node).or_default().push(device.id);
            }
        }
        let displaced: Vec<DisplacedDevices> = by_node
            .into_iter()
            .map(|(node, devices)| {
                let left = in_force.held_by(node).saturating_sub(devices.len());
                DisplacedDevices::new(node, devices, left)
            })
            .collect();
        let directory = self.authority.directory().get();
        match self.locations.asking(kind).peers.ask(&displaced, &directory) {
            PeerWord::Agrees => NetworkVerdict::Silent,
            PeerWord::Awaited => NetworkVerdict::Unknown,
            PeerWord::Contradicts(figures) => NetworkVerdict::Answers { figures },
        }
    }
}

/// Time between two looks at the answers. A mass is as many devices as the store has, and each look goes through it.
const POLL_EVERY: Duration = Duration::from_millis(200);
