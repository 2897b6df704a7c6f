//! The folder of the state: paths, the lock of the one process that writes, and the removal of a state.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::KeptError;

/// Paths of the files.
#[derive(Clone)]
pub(super) struct Folder {
    pub path: PathBuf,
}

/// The result of an attempt to become the writer of a folder.
pub(super) enum FolderLock {
    /// This process writes for as long as the file is open.
    Ours(File),
    /// Another process has it.
    Elsewhere,
}

impl Folder {
    pub(super) fn state(&self) -> PathBuf {
        self.path.join("last-good.snapshot")
    }

    /// The state that is being written.
    pub(super) fn new_state(&self) -> PathBuf {
        self.path.join("last-good.new")
    }

    pub(super) fn journal(&self, number: u64) -> PathBuf {
        self.path.join(format!("{JOURNAL_PREFIX}{number}"))
    }

    fn lock_file(&self) -> PathBuf {
        self.path.join("last-good.lock")
    }

    /// Makes the folder if there is none, and locks it without waiting.
    pub(super) fn lock(&self) -> io::Result<FolderLock> {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&self.path)?;
        let file = writing().append(true).open(self.lock_file())?;
        match file.try_lock() {
            Ok(()) => Ok(FolderLock::Ours(file)),
            Err(TryLockError::WouldBlock) => Ok(FolderLock::Elsewhere),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Fails if users other than the relay's could have written the state: it gives rights.
    pub(super) fn check_permissions(&self) -> Result<(), KeptError> {
        for path in [self.path.clone(), self.state()] {
            let mode = match std::fs::metadata(&path) {
                Ok(metadata) => metadata.permissions().mode() & 0o7777,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    return Err(KeptError::Unreadable { path: path.display().to_string(), source });
                }
            };
            if mode & WRITABLE_BY_OTHERS != 0 {
                return Err(KeptError::Permissions { path: path.display().to_string(), mode });
            }
        }
        Ok(())
    }

    /// Numbers of the journals, in ascending order.
    pub(super) fn journals(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(JOURNAL_PREFIX));
            numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Removes the journals whose numbers `is_needed` refuses.
    pub(super) fn remove_journals(&self, is_needed: impl Fn(u64) -> bool) -> io::Result<()> {
        self.journals()?
            .into_iter()
            .filter(|number| !is_needed(*number))
            .try_for_each(|number| remove(&self.journal(number)))
    }

    /// Makes sure that no later start can use the state. Unlinking it needs no space; where the folder does not allow
    /// it, the file is emptied.
    pub(super) fn destroy_state(&self) -> io::Result<()> {
        let state = self.state();
        if let Err(error) = remove(&state) {
            let emptied = File::options().write(true).open(&state).and_then(|file| {
                file.set_len(0)?;
                file.sync_all()
            });
            return emptied.map_err(|_| error);
        }
        match self.sync() {
            // Neither the folder nor a state in it.
            Err(error) if is_missing(&error) => Ok(()),
            synced => synced,
        }
    }

    /// Makes new, renamed and removed files outlive a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

/// Options for a new or a present file, which this user alone may read.
pub(super) fn writing() -> std::fs::OpenOptions {
    let mut options = File::options();
    options.create(true).mode(FILE_MODE);
    options
}

/// Removes a file; one that is missing is no error.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if is_missing(&error) => Ok(()),
        outcome => outcome,
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

const JOURNAL_PREFIX: &str = "last-good.journal.";

/// Permissions of files and folder: rights are readable by the relay alone.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// Permission of the group or of all others to write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
