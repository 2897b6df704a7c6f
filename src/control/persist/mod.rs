//! The state of a node on disk, so that a restart decides as if there had been none.
//!
//! A state file has the rows, the ends and the guard's memory as of one moment, and a journal has every step since.
//! A step is recorded before it is in force. One that cannot be recorded destroys the state that lacks it: better no
//! state than one that gives back what has ended. States are written at a bounded rate, by a thread that lives for
//! one writing. No token is in any file, only hashes. One process writes; another one on the same folder reads at its
//! start, and then waits.

mod folder;
mod frames;
#[doc(hidden)]
pub mod fuzzing;
mod journal;
mod kept_error;
mod record;
mod restore;
mod row_fields;
mod saving;
mod state_file;
mod sync;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::authz::{Revocations, Snapshot, UnixMillis, View};
use crate::store::{Bookmark, Position, QueriesDigest, Relation};
use crate::telemetry::LogOnChange;
use folder::{Folder, FolderLock};
use frames::FRAME_OVERHEAD;
use journal::{JournalEnd, JournalFile};
use kept_error::{describe_failure, describe_undestroyed};
use record::{JournalEntry, encode};
use saving::{SaveJob, Saving};
use sync::SyncThread;

pub(super) use kept_error::KeptError;
pub(super) use record::JournalRecord;

/// Fails if users other than the relay's could have written the state in `folder`.
pub(super) fn check_permissions(folder: &Path) -> Result<(), KeptError> {
    Folder { path: folder.to_owned() }.check_permissions()
}

/// A state from disk that a node can begin with, all of it as of the last step that was recorded.
pub(super) struct Kept {
    pub snapshot: Snapshot,
    pub revocations: Revocations,
    /// Time when the store last confirmed this state, as far as it was written.
    pub confirmed_at: UnixMillis,
    /// Latest time that the node has seen. The clock does not go behind it.
    pub seen_at: UnixMillis,
    /// Relations that were read by other queries than this node's.
    pub other_queries: Vec<Relation>,
    pub position: Option<Position>,
    pub bookmark: Option<Bookmark>,
    /// The guard's memory of the same moment; empty where it never was recorded.
    pub memory: Vec<u8>,
    /// Some steps at the end were not recorded whole. Of what came after them only words and ends are here.
    pub has_gap: bool,
}

/// What is kept beside a view, as of the same moment.
#[derive(Clone, Default)]
pub(super) struct KeptBeside {
    pub position: Option<Position>,
    pub bookmark: Option<Bookmark>,
    /// The guard's memory, in the guard's own form.
    pub memory: Vec<u8>,
}

/// The origin of a state: the store, without secrets, and the queries.
#[derive(Clone)]
struct Origin {
    store: String,
    queries: QueriesDigest,
}

/// The folder, and what is under way in it.
pub(super) struct Persistence {
    folder: Folder,
    origin: Origin,
    limits: JournalLimits,
    access: FolderAccess,
    /// `None` while there is no state that it could continue.
    journal: Option<JournalFile>,
    /// The journal has a gap since the newest state, or the one that is being written.
    has_gap: bool,
    /// Bytes of the journals that the newest state does not have.
    unsaved_bytes: u64,
    /// A state is on disk that a later start may use, though no journal follows it.
    is_unfollowed: bool,
    saving: Option<Saving>,
    syncing: SyncThread,
    schedule: SaveSchedule,
    confirmed_at: UnixMillis,
    seen_at: UnixMillis,
    /// Values of the times when they were last written.
    written_times: (UnixMillis, UnixMillis),
    /// Error that keeps the state from being written, and the one that keeps it from being destroyed.
    failure: Option<String>,
    undestroyed: Option<String>,
    trouble: LogOnChange,
}

/// Whether this process may write.
enum FolderAccess {
    Writer { _lock: File },
    Elsewhere,
    Unavailable,
}

/// When the next state is to be written.
struct SaveSchedule {
    /// What is in force is not what state and journal lead to.
    is_needed: bool,
    /// The journal has a gap since the last state.
    is_urgent: bool,
    save_at: Instant,
    urgent_at: Instant,
    open_at: Instant,
}

/// Bounds of a journal, in bytes.
#[derive(Clone, Copy)]
struct JournalLimits {
    /// Beyond it a new state is due.
    due: u64,
    /// Beyond it the next state begins a new journal.
    file: u64,
    /// Beyond it nothing more is recorded: no state could be written for long.
    max: u64,
}

impl Persistence {
    pub(super) fn new(folder: &Path, store: String, queries: QueriesDigest) -> Self {
        let now = Instant::now();
        Self {
            folder: Folder { path: folder.to_owned() },
            origin: Origin { store, queries },
            limits: JOURNAL_LIMITS,
            access: FolderAccess::Unavailable,
            journal: None,
            has_gap: false,
            unsaved_bytes: 0,
            is_unfollowed: false,
            saving: None,
            syncing: SyncThread::new(Box::new(File::sync_data)),
            schedule: SaveSchedule {
                is_needed: true,
                is_urgent: false,
                save_at: now,
                urgent_at: now,
                open_at: now,
            },
            confirmed_at: UnixMillis::default(),
            seen_at: UnixMillis::default(),
            written_times: Default::default(),
            failure: None,
            undestroyed: None,
            trouble: LogOnChange::default(),
        }
    }

    /// Reads the state from disk; `None` where there is none. To be called once, before anything is recorded.
    pub(super) fn load(&mut self) -> Result<Option<Kept>, KeptError> {
        if let Err(error) = self.open() {
            self.fail(&error);
        }
        let mut loaded = restore::restore(&self.folder, &self.origin);
        for _ in 0..LOADS_MAX {
            // The writing process may have replaced the state under our eyes.
            if loaded.is_ok() || !matches!(self.access, FolderAccess::Elsewhere) {
                break;
            }
            std::thread::sleep(LOAD_PAUSE);
            loaded = restore::restore(&self.folder, &self.origin);
        }
        let is_usable_later =
            matches!(loaded, Err(KeptError::Unreadable { .. } | KeptError::Permissions { .. }));
        self.is_unfollowed |= is_usable_later && !matches!(self.access, FolderAccess::Elsewhere);
        let kept = loaded?;
        if let Some(kept) = &kept {
            // It is written again before the store says anything, and is no older for that.
            (self.confirmed_at, self.seen_at) = (kept.confirmed_at, kept.seen_at);
            self.written_times = (kept.confirmed_at, kept.seen_at);
            let is_followed = self.journal.is_some();
            self.schedule.is_needed = kept.has_gap || !is_followed || !kept.other_queries.is_empty();
            if !kept.other_queries.is_empty() {
                self.append_entry(&JournalEntry::Queries(self.origin.queries));
            }
        }
        Ok(kept)
    }

    /// Records a step that is about to be in force. After the return no crash of this process loses it: either it is
    /// in the journal, or no state without it is left.
    pub(super) fn record(&mut self, record: &JournalRecord) {
        if *record == JournalRecord::default() {
            return;
        }
        match record.contents(self.seen_at) {
            Some(contents) => {
                // What does not fit begins with a gap.
                if contents.len() > 1 {
                    self.schedule.is_needed = true;
                    self.schedule.is_urgent = true;
                }
                self.append(&contents);
            }
            None => self.lose(&io::Error::other("a row is too large for the journal")),
        }
    }

    /// Marks that what is in force changes by something that is not recorded: a state is due, and until it is written
    /// the journal keeps words and ends alone.
    pub(super) fn outdate(&mut self) {
        self.schedule.is_needed = true;
        self.schedule.is_urgent = true;
        if !self.has_gap {
            self.has_gap = true;
            self.append_entry(&JournalEntry::Gap);
        }
    }

    /// Has a thread make what was recorded outlive a power cut. To be called once it is in force.
    pub(super) fn sync(&mut self) {
        let unsynced = self.journal.as_mut().and_then(JournalFile::unsynced);
        let requested = unsynced.map(|file| file.and_then(|file| self.syncing.request(file)));
        if let Some(Err(error)) = requested {
            self.lose(&error);
        }
    }

    /// Sets the queries that the store is read by from now on.
    pub(super) fn read_by(&mut self, queries: QueriesDigest) {
        if self.origin.queries != queries {
            self.origin.queries = queries;
            self.append_entry(&JournalEntry::Queries(queries));
        }
    }

    /// Records that the store has confirmed at `now` what is in force.
    pub(super) fn confirm(&mut self, now: UnixMillis) {
        self.confirmed_at = now;
        self.write_due_times();
    }

    /// Records the latest time that the node has seen and that is no mistake.
    pub(super) fn record_time(&mut self, now: UnixMillis) {
        self.seen_at = self.seen_at.max(now);
        self.write_due_times();
    }

    fn write_due_times(&mut self) {
        let (confirmed_at, seen_at) = self.written_times;
        let since = |at: UnixMillis, written: UnixMillis| at.0.saturating_sub(written.0);
        if since(self.confirmed_at, confirmed_at).max(since(self.seen_at, seen_at)) > TIMES_EVERY_MS {
            self.write_times();
        }
    }

    /// Returns whether a state should be kept now: there is none, or the journal does not lead to what is in force,
    /// or it has become long.
    pub(super) fn wants_state(&self) -> bool {
        let SaveSchedule { is_needed, is_urgent, save_at, urgent_at, .. } = self.schedule;
        let is_due = is_needed || self.unsaved_bytes > self.limits.due;
        let at = if is_urgent { urgent_at.min(save_at) } else { save_at };
        // A state is not begun on a disk that hangs: to begin a journal waits for the disk.
        is_due
            && !self.syncing.is_busy()
            && self.saving.is_none()
            && !self.is_elsewhere()
            && Instant::now() >= at
    }

    /// Begins to write what is in force, which must have every step that was recorded so far. Does nothing while
    /// another state is being written.
    pub(super) fn keep(&mut self, view: &View, beside: KeptBeside) {
        if self.saving.is_some() {
            return;
        }
        if let Err(error) = self.begin_saving(view, beside) {
            self.schedule.pause(Duration::ZERO);
            self.fail(&error);
        }
    }

    /// Ends writings, and retries what has failed. To be called from time to time.
    pub(super) fn turn(&mut self) {
        if let Some(error) = self.syncing.failure() {
            self.lose(&error);
        }
        if self.saving.as_ref().is_some_and(Saving::is_finished) {
            self.finish_saving();
        }
        if self.undestroyed.is_some() {
            self.destroy();
            self.report();
        }
        if !self.is_writer() && Instant::now() >= self.schedule.open_at {
            self.schedule.open_at = Instant::now() + OPEN_PAUSE;
            match self.open() {
                // What is in force does not descend from the state that is there.
                Ok(()) => {
                    self.outdate();
                    self.failure = None;
                    self.report();
                }
                Err(error) => self.fail(&error),
            }
        }
    }

    /// Writes what is in force, if the files do not lead to it yet, and waits for that. For the end of the process. On a
    /// disk that hangs it gives up after [`STOP_SYNC_MAX`].
    pub(super) fn stop(&mut self, view: Option<&View>, beside: KeptBeside) {
        self.write_times();
        self.sync();
        if !self.syncing.wait(STOP_SYNC_MAX) {
            tracing::warn!(
                "the disk of {} does not answer: a power cut could lose what came into force last",
                self.folder.path.display()
            );
            return;
        }
        self.turn();
        self.finish_saving();
        let Some(view) = view else { return };
        if self.schedule.is_needed && !self.is_elsewhere() {
            self.keep(view, beside);
            self.finish_saving();
        }
    }

    /// Leaves the folder to another process, whose state it is from here on. [`resume`](Self::resume) takes it back.
    pub(super) fn leave(&mut self) {
        self.journal = None;
        self.is_unfollowed = false;
        self.access = FolderAccess::Unavailable;
    }

    /// Writes again after [`leave`](Self::leave), as soon as no other process does. What is in force does not descend
    /// from the state that is there.
    pub(super) fn resume(&mut self) {
        self.schedule.open_at = Instant::now();
        self.schedule.is_needed = true;
        self.turn();
    }

    /// What keeps the state from being written, and what to do; `None` while all is well.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.get().cloned()
    }

    /// Becomes the writer, and goes on with the journal of the state that is there.
    fn open(&mut self) -> io::Result<()> {
        self.access = FolderAccess::Unavailable;
        // Until it is known better: a state may be there.
        self.is_unfollowed = true;
        match self.folder.lock()? {
            FolderLock::Ours(lock) => self.access = FolderAccess::Writer { _lock: lock },
            FolderLock::Elsewhere => {
                self.access = FolderAccess::Elsewhere;
                self.is_unfollowed = false;
                return Err(io::Error::new(
                    io::ErrorKind::WouldBlock,
                    "another process keeps its state there",
                ));
            }
        }
        match restore::journal_end(&self.folder, &self.origin) {
            Ok(Some(end)) => self.follow(&end)?,
            // It may be usable at a later start.
            Err(KeptError::Unreadable { .. } | KeptError::Permissions { .. }) => return Ok(()),
            Ok(None) | Err(_) => {}
        }
        self.is_unfollowed = false;
        Ok(())
    }

    fn follow(&mut self, end: &JournalEnd) -> io::Result<()> {
        let journal = JournalFile::resume(&self.folder, end)?;
        self.folder.remove_journals(|number| (end.first..=end.place.number).contains(&number))?;
        self.journal = Some(journal);
        self.has_gap = false;
        self.unsaved_bytes = end.bytes;
        Ok(())
    }

    fn is_writer(&self) -> bool {
        matches!(self.access, FolderAccess::Writer { .. })
    }

    fn is_elsewhere(&self) -> bool {
        matches!(self.access, FolderAccess::Elsewhere)
    }

    fn write_times(&mut self) {
        let Some(journal) = &mut self.journal else { return };
        let (confirmed_at, seen_at) = (self.confirmed_at, self.seen_at);
        let Some(content) = encode(&JournalEntry::Times { confirmed_at: confirmed_at.0, seen_at: seen_at.0 })
        else {
            return;
        };
        self.written_times = (confirmed_at, seen_at);
        // No right hangs on them alone: the state stays.
        match journal.append(std::slice::from_ref(&content)) {
            Ok(()) => self.unsaved_bytes += (FRAME_OVERHEAD + content.len()) as u64,
            Err(error) => {
                self.schedule.is_needed = true;
                self.fail(&error);
            }
        }
    }

    fn append_entry(&mut self, entry: &JournalEntry) {
        match encode(entry) {
            Some(content) => self.append(&[content]),
            None => self.lose(&io::Error::other("an entry of the journal does not encode")),
        }
    }

    fn append(&mut self, contents: &[Vec<u8>]) {
        let Some(journal) = &mut self.journal else {
            self.schedule.is_needed = true;
            if self.is_unfollowed {
                self.destroy();
                self.report();
            }
            return;
        };
        let bytes: usize = contents.iter().map(|content| FRAME_OVERHEAD + content.len()).sum();
        let bytes_after = self.unsaved_bytes.saturating_add(bytes as u64);
        let appended = match bytes_after > self.limits.max {
            true => Err(io::Error::other("the journal is full, as no state could be written")),
            false => journal.append(contents),
        };
        match appended {
            Ok(()) => self.unsaved_bytes = bytes_after,
            Err(error) => self.lose(&error),
        }
    }

    /// A step could not be recorded: no state without it may be left.
    fn lose(&mut self, error: &io::Error) {
        self.destroy();
        self.schedule.pause(Duration::ZERO);
        self.fail(error);
    }

    fn destroy(&mut self) {
        self.journal = None;
        self.unsaved_bytes = 0;
        self.schedule.is_needed = true;
        if let Some(saving) = &self.saving {
            saving.cancel();
        }
        let destroyed = self.folder.destroy_state();
        self.is_unfollowed = destroyed.is_err();
        if destroyed.is_ok() {
            // For the space that they take; the next state removes what is left.
            let _left_over = self.folder.remove_journals(|_| false);
        }
        self.undestroyed = destroyed.err().map(|error| describe_undestroyed(&self.folder.state(), &error));
    }

    fn begin_saving(&mut self, view: &View, beside: KeptBeside) -> io::Result<()> {
        if !self.is_writer() {
            self.open()?;
            self.outdate();
        }
        let journal = match self.journal.take() {
            None => {
                let number = self.folder.journals()?.last().map_or(1, |last| last.saturating_add(1));
                self.unsaved_bytes = 0;
                JournalFile::begin(&self.folder, number, None)?
            }
            Some(mut full) if full.place().offset > self.limits.file => {
                // The next one is begun before this one is left.
                let place = full.place();
                let next = full.sync().and_then(|()| {
                    JournalFile::begin(&self.folder, place.number.saturating_add(1), Some(place.id))
                });
                next.inspect_err(|_| self.journal = Some(full))?
            }
            Some(journal) => journal,
        };
        let journal = self.journal.insert(journal);
        let job = SaveJob {
            folder: self.folder.clone(),
            origin: self.origin.clone(),
            confirmed_at: self.confirmed_at,
            seen_at: self.seen_at,
            snapshot: Arc::clone(&view.snapshot),
            revocations: Arc::clone(&view.revocations),
            beside,
            journal: journal.place(),
            journal_file: journal.handle()?,
        };
        self.saving = Some(Saving::begin(job, self.unsaved_bytes)?);
        (self.schedule.is_needed, self.schedule.is_urgent, self.has_gap) = (false, false, false);
        Ok(())
    }

    fn finish_saving(&mut self) {
        let Some(saving) = self.saving.take() else { return };
        let journal_bytes = saving.journal_bytes;
        let end = saving.finish();
        self.schedule.pause(end.lasted);
        match end.outcome {
            Ok(()) if end.is_cancelled => {}
            Ok(()) => {
                self.unsaved_bytes = self.unsaved_bytes.saturating_sub(journal_bytes);
                (self.failure, self.undestroyed, self.is_unfollowed) = (None, None, false);
                self.report();
            }
            Err(error) => {
                self.schedule.is_needed = true;
                self.fail(&error);
            }
        }
    }

    fn fail(&mut self, error: &io::Error) {
        self.failure = Some(describe_failure(&self.folder.path, error));
        self.report();
    }

    /// Logs what is wrong when it begins, changes and ends.
    fn report(&mut self) {
        match self.undestroyed.as_ref().or(self.failure.as_ref()) {
            Some(trouble) => {
                if self.trouble.changes_to(trouble.clone()) {
                    match self.undestroyed.is_some() {
                        true => tracing::error!("{trouble}"),
                        false => tracing::warn!("{trouble}"),
                    }
                }
            }
            None => {
                if self.trouble.ends() {
                    tracing::info!("the node's state is kept in {} again", self.folder.path.display());
                }
            }
        }
    }
}

impl Drop for Persistence {
    fn drop(&mut self) {
        self.finish_saving();
    }
}

impl SaveSchedule {
    /// Pauses after a writing that lasted so long.
    fn pause(&mut self, lasted: Duration) {
        let now = Instant::now();
        self.save_at = now + SAVE_PAUSE.max(lasted * SAVE_PAUSE_FACTOR);
        self.urgent_at = now + URGENT_PAUSE.max(lasted * URGENT_PAUSE_FACTOR);
    }
}

/// Pause between two states. The journal has what came since.
const SAVE_PAUSE: Duration = Duration::from_secs(30);

/// Factor between the time of a writing and the pause after it.
const SAVE_PAUSE_FACTOR: u32 = 20;

/// Pause and factor where the journal has a gap.
const URGENT_PAUSE: Duration = Duration::from_secs(1);
const URGENT_PAUSE_FACTOR: u32 = 4;

/// Longest wait for the disk at the end of the process.
const STOP_SYNC_MAX: Duration = Duration::from_secs(2);

/// Pause between two attempts to become the writer.
const OPEN_PAUSE: Duration = Duration::from_secs(1);

/// Attempts to read a state that another process may be replacing, and the pause between them.
const LOADS_MAX: usize = 5;
const LOAD_PAUSE: Duration = Duration::from_millis(50);

/// Period at which the times are written: a clock that went back is noticed but for this long.
const TIMES_EVERY_MS: i64 = 10_000;

/// A start reads the due bytes in well under a second; all of the maximum are a million ends.
const JOURNAL_LIMITS: JournalLimits =
    JournalLimits { due: 4 * 1024 * 1024, file: 1024 * 1024, max: 128 * 1024 * 1024 };
