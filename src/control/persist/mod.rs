//! The last good snapshot on disk, so that a node that restarts while its store is away goes on deciding.
//!
//! The snapshot is written whole, at a bounded rate, by a thread that lives for one writing. What ends is
//! written to a journal before it is in force, so that no crash brings it back. No token is in either file,
//! only hashes. One process writes; another one on the same folder reads at its start, and then waits.

mod file;
mod journal;

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::authz::{Change, Revocations, Snapshot, UnixMillis, View};
use crate::store::QueriesDigest;
use crate::telemetry::LogOnChange;
use journal::EndsJournal;

/// A state from disk that a node can begin with.
pub(super) struct Kept {
    pub snapshot: Snapshot,
    pub revocations: Revocations,
    /// Time when the store last confirmed this state, as far as it was written.
    pub confirmed_at: UnixMillis,
    pub read_by: ReadBy,
}

/// Origin of the state, to see whether the same queries read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ReadBy {
    TheseQueries,
    OtherQueries,
}

/// The origin of a snapshot: the store and the queries.
#[derive(Clone)]
struct Origin {
    /// The store, without secrets.
    store: String,
    queries: QueriesDigest,
}

/// Reason why the state on disk cannot be used; each text ends in the consequence.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeptError {
    #[error("{path} cannot be read ({source}); the store alone decides")]
    Unreadable { path: String, source: io::Error },
    #[error("{path} is damaged ({detail}) and is not used; the store alone decides")]
    Damaged { path: String, detail: &'static str },
    #[error("{path} was written by another version of sluicegate and is not used; the store alone decides")]
    Version { path: String },
    #[error("{path} was kept of {found}, this node's store is {wanted}; it is not used")]
    Store { path: String, found: String, wanted: String },
}

/// The folder, and what is under way in it.
pub(super) struct Persistence {
    folder: Folder,
    origin: Origin,
    /// `None` while another process has the folder, or it cannot be written.
    open: Option<OpenFolder>,
    saving: Option<Saving>,
    /// Not written yet.
    unsaved: Option<Arc<View>>,
    confirmed_at: UnixMillis,
    save_at: Instant,
    trouble: LogOnChange,
}

/// The files that are open while this process is the writer.
struct OpenFolder {
    journal: EndsJournal,
    confirmed_at: UnixMillis,
    _lock: File,
}

struct Saving {
    thread: JoinHandle<io::Result<()>>,
    began: Instant,
}

/// Paths of the files.
#[derive(Clone)]
struct Folder {
    path: PathBuf,
}

impl Persistence {
    pub(super) fn new(folder: &Path, store: String, queries: QueriesDigest) -> Self {
        Self {
            folder: Folder { path: folder.to_owned() },
            origin: Origin { store, queries },
            open: None,
            saving: None,
            unsaved: None,
            confirmed_at: UnixMillis::default(),
            save_at: Instant::now(),
            trouble: LogOnChange::default(),
        }
    }

    /// Reads the state from disk; `None` where there is none.
    pub(super) fn load(&mut self) -> Result<Option<Kept>, KeptError> {
        let Some(mut kept) = file::read(&self.folder.snapshot(), &self.origin)? else { return Ok(None) };
        for path in [self.folder.old_journal(), self.folder.journal()] {
            let records = journal::read(&path)?;
            if let Some(revocations) = kept.revocations.with(&records.ends) {
                kept.revocations = revocations;
            }
            kept.confirmed_at = kept.confirmed_at.max(records.confirmed_at);
        }
        // It is written again before the store says anything, and is no older for that.
        self.confirmed_at = kept.confirmed_at;
        Ok(Some(kept))
    }

    /// Records rights that are about to end. After the return no crash of this process brings them back.
    pub(super) fn record_ends(&mut self, ends: &[Change]) {
        let Some(open) = &mut self.open else { return };
        if let Err(error) = open.journal.append_ends(ends) {
            // Better no snapshot at all than one that gives back what has ended.
            let _gone_already = std::fs::remove_file(self.folder.snapshot());
            self.give_up(&error);
        }
    }

    /// Sees to it that neither a power cut does. To be called once the ends are in force.
    pub(super) fn sync_ends(&mut self) {
        if let Some(Err(error)) = self.open.as_mut().map(|open| open.journal.sync()) {
            self.give_up(&error);
        }
    }

    /// Sets the queries that the state in force is read by from now on.
    pub(super) fn read_by(&mut self, queries: QueriesDigest) {
        self.origin.queries = queries;
    }

    /// This is in force now.
    pub(super) fn keep(&mut self, view: &Arc<View>) {
        self.unsaved = Some(Arc::clone(view));
    }

    /// The store has confirmed at `now` what is in force.
    pub(super) fn confirm(&mut self, now: UnixMillis) {
        self.confirmed_at = now;
        if let Some(open) = &mut self.open
            && now.0.saturating_sub(open.confirmed_at.0) > CONFIRMATION_EVERY.as_millis() as i64
        {
            open.confirmed_at = now;
            if let Err(error) = open.journal.append_confirmation(now) {
                self.give_up(&error);
            }
        }
    }

    /// Begins and ends writings. To be called from time to time.
    pub(super) fn turn(&mut self) {
        if self.saving.as_ref().is_some_and(|saving| saving.thread.is_finished()) {
            self.finish_saving();
        }
        if self.saving.is_none() && self.unsaved.is_some() && Instant::now() >= self.save_at {
            self.save_at = Instant::now() + SAVE_PAUSE;
            if let Err(error) = self.begin_saving() {
                self.give_up(&error);
            }
        }
    }

    fn begin_saving(&mut self) -> io::Result<()> {
        if self.open.is_none() {
            self.open = Some(OpenFolder::lock(&self.folder)?);
        }
        let (Some(open), Some(view)) = (&mut self.open, self.unsaved.take()) else { return Ok(()) };
        // What ends from here on is in the new journal; what has ended before, in the view.
        open.journal = EndsJournal::rotate(&self.folder)?;
        let (folder, origin, confirmed_at) = (self.folder.clone(), self.origin.clone(), self.confirmed_at);
        let thread = std::thread::Builder::new().name("persist".to_owned()).spawn(move || {
            file::write(&folder, &origin, &view, confirmed_at)?;
            folder.remove_old_journal()
        })?;
        self.saving = Some(Saving { thread, began: Instant::now() });
        Ok(())
    }

    fn finish_saving(&mut self) {
        let Some(Saving { thread, began }) = self.saving.take() else { return };
        self.save_at = Instant::now() + SAVE_PAUSE.max(began.elapsed() * SAVE_PAUSE_FACTOR);
        let outcome = thread.join();
        if self.open.is_none() {
            // The journal was lost meanwhile, and with it what has ended since this was begun.
            let _gone_already = std::fs::remove_file(self.folder.snapshot());
        }
        match outcome {
            Ok(Ok(())) => {
                if self.trouble.ends() {
                    tracing::info!("the last good snapshot is kept in {} again", self.folder.path.display());
                }
            }
            Ok(Err(error)) => self.give_up(&error),
            Err(_) => self.give_up(&io::Error::other("a fault of sluicegate itself; please report it")),
        }
    }

    /// Logs the error and closes the files until the next save, which begins from nothing.
    fn give_up(&mut self, error: &io::Error) {
        self.open = None;
        let trouble = format!(
            "the last good snapshot cannot be kept in {} ({error}); without it a restart needs the store",
            self.folder.path.display()
        );
        if self.trouble.changes_to(trouble.clone()) {
            tracing::warn!("{trouble}");
        }
    }
}

impl Drop for Persistence {
    /// Saves the state in force, so that the next start begins with it.
    fn drop(&mut self) {
        if self.saving.is_some() {
            self.finish_saving();
        }
        if self.unsaved.is_some() {
            self.save_at = Instant::now();
            self.turn();
            self.finish_saving();
        }
    }
}

impl OpenFolder {
    fn lock(folder: &Folder) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&folder.path)?;
        let lock = File::options().create(true).append(true).mode(FILE_MODE).open(folder.lock())?;
        lock.try_lock().map_err(|_| io::Error::other("another process writes there"))?;
        let journal = EndsJournal::rotate(folder)?;
        Ok(Self { journal, confirmed_at: UnixMillis::default(), _lock: lock })
    }
}

impl Folder {
    fn snapshot(&self) -> PathBuf {
        self.path.join("last-good.snapshot")
    }

    fn journal(&self) -> PathBuf {
        self.path.join("last-good.journal")
    }

    /// Journal of what ended before the snapshot that is being written.
    fn old_journal(&self) -> PathBuf {
        self.path.join("last-good.journal.old")
    }

    fn lock(&self) -> PathBuf {
        self.path.join("last-good.lock")
    }

    fn remove_old_journal(&self) -> io::Result<()> {
        match std::fs::remove_file(self.old_journal()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Pause between two saves. A snapshot that is a little old is as good.
const SAVE_PAUSE: Duration = Duration::from_secs(30);

/// Factor between the time of a save and the pause after it.
const SAVE_PAUSE_FACTOR: u32 = 20;

/// Period at which the time of the store's last confirmation is written.
const CONFIRMATION_EVERY: Duration = Duration::from_secs(60);

/// Permissions of files and folder: rights are readable by the relay alone.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;
