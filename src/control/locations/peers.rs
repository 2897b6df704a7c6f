//! Rule `location` for devices of peers: a mass loss that the store shows has to be confirmed by the peers.
//!
//! A node cannot dial devices in a peer's network. The peer can, and its own guard does; its heartbeat says how many
//! devices it holds. So a mass loss is compared with the heartbeats of the peers that held the devices. The guard does
//! not wait for a peer that is dead or does not know, nor for devices that this node's own VPN has by now.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{Difference, Hold, Rule};
use crate::authz::{Device, DeviceId, Directory, Holds, Snapshot};
use crate::config::{self, Allowance, Config, Vpn};
use crate::store::RowKey;

/// Devices of one peer, by the snapshot in force, that a candidate takes from it: too many for one read.
pub(in crate::control) struct DisplacedDevices {
    node: Box<str>,
    devices: Vec<DeviceId>,
    /// Number of devices that the node would still hold.
    left: usize,
}

/// The peers' answer about displaced devices.
#[derive(Debug)]
pub(in crate::control) enum PeerAnswer {
    Agrees,
    /// The peers have not answered since they could know of it.
    Awaited,
    Contradicts(Hold),
}

/// Figures by which a peer contradicts that its devices are gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::control) struct Contradiction {
    pub node: Box<str>,
    pub figures: String,
}

/// The peers' answer, without a hold made of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::control) enum PeerWord {
    Agrees,
    Awaited,
    Contradicts(Contradiction),
}

/// Polls peers about the devices that they hold.
pub(in crate::control) struct PeerPolls {
    allowance: Allowance,
    max_age: Duration,
    /// The node has a directory, so it may have peers.
    has_neighbours: bool,
    asked: HashMap<Box<str>, Instant>,
    is_waiting: bool,
}

impl DisplacedDevices {
    /// Makes it of the devices that held changes, or those to be put in force, take from `node`, which would keep `left`.
    pub(in crate::control) fn new(node: &str, devices: Vec<DeviceId>, left: usize) -> Self {
        Self { node: node.into(), devices, left }
    }

    pub(in crate::control) fn among(
        difference: &Difference,
        in_force: &Snapshot,
        candidate: &Snapshot,
        config: &config::GuardConfig,
        vpn: &Vpn,
    ) -> Vec<Self> {
        let Allowance { rows, .. } = config.max_unlocated;
        let node = vpn.node.as_deref();
        // An address in the store proves nothing of the kind.
        let is_in_own_vpn = |device: &Device| vpn.knows_addresses() && device.location(node).is_some();
        let mut lost: HashMap<&str, Vec<DeviceId>> = HashMap::new();
        for row in &difference.devices {
            // Rows that are missing have a rule of their own.
            let (Some(before), Some(after)) = (&row.before, &row.after) else { continue };
            let Some(holder) = before.holder().filter(|holder| Some(*holder) != node) else { continue };
            if after.holder() != Some(holder) && !is_in_own_vpn(after) {
                lost.entry(holder).or_default().push(before.id);
            }
        }
        // Before all devices are counted.
        lost.retain(|_, devices| devices.len() > rows);
        let is_too_many = |(holder, devices): &(&str, Vec<DeviceId>)| {
            config.max_unlocated.is_exceeded_by(devices.len(), in_force.held_by(holder))
        };
        let displaced = lost.into_iter().filter(is_too_many);
        displaced
            .map(|(holder, devices)| Self { node: holder.into(), devices, left: candidate.held_by(holder) })
            .collect()
    }

    /// Returns the hold for devices that a changed query displaced: no peer has anything to say about them.
    pub(in crate::control) fn by_query(&self) -> Hold {
        let (node, lost) = (&self.node, self.devices.len());
        self.hold(format!("{lost} devices that {node} holds would be elsewhere or offline by the query"))
    }

    fn hold(&self, figures: String) -> Hold {
        let examples = self.devices.iter().map(|id| RowKey::Device(*id));
        Hold::new(Rule::Location, self.devices.len(), figures, examples)
    }
}

impl PeerPolls {
    pub(in crate::control) fn new(config: &Config) -> Self {
        Self {
            allowance: config.authz.guard.max_unlocated,
            max_age: config.forward.max_age,
            has_neighbours: config.forward.listen.is_some(),
            asked: HashMap::new(),
            is_waiting: false,
        }
    }

    /// Returns the answer of the peers in `directory`. A peer that is asked for the first time gets time to find out
    /// itself.
    pub(in crate::control) fn poll(
        &mut self,
        displaced: &[DisplacedDevices],
        directory: &Directory,
    ) -> PeerAnswer {
        match self.ask(displaced, directory) {
            PeerWord::Agrees => PeerAnswer::Agrees,
            PeerWord::Awaited => PeerAnswer::Awaited,
            PeerWord::Contradicts(Contradiction { node, figures }) => {
                let lost = displaced.iter().find(|lost| lost.node == node);
                lost.map_or(PeerAnswer::Agrees, |lost| PeerAnswer::Contradicts(lost.hold(figures)))
            }
        }
    }

    /// Like [`PeerPolls::poll`], for callers that make their own holds.
    pub(in crate::control) fn ask(
        &mut self,
        displaced: &[DisplacedDevices],
        directory: &Directory,
    ) -> PeerWord {
        self.asked.retain(|node, _| displaced.iter().any(|displaced| displaced.node == *node));
        let word = self.word(displaced, directory);
        self.is_waiting = word == PeerWord::Awaited;
        word
    }

    fn word(&mut self, displaced: &[DisplacedDevices], directory: &Directory) -> PeerWord {
        let now = Instant::now();
        let mut word = PeerWord::Agrees;
        for lost in displaced {
            let asked_at = *self.asked.entry(lost.node.clone()).or_insert(now);
            if self.has_neighbours && !directory.was_read() {
                if now < asked_at + self.max_age {
                    word = PeerWord::Awaited;
                    continue;
                }
                let (node, count) = (lost.node.clone(), lost.devices.len());
                let figures = format!(
                    "{node} held {count} devices that it would not hold any more, and the directory, where it says \
                     what it holds, cannot be read"
                );
                return PeerWord::Contradicts(Contradiction { node, figures });
            }
            let entry = directory.find(&lost.node, self.max_age).ok();
            let Some(Holds { devices, readable_since }) = entry.and_then(|entry| entry.holds) else {
                continue;
            };
            let more = devices.saturating_sub(lost.left);
            if !self.allowance.is_exceeded_by(more, devices) {
                continue;
            }
            if readable_since < asked_at + NODE_PATIENCE {
                // Otherwise the peer counts as dead.
                if now < asked_at + NODE_PATIENCE + self.max_age {
                    word = PeerWord::Awaited;
                }
                continue;
            }
            let (node, left) = (lost.node.clone(), lost.left);
            let figures =
                format!("{node} says that it holds {devices} devices, of which it would hold {left}");
            return PeerWord::Contradicts(Contradiction { node, figures });
        }
        word
    }

    /// A word is waited for.
    pub(in crate::control) fn is_asking(&self) -> bool {
        self.is_waiting
    }
}

/// Time for a peer to read what this node has read, and to ask its devices, before its answer counts.
const NODE_PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::authz::{Change, DeviceUuid, Generation, NodeEntry};
    use crate::config::AddressSource;
    use crate::control::guard::Touched;

    fn device(id: i64, node: &str, online: bool) -> Device {
        Device {
            id: DeviceId(id),
            uuid: DeviceUuid::parse(&format!("{id:032x}")).unwrap(),
            fleet: None,
            address: None,
            node: Some(node.into()),
            online,
            disputed: false,
        }
    }

    fn snapshot(devices: impl IntoIterator<Item = Device>) -> Snapshot {
        Snapshot::build(Generation(1), Vec::new(), Vec::new(), devices.into_iter().collect())
    }

    fn displaced(before: &Snapshot, after: &[Device]) -> Vec<DisplacedDevices> {
        displaced_beside(&[AddressSource::Store], before, after)
    }

    fn displaced_beside(
        sources: &[AddressSource],
        before: &Snapshot,
        after: &[Device],
    ) -> Vec<DisplacedDevices> {
        let vpn = Vpn { node: Some("here".to_owned()), addresses: sources.to_vec(), ..Vpn::loopback() };
        let changes: Vec<Change> = after.iter().cloned().map(Change::Device).collect();
        let after = before.apply(Generation(2), &changes);
        let difference = Difference::between(before, &after, &Touched::Everything);
        DisplacedDevices::among(&difference, before, &after, &Config::default().authz.guard, &vpn)
    }

    /// As after a start, with what was kept on disk in force.
    #[test]
    fn a_directory_that_was_not_read_yet_says_nothing() {
        let before = snapshot((0..20).map(|id| device(id, "there", true)));
        let lost: Vec<Device> = (0..20).map(|id| device(id, "there", false)).collect();
        let displaced = displaced(&before, &lost);
        let mut config = Config::default();
        let ask = |config: &Config| PeerPolls::new(config).poll(&displaced, &Directory::default());
        assert!(matches!(ask(&config), PeerAnswer::Agrees), "a node that stands alone has none");
        config.forward.listen = Some("192.0.2.2:3130".parse().unwrap());
        assert!(matches!(ask(&config), PeerAnswer::Awaited));
        config.forward.max_age = Duration::ZERO;
        let PeerAnswer::Contradicts(hold) = ask(&config) else { panic!("nobody says that they are gone") };
        assert!(
            hold.figures.contains("the directory, where it says what it holds, cannot be read"),
            "{hold}"
        );
    }

    fn directory(devices: Option<usize>, age: Duration, readable_since: Instant) -> Directory {
        let forward = "192.0.2.1:3130".parse().unwrap();
        let holds = devices.map(|devices| Holds { devices, readable_since });
        Directory::new([("there".into(), NodeEntry { forward, age, holds })])
    }

    #[test]
    fn devices_that_leave_one_by_one_or_that_are_few_are_nobodys_question() {
        let before = snapshot((0..100).map(|id| device(id, "there", true)));
        let gone = |count| (0..count).map(|id| device(id, "there", false)).collect::<Vec<_>>();
        assert!(displaced(&before, &gone(10)).is_empty());
        assert_eq!(displaced(&before, &gone(11))[0].left, 89);
        let few = snapshot((0..4).map(|id| device(id, "there", true)));
        assert!(displaced(&few, &gone(2)).is_empty());
        assert_eq!(displaced(&few, &gone(3)).len(), 1);
    }

    #[test]
    fn devices_are_displaced_that_are_offline_or_with_another_node_and_not_those_of_this_one() {
        let before = snapshot((0..20).map(|id| device(id, if id < 10 { "there" } else { "here" }, true)));
        for (node, online) in [("there", false), ("here", true), ("elsewhere", true)] {
            let after: Vec<Device> = (0..10).map(|id| device(id, node, online)).collect();
            let displaced = displaced(&before, &after);
            assert_eq!((displaced.len(), displaced[0].devices.len()), (1, 10), "{node} {online}");
        }
        let ours: Vec<Device> = (10..20).map(|id| device(id, "here", false)).collect();
        assert!(displaced(&before, &ours).is_empty(), "they can be asked themselves");
    }

    #[test]
    fn devices_that_are_in_this_nodes_own_vpn_are_not_asked_about() {
        let before = snapshot((0..20).map(|id| device(id, "there", true)));
        let here = |id: i64| Device {
            address: Some(IpAddr::from([10, 8, 0, id as u8])),
            ..device(id, "here", true)
        };
        let after: Vec<Device> = (0..20).map(here).collect();
        let vpn = AddressSource::File("/run/addresses".into());
        assert!(displaced_beside(std::slice::from_ref(&vpn), &before, &after).is_empty());
        assert_eq!(displaced_beside(&[vpn.clone(), AddressSource::Store], &before, &after).len(), 1);
        let without: Vec<Device> = (0..20).map(|id| device(id, "here", true)).collect();
        assert_eq!(displaced_beside(&[vpn], &before, &without).len(), 1, "it is not there");
    }

    #[test]
    fn what_a_node_says_counts_once_it_can_know() {
        let before = snapshot((0..20).map(|id| device(id, "there", true)));
        let lost: Vec<Device> = (0..20).map(|id| device(id, "there", false)).collect();
        let displaced = displaced(&before, &lost);
        let mut peer_polls = PeerPolls::new(&Config::default());
        let now = Instant::now();
        let (fresh, long) = (Duration::ZERO, Duration::from_secs(60));
        let mut ask = |directory: Directory| peer_polls.poll(&displaced, &directory);
        assert!(matches!(ask(directory(Some(20), fresh, now)), PeerAnswer::Awaited));
        assert!(matches!(ask(directory(Some(20), fresh, now + NODE_PATIENCE / 2)), PeerAnswer::Awaited));
        let mut impatient = PeerPolls::new(&Config::default());
        impatient.asked.insert("there".into(), now - NODE_PATIENCE - impatient.max_age);
        let silent = directory(Some(20), fresh, now - NODE_PATIENCE - impatient.max_age);
        assert!(matches!(impatient.poll(&displaced, &silent), PeerAnswer::Agrees), "as a dead one");

        let later = Instant::now() + NODE_PATIENCE;
        let PeerAnswer::Contradicts(hold) = ask(directory(Some(20), fresh, later)) else {
            panic!("it still has them")
        };
        assert_eq!(hold.figures, "there says that it holds 20 devices, of which it would hold 0");
        for agrees in [
            directory(Some(0), fresh, now),
            directory(Some(2), fresh, later),
            directory(None, fresh, later),
            directory(Some(20), long, later),
            Directory::default(),
        ] {
            assert!(matches!(ask(agrees.clone()), PeerAnswer::Agrees), "{agrees:?}");
        }
        assert!(!peer_polls.is_asking());
        peer_polls.poll(&[], &Directory::default());
        let anew = peer_polls.poll(&displaced, &directory(Some(20), fresh, Instant::now()));
        assert!(matches!(anew, PeerAnswer::Awaited) && peer_polls.is_asking(), "they were back in between");
    }
}
