//! The other nodes, and the age of their last heartbeats.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;

/// All nodes, as the store had them when it was last read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    nodes: HashMap<Box<str>, NodeEntry>,
    origin: DirectoryOrigin,
}

/// Where a directory comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum DirectoryOrigin {
    #[default]
    Nothing,
    /// An earlier process has kept it on disk.
    Disk,
    Store,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeEntry {
    /// Address that takes requests of other nodes.
    pub forward: SocketAddr,
    /// Age of its last heartbeat when the store was last read, by the store's clock. The nodes' clocks do not matter.
    /// While the store cannot be read, no entry gets older; a dead node then does not answer.
    pub age: Duration,
    /// `None` where the node could not say.
    pub holds: Option<Holds>,
}

/// Devices of a node, by its own count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holds {
    /// Number of devices that it holds and can dial.
    pub devices: usize,
    /// Time of the heartbeat, by this node's clock.
    pub readable_since: Instant,
}

/// The state of a node by its last heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    Fresh,
    /// No heartbeat for longer than `forward.max_age`. The node may serve all the same: only its way to the store may
    /// be broken.
    Stale,
}

/// The directory in force: written by one thread, read where a request is handed on.
#[derive(Clone, Debug, Default)]
pub struct DirectoryCell(Arc<RwLock<Arc<Directory>>>);

impl Directory {
    pub fn new(nodes: impl IntoIterator<Item = (Box<str>, NodeEntry)>) -> Self {
        Self { nodes: nodes.into_iter().collect(), origin: DirectoryOrigin::Store }
    }

    /// The nodes that an earlier process has kept on disk.
    pub fn kept(nodes: impl IntoIterator<Item = (Box<str>, NodeEntry)>) -> Self {
        Self { nodes: nodes.into_iter().collect(), origin: DirectoryOrigin::Disk }
    }

    /// Returns whether the directory was read from the store by this process.
    pub fn was_read(&self) -> bool {
        self.origin == DirectoryOrigin::Store
    }

    /// Returns whether it is known which nodes there are: from the store, or from what was kept on disk.
    pub fn is_known(&self) -> bool {
        self.origin != DirectoryOrigin::Nothing
    }

    /// Finds a node, and whether its last heartbeat is older than `max_age`.
    pub fn find(&self, name: &str, max_age: Duration) -> Option<(NodeEntry, Freshness)> {
        let entry = *self.nodes.get(name)?;
        let freshness = if entry.age > max_age { Freshness::Stale } else { Freshness::Fresh };
        Some((entry, freshness))
    }

    /// Finds a node that is not stale.
    pub fn find_fresh(&self, name: &str, max_age: Duration) -> Option<NodeEntry> {
        self.find(name, max_age)
            .filter(|(_, freshness)| *freshness == Freshness::Fresh)
            .map(|(entry, _)| entry)
    }

    pub fn nodes(&self) -> impl Iterator<Item = (&str, &NodeEntry)> {
        self.nodes.iter().map(|(name, entry)| (&**name, entry))
    }
}

impl DirectoryCell {
    pub fn replace(&self, directory: Directory) {
        *self.0.write() = Arc::new(directory);
    }

    pub fn get(&self) -> Arc<Directory> {
        Arc::clone(&self.0.read())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_found_until_it_has_been_silent_for_too_long() {
        let forward = "192.0.2.1:3129".parse().unwrap();
        let node = |age| NodeEntry { forward, age: Duration::from_secs(age), holds: None };
        let directory = Directory::new([("fresh".into(), node(15)), ("silent".into(), node(16))]);
        let find = |name| directory.find(name, Duration::from_secs(15));
        assert_eq!(find("fresh"), Some((node(15), Freshness::Fresh)));
        assert_eq!(find("silent"), Some((node(16), Freshness::Stale)));
        assert_eq!(find("other"), None);
        assert_eq!(directory.find_fresh("silent", Duration::from_secs(15)), None);
    }
}
