//! Rule `location` for devices of peers: a mass loss that the store shows has to be confirmed by the peers.
//!
//! A node cannot dial devices in a peer's network. The peer can, and its own guard does; its heartbeat says how many
//! devices it holds. So a mass loss is compared with the heartbeats of the peers that held the devices. The guard does
//! not wait for a peer that is dead or does not know, nor for devices that this node's own VPN has by now.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::authz::{DeviceId, Directory, Holds};
use crate::config::{Allowance, Config};

/// Devices of one peer, by the snapshot in force, that a candidate takes from it: too many for one read.
pub(in crate::control) struct DisplacedDevices {
    node: Box<str>,
    devices: Vec<DeviceId>,
    /// Number of devices that the node would still hold.
    left: usize,
}

/// The peers' answer about displaced devices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::control) enum PeerWord {
    Agrees,
    Awaited,
    /// The figures by which a peer contradicts that its devices are gone.
    Contradicts(Box<str>),
}

/// Polls peers about the devices that they hold.
pub(in crate::control) struct PeerPolls {
    allowance: Allowance,
    max_age: Duration,
    /// The node has a directory, so it may have peers.
    has_neighbours: bool,
    asked: HashMap<Box<str>, Instant>,
}

impl DisplacedDevices {
    /// Makes it of the devices that held changes, or those to be put in force, take from `node`, which would keep `left`.
    pub(in crate::control) fn new(node: &str, devices: Vec<DeviceId>, left: usize) -> Self {
        Self { node: node.into(), devices, left }
    }
}

impl PeerPolls {
    pub(in crate::control) fn new(config: &Config) -> Self {
        Self {
            allowance: DIFFERENCE_MAX,
            max_age: config.forward.max_age,
            has_neighbours: config.forward.listen.is_some(),
            asked: HashMap::new(),
        }
    }

    /// Returns the answer of the peers in `directory`. A peer that is asked for the first time gets time to find out
    /// itself.
    pub(in crate::control) fn ask(
        &mut self,
        displaced: &[DisplacedDevices],
        directory: &Directory,
    ) -> PeerWord {
        self.asked.retain(|node, _| displaced.iter().any(|displaced| displaced.node == *node));
        self.word(displaced, directory)
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
                let (node, count) = (&lost.node, lost.devices.len());
                let figures = format!(
                    "{node} held {count} devices that it would not hold any more, and the directory, where it says \
                     what it holds, cannot be read"
                );
                return PeerWord::Contradicts(figures.into());
            }
            let entry = directory.find_fresh(&lost.node, self.max_age);
            let Some(Holds { devices, readable_since }) = entry.and_then(|entry| entry.holds) else {
                continue;
            };
            let more = devices.saturating_sub(lost.left);
            let has_most = 2 * more > lost.devices.len();
            if !has_most && !self.allowance.is_exceeded_by(more, devices) {
                continue;
            }
            if readable_since < asked_at + NODE_PATIENCE {
                // Otherwise the peer counts as dead.
                if now < asked_at + NODE_PATIENCE + self.max_age {
                    word = PeerWord::Awaited;
                }
                continue;
            }
            let (node, left) = (&lost.node, lost.left);
            let figures =
                format!("{node} says that it holds {devices} devices, of which it would hold {left}");
            return PeerWord::Contradicts(figures.into());
        }
        word
    }
}

/// Devices by which a peer's count may differ, unless they are most of those that it lost: it counts at another moment.
const DIFFERENCE_MAX: Allowance = Allowance { share: 0.1, rows: 2 };

/// Time for a peer to read what this node has read, and to ask its devices, before its answer counts.
const NODE_PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::NodeEntry;

    fn displaced(devices: i64, left: usize) -> Vec<DisplacedDevices> {
        vec![DisplacedDevices::new("there", (0..devices).map(DeviceId).collect(), left)]
    }

    /// As after a start, with what was kept on disk in force.
    #[test]
    fn a_directory_that_was_not_read_yet_says_nothing() {
        let displaced = displaced(20, 0);
        let mut config = Config::default();
        let ask = |config: &Config| PeerPolls::new(config).ask(&displaced, &Directory::default());
        assert_eq!(ask(&config), PeerWord::Agrees, "a node that stands alone has none");
        config.forward.listen = Some("192.0.2.2:3130".parse().unwrap());
        assert_eq!(ask(&config), PeerWord::Awaited);
        config.forward.max_age = Duration::ZERO;
        let PeerWord::Contradicts(figures) = ask(&config) else { panic!("nobody says that they are gone") };
        assert!(figures.contains("the directory, where it says what it holds, cannot be read"), "{figures}");
    }

    fn directory(devices: Option<usize>, age: Duration, readable_since: Instant) -> Directory {
        let forward = "192.0.2.1:3130".parse().unwrap();
        let holds = devices.map(|devices| Holds { devices, readable_since });
        Directory::new([("there".into(), NodeEntry { forward, age, holds })])
    }

    #[test]
    fn what_a_node_says_counts_once_it_can_know() {
        let (one, displaced) = (displaced(1, 0), displaced(20, 0));
        let mut peer_polls = PeerPolls::new(&Config::default());
        let now = Instant::now();
        let (fresh, long) = (Duration::ZERO, Duration::from_secs(60));
        let mut ask = |directory: Directory| peer_polls.ask(&displaced, &directory);
        assert_eq!(ask(directory(Some(20), fresh, now)), PeerWord::Awaited);
        assert_eq!(ask(directory(Some(20), fresh, now + NODE_PATIENCE / 2)), PeerWord::Awaited);
        let mut impatient = PeerPolls::new(&Config::default());
        impatient.asked.insert("there".into(), now - NODE_PATIENCE - impatient.max_age);
        let silent = directory(Some(20), fresh, now - NODE_PATIENCE - impatient.max_age);
        assert_eq!(impatient.ask(&displaced, &silent), PeerWord::Agrees, "as a dead one");

        let later = Instant::now() + NODE_PATIENCE;
        let PeerWord::Contradicts(figures) = ask(directory(Some(20), fresh, later)) else {
            panic!("it still has them")
        };
        assert_eq!(&*figures, "there says that it holds 20 devices, of which it would hold 0");
        let mut few = PeerPolls::new(&Config::default());
        few.asked.insert("there".into(), now);
        let word = few.ask(&one, &directory(Some(1), fresh, later));
        assert!(matches!(word, PeerWord::Contradicts(_)), "the one device of a small fleet: {word:?}");
        for agrees in [
            directory(Some(0), fresh, now),
            directory(Some(2), fresh, later),
            directory(None, fresh, later),
            directory(Some(20), long, later),
            Directory::default(),
        ] {
            assert_eq!(ask(agrees.clone()), PeerWord::Agrees, "{agrees:?}");
        }
    }
}
