//! The directory of nodes on disk, beside the kept state: a node that starts while the store is away passes requests to
//! its peers all the same.
//!
//! It gives no right: a peer proves its name by its certificate. So it may be old, and is written without care for a
//! power cut.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::authz::{Directory, NodeEntry, UnixMillis};

/// The file, and what it was given last.
pub(super) struct KeptDirectory {
    path: PathBuf,
    written: Option<(Vec<(Box<str>, SocketAddr)>, Instant)>,
}

#[derive(Serialize, Deserialize)]
struct KeptFile {
    saved_at_ms: i64,
    nodes: Vec<KeptNode>,
}

#[derive(Serialize, Deserialize)]
struct KeptNode {
    name: Box<str>,
    forward: SocketAddr,
    age_ms: u64,
}

impl KeptDirectory {
    /// The file in the folder of the kept state.
    pub(super) fn in_folder(folder: &Path) -> Self {
        Self { path: folder.join("directory.json"), written: None }
    }

    /// Reads what an earlier process kept; `None` where there is nothing that can be used.
    pub(super) fn load(&self) -> Option<Directory> {
        let metadata = fs::metadata(&self.path).ok()?;
        if metadata.len() > FILE_BYTES_MAX || metadata.permissions().mode() & WRITABLE_BY_OTHERS != 0 {
            tracing::warn!(
                "{} is not used: others than its owner may write it, or it is too large; remove it",
                self.path.display()
            );
            return None;
        }
        let kept: KeptFile = serde_json::from_slice(&fs::read(&self.path).ok()?)
            .inspect_err(|error| tracing::warn!("{} is not used: {error}", self.path.display()))
            .ok()?;
        let since = UnixMillis::now().0.saturating_sub(kept.saved_at_ms).max(0).unsigned_abs();
        Some(Directory::kept(kept.nodes.into_iter().map(|KeptNode { name, forward, age_ms }| {
            let age = Duration::from_millis(age_ms.saturating_add(since));
            (name, NodeEntry { forward, age, holds: None })
        })))
    }

    /// Writes the directory if a node or an address is new, and from time to time for the ages.
    pub(super) fn keep(&mut self, directory: &Directory) {
        let mut nodes: Vec<_> =
            directory.nodes().map(|(name, entry)| (Box::<str>::from(name), entry.forward)).collect();
        nodes.sort();
        let is_written =
            |(written, at): &(Vec<_>, Instant)| *written == nodes && at.elapsed() < REWRITE_AFTER;
        if self.written.as_ref().is_some_and(is_written) {
            return;
        }
        if let Err(error) = self.write(directory) {
            // The state beside it tells of a disk that fails.
            tracing::debug!("{} cannot be written: {error}", self.path.display());
        }
        self.written = Some((nodes, Instant::now()));
    }

    fn write(&self, directory: &Directory) -> io::Result<()> {
        let nodes = directory.nodes().map(|(name, entry)| KeptNode {
            name: name.into(),
            forward: entry.forward,
            age_ms: u64::try_from(entry.age.as_millis()).unwrap_or(u64::MAX),
        });
        let kept = KeptFile { saved_at_ms: UnixMillis::now().0, nodes: nodes.collect() };
        if let Some(folder) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let new = self.path.with_extension("new");
        let mut file = File::options().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(&kept)?)?;
        fs::rename(&new, &self.path)
    }
}

/// Time after which the file is written anew though no node has come or gone.
const REWRITE_AFTER: Duration = Duration::from_secs(60);

/// Bytes of the longest file that is read: more than the most nodes need.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Permission of the group or of all others to write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_again_with_its_age_and_counts_as_known_and_not_as_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = KeptDirectory::in_folder(&folder.path().join("state"));
        assert_eq!(kept.load(), None);
        let forward = "[2001:db8::1]:3130".parse().unwrap();
        let entry = NodeEntry { forward, age: Duration::from_secs(2), holds: None };
        kept.keep(&Directory::new([("node-b".into(), entry)]));
        let directory = kept.load().unwrap();
        assert!(directory.is_known() && !directory.was_read());
        let (found, _) = directory.find("node-b", Duration::from_secs(15)).unwrap();
        assert_eq!(found.forward, forward);
        assert!((2..12).contains(&found.age.as_secs()), "{found:?}");

        fs::set_permissions(&kept.path, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(kept.load(), None, "somebody else may have written it");
        fs::set_permissions(&kept.path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&kept.path, "{").unwrap();
        assert_eq!(kept.load(), None);
        kept.keep(&Directory::new([]));
        assert_eq!(kept.load(), Some(Directory::kept([])), "another set of nodes is written at once");
    }
}
