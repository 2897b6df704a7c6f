//! The other nodes, and when each of them last said that it lives.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;

use super::UnixMillis;

/// All nodes, as the store had them when it was last read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    nodes: HashMap<Box<str>, NodeEntry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeEntry {
    /// Where it takes requests of other nodes.
    pub forward: SocketAddr,
    /// By this node's clock: when it was read, less the age that the store told. What clocks the others have
    /// does not matter.
    pub seen_at: UnixMillis,
}

/// Why a node cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeTrouble {
    Unknown,
    /// No sign of life for longer than it may take.
    Stale,
}

/// The directory in force: written by one thread, read where a request is handed on.
#[derive(Clone, Debug, Default)]
pub struct DirectoryCell(Arc<RwLock<Arc<Directory>>>);

impl Directory {
    pub fn new(nodes: impl IntoIterator<Item = (Box<str>, NodeEntry)>) -> Self {
        Self { nodes: nodes.into_iter().collect() }
    }

    pub fn find(&self, name: &str, now: UnixMillis, max_age: Duration) -> Result<NodeEntry, NodeTrouble> {
        let entry = *self.nodes.get(name).ok_or(NodeTrouble::Unknown)?;
        if entry.is_stale(now, max_age) { Err(NodeTrouble::Stale) } else { Ok(entry) }
    }

    pub fn nodes(&self) -> impl Iterator<Item = (&str, &NodeEntry)> {
        self.nodes.iter().map(|(name, entry)| (&**name, entry))
    }
}

impl NodeEntry {
    pub fn is_stale(&self, now: UnixMillis, max_age: Duration) -> bool {
        let max_age_ms = i64::try_from(max_age.as_millis()).unwrap_or(i64::MAX);
        now.0.saturating_sub(self.seen_at.0) > max_age_ms
    }
}

impl NodeTrouble {
    /// As the audit log and the metrics name it.
    pub const fn cause(self) -> &'static str {
        match self {
            Self::Unknown => "node-unknown",
            Self::Stale => "node-stale",
        }
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
        let entry = NodeEntry { forward: "192.0.2.1:3129".parse().unwrap(), seen_at: UnixMillis(10_000) };
        let directory = Directory::new([("node-a".into(), entry)]);
        let find = |name, now| directory.find(name, UnixMillis(now), Duration::from_secs(15));
        assert_eq!(find("node-a", 25_000), Ok(entry));
        assert_eq!(find("node-a", 25_001), Err(NodeTrouble::Stale));
        assert_eq!(find("node-a", -1), Ok(entry), "a clock that was set back makes nothing stale");
        assert_eq!(find("node-b", 10_000), Err(NodeTrouble::Unknown));
    }
}
