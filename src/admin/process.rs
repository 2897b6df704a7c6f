//! File descriptors of this process. A session takes two.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::resource::{Resource, getrlimit};

/// Number of open descriptors, and the limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Descriptors {
    pub open: u64,
    pub max: u64,
}

impl Descriptors {
    /// Reads both numbers. Returns `None` where `/proc` is missing.
    pub fn now() -> Option<Self> {
        let (max, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
        Some(Self { open: open()?, max })
    }
}

fn open() -> Option<u64> {
    // Since Linux 6.2 the size of the folder is the number of entries. Before, it is 0 and we count the entries.
    match fs::metadata(FOLDER).ok()?.size() {
        0 => Some(fs::read_dir(FOLDER).ok()?.count() as u64),
        count => Some(count),
    }
}

const FOLDER: &str = "/proc/self/fd";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_more_is_one_more() {
        let before = Descriptors::now().unwrap();
        let held: Vec<_> = (0..100).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let during = Descriptors::now().unwrap();
        // Other tests in this process open and close descriptors meanwhile.
        assert!(during.open.abs_diff(before.open + held.len() as u64) < 50, "{before:?} {during:?}");
        assert!(during.open <= during.max);
    }
}
