//! One file of addresses, which is read again when it is replaced or written over.
//!
//! While the file is gone, empty or unreadable, its last addresses stay. The address of a device stays too while the
//! device's line is bad.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::address_list::AddressList;
use super::table::PresenceTable;
use super::{Patience, PresenceSource};
use crate::authz::DeviceUuid;

/// A source that is a file.
pub(super) struct WatchedFile {
    path: PathBuf,
    /// State of the file when it was read. `None` if it has to be read again in any case.
    seen: Option<FileStamp>,
    /// Earliest time of the next read, which reads everything that was written until then.
    read_again_at: Instant,
    table: PresenceTable,
}

/// Metadata of a file that change when it is written or replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Time of the last write, in seconds and nanoseconds since 1970.
    modified: (i64, i64),
    /// Time of the last change of content or metadata, in the same units.
    changed: (i64, i64),
}

impl WatchedFile {
    pub(super) fn new(path: PathBuf) -> Self {
        let table = PresenceTable::new(path.display().to_string());
        Self { path, seen: None, read_again_at: Instant::now(), table }
    }

    fn read_if_changed(&mut self) -> io::Result<Option<String>> {
        let metadata = std::fs::metadata(&self.path)?;
        let began = Instant::now();
        if self.seen == Some(FileStamp::of(&metadata)) || began < self.read_again_at {
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

impl PresenceSource for WatchedFile {
    fn poll(&mut self, _: Patience) -> Vec<DeviceUuid> {
        match self.read_if_changed() {
            Ok(None) => Vec::new(),
            Ok(Some(text)) => {
                let list = AddressList::parse(&text, self.table.name());
                self.table.replace(list)
            }
            Err(error) => {
                self.seen = None;
                self.table.set_failure(Some(error.to_string()));
                Vec::new()
            }
        }
    }

    fn table(&self) -> &PresenceTable {
        &self.table
    }
}

/// Reads a whole file. The stamp is from before that, so a write during the read gives the file another one.
pub(super) fn read(path: &Path) -> io::Result<(String, FileStamp)> {
    let file = File::open(path)?;
    let stamp = FileStamp::of(&file.metadata()?);
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok((String::from_utf8_lossy(&bytes).into_owned(), stamp))
}

impl FileStamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// True if another write would certainly change the stamp.
    pub(super) fn is_settled(&self) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::new(seconds.unsigned_abs(), nanoseconds.unsigned_abs() as u32);
        // A time in the future comes from another clock.
        since_1970.checked_sub(changed).is_none_or(|age| age > CLOCK_STEP)
    }
}

/// Size limit of a file. It has room for half a million devices.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Time after which a file system gives a write another time than the one before: the kernel's tick, with a margin.
const CLOCK_STEP: Duration = Duration::from_millis(50);

/// Bounds of the pause between two reads of a file that changes all the time, as it does when all devices connect again.
/// The pause leaves the reading thread time for revocations.
const READ_PAUSE_MIN: Duration = Duration::from_millis(50);
const READ_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Length of the pause after a read, in multiples of the time that the read took.
const READ_PAUSE_FACTOR: u32 = 10;
