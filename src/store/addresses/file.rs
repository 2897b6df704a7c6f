//! One file of addresses, followed as it changes, whether it is replaced or written over.
//!
//! What it says counts only where it says something: while it is gone, empty or unreadable, its last
//! addresses stay, and so does that of a device whose line turns bad.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::lines::Lines;
use crate::authz::DeviceUuid;
use crate::store::{Noted, Remarks};

/// See the module.
pub(super) struct AddressFile {
    path: PathBuf,
    /// `None` where the file has to be read again, whatever it looks like.
    seen: Option<Stamp>,
    addresses: HashMap<DeviceUuid, IpAddr>,
    bad_lines: Noted,
    /// Why the addresses are those that it gave last.
    trouble: Option<String>,
}

/// What a file looks like from outside, which changes when it is written or replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl AddressFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, seen: None, addresses: HashMap::new(), bad_lines: Noted::default(), trouble: None }
    }

    /// Reads the file if it has changed, and says whose address is another one now.
    pub(super) fn look(&mut self) -> Vec<DeviceUuid> {
        match self.read_if_changed() {
            Ok(None) => Vec::new(),
            Ok(Some(text)) => {
                let lines = Lines::parse(&text, &self.path.display().to_string());
                self.take(lines)
            }
            Err(error) => {
                self.seen = None;
                self.have_trouble(Some(error.to_string()));
                Vec::new()
            }
        }
    }

    pub(super) fn address(&self, uuid: &DeviceUuid) -> Option<IpAddr> {
        self.addresses.get(uuid).copied()
    }

    pub(super) const fn bad_lines(&self) -> &Noted {
        &self.bad_lines
    }

    pub(super) fn trouble(&self) -> Option<String> {
        let path = self.path.display();
        self.trouble.as_ref().map(|why| format!("{path}: {why}; its last addresses stay"))
    }

    fn read_if_changed(&mut self) -> io::Result<Option<String>> {
        let metadata = std::fs::metadata(&self.path)?;
        if self.seen == Some(Stamp::of(&metadata)) {
            return Ok(None);
        }
        if !metadata.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        let mut bytes = Vec::new();
        let file = File::open(&self.path)?;
        // As it was before it is read: what comes while that is done has another stamp.
        let stamp = Stamp::of(&file.metadata()?);
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes")));
        }
        self.seen = stamp.is_settled().then_some(stamp);
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn take(&mut self, lines: Lines) -> Vec<DeviceUuid> {
        let Lines { mut addresses, bad } = lines;
        if bad.noted != self.bad_lines {
            self.bad_lines = bad.noted.clone();
            let remarks = Remarks { bad_lines: bad.noted.clone(), ..Remarks::default() };
            remarks.lines().iter().for_each(|line| tracing::warn!("vpn.addresses: {line}"));
        }
        if addresses.is_empty() && bad.contested().is_empty() {
            self.have_trouble(Some("there is no address in it".to_owned()));
            return Vec::new();
        }
        self.have_trouble(None);
        let taken: HashSet<IpAddr> = addresses.values().chain(bad.contested()).copied().collect();
        for (uuid, address) in &self.addresses {
            if bad.may_name(uuid) && !taken.contains(address) {
                addresses.entry(*uuid).or_insert(*address);
            }
        }
        let before = std::mem::replace(&mut self.addresses, addresses);
        let known = before.keys().chain(self.addresses.keys());
        known.filter(|uuid| before.get(uuid) != self.addresses.get(uuid)).copied().collect()
    }

    /// Tells of trouble when it begins and when it turns into another one, not with every look.
    fn have_trouble(&mut self, trouble: Option<String>) {
        if self.trouble == trouble {
            return;
        }
        self.trouble = trouble;
        match self.trouble() {
            Some(told) => tracing::warn!("vpn.addresses: {told}"),
            None => tracing::info!("vpn.addresses: {} can be read again", self.path.display()),
        }
    }
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether another write would give it another time for sure.
    fn is_settled(&self) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::new(seconds.unsigned_abs(), nanoseconds.unsigned_abs() as u32);
        // A time that is yet to come is another clock's.
        since_1970.checked_sub(changed).is_none_or(|age| age > CLOCK_STEP)
    }
}

/// Of a file; half a million devices.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Between two writes that a file system tells apart by their times: the kernel's tick, and some more.
const CLOCK_STEP: Duration = Duration::from_millis(50);
