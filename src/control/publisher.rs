//! Puts views in force, keeps them on disk, and frees those that were.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crossbeam::epoch;

use super::guard::{Guard, GuardMemory, Unpublished};
use super::persist::{JournalRecord, Kept, KeptBeside, Persistence};
use crate::authz::{Authority, Revocations, Snapshot, UnixMillis, View};
use crate::store::{Bookmark, KnownPosition, Position, QueriesDigest};

/// The only writer of an [`Authority`].
pub(super) struct Publisher {
    authority: Arc<Authority>,
    on_publish: Box<dyn Fn() + Send>,
    /// `None` until a first snapshot is published.
    in_force: Option<Arc<View>>,
    retired: Retired,
    /// `None` where nothing is kept on disk, or another process keeps it.
    persistence: Option<Persistence>,
    /// The writing that another process does.
    set_aside: Option<Persistence>,
}

/// What an earlier process has kept on disk.
pub(super) struct Restored {
    pub snapshot: Arc<Snapshot>,
    pub revocations: Revocations,
    pub memory: GuardMemory,
    pub position: Option<Position>,
    pub bookmark: Option<Bookmark>,
}

/// How far the store was read, for the state on disk.
pub(super) struct ReadUpTo {
    pub position: Option<Position>,
    pub bookmark: Option<Bookmark>,
}

impl Publisher {
    pub(super) fn new(
        authority: Arc<Authority>,
        on_publish: Box<dyn Fn() + Send>,
        persistence: Option<Persistence>,
    ) -> Self {
        Self {
            authority,
            on_publish,
            in_force: None,
            retired: Retired::default(),
            persistence,
            set_aside: None,
        }
    }

    /// Reads what an earlier process has kept on disk, if there is anything.
    pub(super) fn restore(&mut self) -> Option<Restored> {
        let kept = match self.persistence.as_mut()?.load() {
            Ok(kept) => kept?,
            Err(error) => {
                tracing::error!("{error}");
                return None;
            }
        };
        let Kept { snapshot, revocations, confirmed_at, seen_at, other_queries, position, bookmark, .. } =
            kept;
        if !other_queries.is_empty() {
            let names: Vec<&str> = other_queries.iter().map(|relation| relation.name()).collect();
            tracing::warn!(
                "the rows on disk of {} were read by other queries; what these change is held beyond its budget",
                names.join(", ")
            );
        }
        if kept.has_gap {
            tracing::warn!("the state on disk is a little older than the end of the last process");
        }
        let memory = if kept.memory.is_empty() {
            GuardMemory::default()
        } else {
            postcard::from_bytes(&kept.memory).unwrap_or_else(|error| {
                tracing::error!(
                    "what the guard had kept on disk cannot be used ({error}); its budgets begin anew"
                );
                GuardMemory::default()
            })
        };
        self.authority.restore_latest_time(seen_at);
        // A clock that was far ahead for a moment may have confirmed it then.
        self.authority.confirm(confirmed_at.min(self.authority.time(UnixMillis::now())));
        self.authority.lost_store();
        Some(Restored { snapshot: Arc::new(snapshot), revocations, memory, position, bookmark })
    }

    /// Puts `masked` in force, with the ends on top of it, to be compared with `previous`. What changed is on disk before.
    pub(super) fn publish(
        &mut self,
        guard: &Guard,
        masked: Arc<Snapshot>,
        previous: Option<Arc<Snapshot>>,
        changed: Unpublished,
        ended_at: Option<Instant>,
        read_up_to: ReadUpTo,
    ) {
        self.record(guard, changed, read_up_to);
        if let Some(ended_at) = ended_at {
            self.authority.record_ends(ended_at);
        }
        let view =
            Arc::new(View { snapshot: masked, revocations: Arc::clone(guard.revocations()), previous });
        self.authority.publish(Arc::clone(&view));
        if let Some(old) = self.in_force.replace(view) {
            self.retired.push(old);
        }
        (self.on_publish)();
        if let Some(persistence) = &mut self.persistence {
            persistence.sync();
        }
    }

    /// Records what the guard has to remember, where nothing else has changed.
    pub(super) fn record_memory(&mut self, guard: &Guard) {
        let changed = Unpublished { is_memory_changed: true, ..Unpublished::default() };
        self.record(guard, changed, ReadUpTo { position: None, bookmark: None });
    }

    /// The store has confirmed at `now` that what is in force or held is what it says.
    pub(super) fn confirm(&mut self, now: UnixMillis) {
        self.authority.confirm(now);
        if let Some(persistence) = &mut self.persistence {
            persistence.confirm(now);
        }
    }

    /// Sets the queries that the store is read by from now on, for the copy on disk.
    pub(super) fn read_by(&mut self, queries: QueriesDigest) {
        if let Some(persistence) = &mut self.persistence {
            persistence.read_by(queries);
        }
    }

    /// Frees the views that no engine looks at any more, on this thread. To be called from time to time.
    pub(super) fn tidy(&mut self) {
        self.retired.reclaim();
        if let Some(persistence) = &mut self.persistence {
            persistence.turn();
        }
    }

    /// Writes the state to disk where one is due.
    pub(super) fn keep(&mut self, guard: &Guard, known: &KnownPosition, bookmark: Option<Bookmark>) {
        let Some(persistence) = &mut self.persistence else { return };
        if let Some(latest) = self.authority.latest_time() {
            persistence.record_time(latest);
        }
        if persistence.wants_state()
            && let Some(view) = view_of(guard)
        {
            persistence.keep(&view, beside(guard, known, bookmark));
        }
    }

    /// Writes the state to disk at the end of the process.
    pub(super) fn stop(&mut self, guard: &Guard, known: &KnownPosition, bookmark: Option<Bookmark>) {
        let Some(persistence) = &mut self.persistence else { return };
        persistence.stop(view_of(guard).as_ref(), beside(guard, known, bookmark));
    }

    /// Writes the state to disk and leaves its folder to another process. What is in force goes on to change.
    pub(super) fn stop_writing(&mut self, guard: &Guard, known: &KnownPosition, bookmark: Option<Bookmark>) {
        self.stop(guard, known, bookmark);
        if let Some(mut persistence) = self.persistence.take() {
            persistence.leave();
            self.set_aside = Some(persistence);
        }
    }

    /// Keeps the state on disk again after [`stop_writing`](Self::stop_writing).
    pub(super) fn resume_writing(&mut self) {
        if let Some(mut persistence) = self.set_aside.take() {
            persistence.resume();
            self.persistence = Some(persistence);
        }
    }

    /// What keeps the state from being written; `None` while all is well.
    pub(super) fn trouble(&self) -> Option<String> {
        self.persistence.as_ref().and_then(Persistence::trouble)
    }

    fn record(&mut self, guard: &Guard, changed: Unpublished, read_up_to: ReadUpTo) {
        let Some(persistence) = &mut self.persistence else { return };
        let Unpublished { inferred, words, lifted, ended, generation, is_memory_changed } = changed;
        if inferred.len() > JOURNAL_ROWS_MAX {
            // A whole state is smaller and is read faster.
            persistence.outdate();
        }
        let is_short = guard.memory_rows() <= JOURNAL_MEMORY_MAX;
        let memory = match is_memory_changed && is_short {
            true => postcard::to_allocvec(&guard.memory()).ok(),
            false => None,
        };
        if is_memory_changed && memory.is_none() {
            // Rows and memory are of one moment: until the next state, which is due at once, only words and ends count.
            persistence.outdate();
        }
        let ReadUpTo { position, bookmark } = read_up_to;
        persistence.record(&JournalRecord {
            generation,
            inferred: if inferred.len() > JOURNAL_ROWS_MAX { Vec::new() } else { inferred },
            words,
            lifted,
            ended,
            memory,
            bookmark,
            position,
        });
    }
}

/// The view of what the guard has in force, without what only masks it. `None` while rows of the first answers are held
/// back: a restart asks the peers again.
fn view_of(guard: &Guard) -> Option<View> {
    let snapshot = Arc::clone(guard.in_force().filter(|_| !guard.is_first_incomplete())?);
    Some(View { snapshot, revocations: Arc::clone(guard.revocations()), previous: None })
}

fn beside(guard: &Guard, known: &KnownPosition, bookmark: Option<Bookmark>) -> KeptBeside {
    // Without its memory the guard begins anew, which is safe; it fails only where memory is short.
    let memory = postcard::to_allocvec(&guard.memory()).unwrap_or_default();
    KeptBeside { position: known.get(), bookmark, memory }
}

/// Inferred rows that a record of the journal may have. More are written with the next state.
const JOURNAL_ROWS_MAX: usize = 10_000;

/// Rows of the guard's memory up to which it is written with each change: some 100 KiB. Beyond it a state is written.
const JOURNAL_MEMORY_MAX: usize = 1_000;

/// Views that are not in force any more, but that an engine may still be looking at.
///
/// Kept until this holds the last handle, so that no engine ever spends its time on freeing a large
/// snapshot.
#[derive(Default)]
struct Retired {
    views: VecDeque<Arc<View>>,
}

impl Retired {
    fn push(&mut self, view: Arc<View>) {
        if self.views.len() == RETIRED_MAX {
            self.views.pop_front();
        }
        self.views.push_back(view);
    }

    fn reclaim(&mut self) {
        if self.views.is_empty() {
            return;
        }
        // The root gives its handle back once every engine has turned; this is what looks whether they have.
        epoch::pin().flush();
        self.views.retain(|view| Arc::strong_count(view) > 1);
    }
}

/// Retired views that are kept. Engines look at a view for one turn, well under a refresh, so that more
/// than two or three mean a stuck engine; then the oldest are left to it, to keep memory bounded.
const RETIRED_MAX: usize = 64;
