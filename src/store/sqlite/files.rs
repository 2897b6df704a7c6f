//! The files of a store: the database, the write-ahead log beside it (`-wal`), and the log's index (`-shm`).
//!
//! SQLite goes on with the files that it has opened, whatever takes their names. An answer counts only if the files
//! at the path are those that are open.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::SqlitePath;
use crate::store::StoreError;

/// Names of a store's files. Symbolic links are resolved, as SQLite does before it names the other two.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct FilePaths {
    pub(super) database: PathBuf,
    pub(super) log: PathBuf,
    index: PathBuf,
}

/// The files at the paths. In a journal mode other than WAL, the database is alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FileSet {
    pub(super) database: FileId,
    pub(super) log: Option<FileId>,
    index: Option<FileId>,
}

/// Identity of a file, which another one that takes its name does not have while the first is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

/// Time and size of the last write to a database file. A checkpoint changes it, and so does a copy over the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct DatabaseStamp {
    modified_ns: (i64, i64),
    bytes: u64,
}

/// A database file, which no later one is: an inode's number is given again, and not together with its birth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FileOrigin {
    id: FileId,
    born: SystemTime,
}

/// A log that has frames, as its header tells it from others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LogContent {
    file: FileId,
    /// Numbers that SQLite chooses anew when it begins the log anew.
    salts: [u8; 8],
}

impl FilePaths {
    pub(super) fn of(path: &SqlitePath) -> Result<Self, StoreError> {
        let database = path.path.canonicalize().map_err(|error| path.file_error(error))?;
        let beside = |suffix| {
            let mut name = database.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        };
        Ok(Self { log: beside("-wal"), index: beside("-shm"), database })
    }

    /// True if the database at the path is `file`.
    pub(super) fn has_database(&self, file: FileId) -> bool {
        std::fs::metadata(&self.database).is_ok_and(|metadata| FileId::of(&metadata) == file)
    }
}

impl FileSet {
    /// Reads the metadata and does not open the files: closing them again would drop the locks that SQLite holds.
    pub(super) fn at(paths: &FilePaths, path: &SqlitePath) -> Result<Self, StoreError> {
        // The configured path, so that a symbolic link that leads elsewhere now is noticed.
        let database = metadata(&path.path, path)?.ok_or_else(|| path.missing())?;
        let id = |file: &Path| Ok(metadata(file, path)?.map(|metadata| FileId::of(&metadata)));
        Ok(Self { database: FileId::of(&database), log: id(&paths.log)?, index: id(&paths.index)? })
    }
}

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

impl DatabaseStamp {
    pub(super) fn at(path: &SqlitePath) -> Result<Self, StoreError> {
        let metadata = metadata(&path.path, path)?.ok_or_else(|| path.missing())?;
        Ok(Self { modified_ns: (metadata.mtime(), metadata.mtime_nsec()), bytes: metadata.len() })
    }
}

impl FileOrigin {
    /// The database at the path; `None` where there is none, or where its file system records no births.
    pub(super) fn at(paths: &FilePaths) -> Option<Self> {
        let metadata = std::fs::metadata(&paths.database).ok()?;
        Some(Self { id: FileId::of(&metadata), born: metadata.created().ok()? })
    }

    /// True if the database is at the path, and was not written after `left_at`.
    pub(super) fn is_back(self, paths: &FilePaths, left_at: SystemTime) -> bool {
        let unchanged = std::fs::metadata(&paths.database).and_then(|metadata| metadata.modified());
        Self::at(paths) == Some(self) && unchanged.is_ok_and(|at| at <= left_at)
    }
}

impl LogContent {
    /// The log at the path, if it has frames. SQLite holds no locks on this file, so that it can be opened here.
    pub(super) fn at(paths: &FilePaths) -> Option<Self> {
        let mut file = File::open(&paths.log).ok()?;
        let metadata = file.metadata().ok()?;
        if metadata.len() <= LOG_HEADER_BYTES as u64 {
            return None;
        }
        let mut header = [0; LOG_HEADER_BYTES];
        file.read_exact(&mut header).ok()?;
        let salts = header[SALTS_AT..SALTS_AT + 8].try_into().ok()?;
        Some(Self { file: FileId::of(&metadata), salts })
    }

    pub(super) const fn file(self) -> FileId {
        self.file
    }
}

/// Metadata of a file; `None` if it is not there.
fn metadata(file: &Path, path: &SqlitePath) -> Result<Option<Metadata>, StoreError> {
    match std::fs::metadata(file) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(path.unreadable(error)),
    }
}

/// Size of a log's header and the place of its salts, from <https://www.sqlite.org/fileformat2.html#walformat>.
const LOG_HEADER_BYTES: usize = 32;
const SALTS_AT: usize = 16;
