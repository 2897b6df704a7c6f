//! One file of addresses, followed as it changes, whether it is replaced or written over.
//!
//! What it says counts only where it says something: while it is gone, empty or unreadable, its last
//! addresses stay, and so does that of a device whose line turns bad.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::PresenceSource;
use super::lines::Lines;
use super::table::PresenceTable;
use crate::authz::DeviceUuid;

/// See the module.
pub(super) struct AddressFile {
    path: PathBuf,
    /// `None` where the file has to be read again, whatever it looks like.
    seen: Option<Stamp>,
    /// What is written before that is read with what is written after it.
    read_again_at: Instant,
    table: PresenceTable,
}

/// What a file looks like from outside, which changes when it is written or replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl AddressFile {
    pub(super) fn new(path: PathBuf) -> Self {
        let table = PresenceTable::new(path.display().to_string());
        Self { path, seen: None, read_again_at: Instant::now(), table }
    }

    fn read_if_changed(&mut self) -> io::Result<Option<String>> {
        let metadata = std::fs::metadata(&self.path)?;
        let began = Instant::now();
        if self.seen == Some(Stamp::of(&metadata)) || began < self.read_again_at {
            return Ok(None);
        }
        if !metadata.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        let (text, stamp) = read(&self.path)?;
        self.seen = stamp.is_settled().then_some(stamp);
        let pause = (began.elapsed() * READ_PAUSE_FACTOR).clamp(READ_PAUSE_MIN, READ_PAUSE_MAX);
        self.read_again_at = Instant::now() + pause;
        Ok(Some(text))
    }
}

impl PresenceSource for AddressFile {
    fn look(&mut self) -> Vec<DeviceUuid> {
        match self.read_if_changed() {
            Ok(None) => Vec::new(),
            Ok(Some(text)) => {
                let lines = Lines::parse(&text, self.table.name());
                self.table.take(lines)
            }
            Err(error) => {
                self.seen = None;
                self.table.have_trouble(Some(error.to_string()));
                Vec::new()
            }
        }
    }

    fn table(&self) -> &PresenceTable {
        &self.table
    }
}

/// All of a file, and how it looked before that: what comes while it is read has another stamp.
pub(super) fn read(path: &Path) -> io::Result<(String, Stamp)> {
    let file = File::open(path)?;
    let stamp = Stamp::of(&file.metadata()?);
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok((String::from_utf8_lossy(&bytes).into_owned(), stamp))
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether another write would give it another time for sure.
    pub(super) fn is_settled(&self) -> bool {
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

/// Between two reads of a file that changes all the time, as when all devices connect again: then it is read in
/// batches, and the thread that reads it has time for revocations.
const READ_PAUSE_MIN: Duration = Duration::from_millis(50);
const READ_PAUSE_MAX: Duration = Duration::from_secs(2);

/// How many times longer than a read the pause after it is.
const READ_PAUSE_FACTOR: u32 = 10;
