//! What of the machine this process holds: its descriptors, of which sessions take two each.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::resource::{Resource, getrlimit};

/// Descriptors that are open, and how many may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Descriptors {
    pub open: u64,
    pub max: u64,
}

impl Descriptors {
    /// `None` where `/proc` is not there.
    pub fn now() -> Option<Self> {
        let (max, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
        Some(Self { open: open()?, max })
    }
}

fn open() -> Option<u64> {
    // Since Linux 6.2 the folder's size says how many; before, it is 0 and they have to be listed.
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
        // Other tests of this process open and close some meanwhile.
        assert!(during.open.abs_diff(before.open + held.len() as u64) < 50, "{before:?} {during:?}");
        assert!(during.open <= during.max);
    }
}
