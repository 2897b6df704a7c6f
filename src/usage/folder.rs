//! The records of past intervals: a file for each in a folder below the state, as many as there is room for.
//!
//! A file is written whole and then renamed to its name, so that a crash leaves none that is half. Its name has the end,
//! the beginning and the process, so that no two processes write the same one.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::record::UsageRecord;
use crate::authz::UnixMillis;

pub(super) struct UsageFolder {
    path: PathBuf,
}

/// A file of the folder, by its name.
struct RecordFile {
    to: UnixMillis,
    path: PathBuf,
    bytes: u64,
}

impl UsageFolder {
    /// The folder for records in the state folder.
    pub fn inside(state: &Path) -> Self {
        Self { path: state.join("usage") }
    }

    /// Writes a record, and removes the oldest ones beyond the bounds.
    pub fn write(&self, record: &UsageRecord) -> io::Result<()> {
        let bytes = record.encode().map_err(io::Error::other)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        let process = std::process::id();
        let unfinished = self.path.join(format!("new-{process}"));
        let mut file =
            File::options().create(true).write(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        let name = format!("{:015}-{:015}-{process}{SUFFIX}", record.to.0, record.from.0);
        fs::rename(&unfinished, self.path.join(name))?;
        File::open(&self.path)?.sync_all()?;
        self.trim(INTERVALS_KEPT_MAX, KEPT_BYTES_MAX)
    }

    /// Removes the oldest records until there are at most so many, with at most so many bytes.
    fn trim(&self, records_max: usize, bytes_max: u64) -> io::Result<()> {
        let files = self.files()?;
        let mut bytes: u64 = files.iter().map(|file| file.bytes).sum();
        let mut left = files.len();
        for file in files {
            if left <= records_max && bytes <= bytes_max {
                break;
            }
            remove(&file.path)?;
            (left, bytes) = (left - 1, bytes - file.bytes);
        }
        Ok(())
    }

    /// Passes each record that ends after `since` to `take`, the oldest first. One that cannot be read is left out and
    /// logged.
    pub fn read_since(&self, since: UnixMillis, mut take: impl FnMut(&UsageRecord)) -> io::Result<()> {
        for file in self.files()?.into_iter().filter(|file| file.to > since) {
            let bytes = match fs::read(&file.path) {
                Ok(bytes) => bytes,
                // Another process has removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    tracing::warn!(path = %file.path.display(), %error, "a record of use cannot be read");
                    continue;
                }
            };
            match UsageRecord::decode(&bytes) {
                Some(record) => take(&record),
                None => {
                    tracing::warn!(path = %file.path.display(), "a record of use is damaged, and left out")
                }
            }
        }
        Ok(())
    }

    /// The files, the oldest first. There are none where there is no folder yet.
    fn files(&self) -> io::Result<Vec<RecordFile>> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let to =
                name.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.split('-').next()?.parse().ok());
            // One that has gone meanwhile takes no room.
            let (Some(to), Ok(metadata)) = (to, entry.metadata()) else { continue };
            files.push(RecordFile { to: UnixMillis(to), path: entry.path(), bytes: metadata.len() });
        }
        files.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(files)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// The end of a record's name.
const SUFFIX: &str = ".usage";

/// Records that are kept: a week of quarters of an hour.
pub const INTERVALS_KEPT_MAX: usize = 7 * 24 * 4;

/// Bytes of all records that are kept. A row takes some 50 bytes, so that 2,000 keys fit for a week, and as many as there
/// may be for a day.
pub const KEPT_BYTES_MAX: u64 = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::record::tests::record;

    fn folder() -> (tempfile::TempDir, UsageFolder) {
        let state = tempfile::tempdir().unwrap();
        let folder = UsageFolder::inside(state.path());
        (state, folder)
    }

    fn ends(folder: &UsageFolder, since: i64) -> Vec<i64> {
        let mut ends = Vec::new();
        folder.read_since(UnixMillis(since), |record| ends.push(record.to.0)).unwrap();
        ends
    }

    #[test]
    fn records_are_read_from_the_interval_on_that_a_time_is_in() {
        let (_state, folder) = folder();
        assert_eq!(ends(&folder, 0), Vec::<i64>::new());
        for to in [3_000, 1_000, 2_000] {
            folder.write(&record(to - 1_000, to, 2, 1)).unwrap();
        }
        assert_eq!(ends(&folder, 0), [1_000, 2_000, 3_000]);
        assert_eq!(ends(&folder, 1_000), [2_000, 3_000]);
        assert_eq!(ends(&folder, 1_999), [2_000, 3_000]);
    }

    #[test]
    fn the_oldest_records_go_when_there_are_too_many() {
        let (_state, folder) = folder();
        let count = INTERVALS_KEPT_MAX as i64 + 3;
        // Written without waiting for the disk, which would take long.
        fs::create_dir(&folder.path).unwrap();
        let bytes = record(0, 1, 1, 1).encode().unwrap();
        for to in 1..count {
            fs::write(folder.path.join(format!("{to:015}-{:015}-1{SUFFIX}", to - 1)), &bytes).unwrap();
        }
        folder.write(&record(count - 1, count, 1, 1)).unwrap();
        let files = folder.files().unwrap();
        assert_eq!(files.len(), INTERVALS_KEPT_MAX);
        assert_eq!((files[0].to.0, files[INTERVALS_KEPT_MAX - 1].to.0), (4, count));
    }

    #[test]
    fn the_oldest_records_go_when_they_are_too_large() {
        let (_state, folder) = folder();
        for to in 1..=5 {
            folder.write(&record(to - 1, to, 100, 1)).unwrap();
        }
        let each = folder.files().unwrap()[0].bytes;
        folder.trim(INTERVALS_KEPT_MAX, 2 * each + each / 2).unwrap();
        assert_eq!(ends(&folder, 0), [4, 5]);
    }

    #[test]
    fn a_damaged_record_is_left_out_and_a_torn_one_is_none() {
        let (_state, folder) = folder();
        for to in 1..=3 {
            folder.write(&record(to - 1, to, 1, 1)).unwrap();
        }
        let files = folder.files().unwrap();
        fs::write(&files[1].path, b"damaged").unwrap();
        fs::write(folder.path.join("new-4711"), b"torn").unwrap();
        assert_eq!(ends(&folder, 0), [1, 3]);
    }
}
