//! The thread that writes one state, beside the control thread.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::folder::{Folder, remove};
use super::journal::JournalPlace;
use super::state_file::{self, StateContents};
use super::{KeptBeside, Origin};
use crate::authz::{Revocations, Snapshot, UnixMillis};

/// What is to be written, all of one moment.
pub(super) struct SaveJob {
    pub folder: Folder,
    pub origin: Origin,
    pub confirmed_at: UnixMillis,
    pub seen_at: UnixMillis,
    pub snapshot: Arc<Snapshot>,
    pub revocations: Arc<Revocations>,
    pub beside: KeptBeside,
    /// The place from which the journal continues the state.
    pub journal: JournalPlace,
    /// The journal, which has to be on the disk up to that place.
    pub journal_file: File,
}

/// A state that is being written.
pub(super) struct Saving {
    thread: JoinHandle<io::Result<()>>,
    began: Instant,
    is_cancelled: Arc<Mutex<bool>>,
    /// Bytes of the journal that the state makes needless.
    pub journal_bytes: u64,
}

/// The outcome of a writing.
pub(super) struct SaveEnd {
    pub outcome: io::Result<()>,
    pub lasted: Duration,
    pub is_cancelled: bool,
}

impl Saving {
    pub(super) fn begin(job: SaveJob, journal_bytes: u64) -> io::Result<Self> {
        let is_cancelled = Arc::new(Mutex::new(false));
        let cancelled = Arc::clone(&is_cancelled);
        let thread =
            std::thread::Builder::new().name("persist".to_owned()).spawn(move || job.run(&cancelled))?;
        Ok(Self { thread, began: Instant::now(), is_cancelled, journal_bytes })
    }

    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Keeps the state from replacing the one on disk, unless it has done so.
    pub(super) fn cancel(&self) {
        *self.is_cancelled.lock() = true;
    }

    /// Waits for the end.
    pub(super) fn finish(self) -> SaveEnd {
        let fault = |_| Err(io::Error::other("a fault of sluicegate itself; please report it"));
        let outcome = self.thread.join().unwrap_or_else(fault);
        let is_cancelled = *self.is_cancelled.lock();
        SaveEnd { outcome, lasted: self.began.elapsed(), is_cancelled }
    }
}

impl SaveJob {
    fn run(self, is_cancelled: &Mutex<bool>) -> io::Result<()> {
        self.write()?;
        {
            let is_cancelled = is_cancelled.lock();
            if *is_cancelled {
                return remove(&self.folder.new_state());
            }
            self.put_in_place()?;
        }
        self.tidy()
    }

    /// Writes the state beside its place.
    pub(super) fn write(&self) -> io::Result<()> {
        self.journal_file.sync_data()?;
        let contents = StateContents {
            store: &self.origin.store,
            queries: self.origin.queries,
            confirmed_at: self.confirmed_at,
            seen_at: self.seen_at,
            journal: self.journal,
            snapshot: &self.snapshot,
            revocations: &self.revocations,
            beside: &self.beside,
        };
        state_file::write(&self.folder, &contents)
    }

    fn put_in_place(&self) -> io::Result<()> {
        std::fs::rename(self.folder.new_state(), self.folder.state())
    }

    fn tidy(&self) -> io::Result<()> {
        self.folder.sync()?;
        self.folder.remove_journals(|number| number >= self.journal.number)
    }
}
