//! Puts views in force, and frees those that were.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crossbeam::epoch;

use super::persist::{JournalRecord, Kept, KeptBeside, Persistence};
use crate::authz::{Authority, Change, End, Generation, Revocations, Snapshot, UnixMillis, View};
use crate::store::{QueriesDigest, Relation};

/// The only writer of an [`Authority`].
pub(super) struct Publisher {
    authority: Arc<Authority>,
    on_publish: Box<dyn Fn() + Send>,
    /// `None` until a first snapshot is published.
    in_force: Option<Arc<View>>,
    revocations: Arc<Revocations>,
    /// The snapshot that refusals are compared with; see [`View::previous`].
    previous: Option<Arc<Snapshot>>,
    /// The view in force has all of them.
    is_settled: bool,
    /// Time since which the last read could have been made.
    readable_since: Instant,
    /// Time since which the oldest end that is not in force yet could be read.
    ended_at: Option<Instant>,
    retired: Retired,
    /// `None` where nothing is kept on disk.
    persistence: Option<Persistence>,
}

impl Publisher {
    pub(super) fn new(
        authority: Arc<Authority>,
        on_publish: Box<dyn Fn() + Send>,
        persistence: Option<Persistence>,
    ) -> Self {
        let (revocations, retired) = (Arc::default(), Retired::default());
        Self {
            authority,
            on_publish,
            in_force: None,
            revocations,
            previous: None,
            is_settled: true,
            readable_since: Instant::now(),
            ended_at: None,
            retired,
            persistence,
        }
    }

    /// Puts in force what was kept on disk by an earlier process, if there is anything. Returns also the relations
    /// that other queries read.
    pub(super) fn restore(&mut self) -> Option<(Arc<Snapshot>, Vec<Relation>)> {
        let kept = match self.persistence.as_mut()?.load() {
            Ok(kept) => kept?,
            Err(error) => {
                tracing::error!("{error}");
                return None;
            }
        };
        let Kept { snapshot, revocations, confirmed_at, other_queries, .. } = kept;
        let snapshot = Arc::new(snapshot);
        self.revocations = Arc::new(revocations);
        self.authority.confirm(confirmed_at);
        self.authority.lost_store();
        self.put_in_force(Arc::clone(&snapshot));
        Some((snapshot, other_queries))
    }

    /// Sets the queries that snapshots are read by from now on, for the copy on disk.
    pub(super) fn read_by(&mut self, queries: QueriesDigest) {
        if let Some(persistence) = &mut self.persistence {
            persistence.read_by(queries);
        }
    }

    /// Ends what `changes` say has ended, with the next view, which [`Publisher::settle`] sees to at the latest.
    ///
    /// Not at once: one read may end a right and give the one that takes its place, and a tunnel should not
    /// end in between.
    pub(super) fn end(&mut self, changes: &[Change]) {
        let Some(revocations) = self.revocations.with(changes) else { return };
        if let Some(persistence) = &mut self.persistence {
            let ended = self.revocations.news(changes).iter().filter_map(End::of).collect();
            persistence.record(&JournalRecord { ended, ..JournalRecord::default() });
        }
        self.revocations = Arc::new(revocations);
        self.is_settled = false;
        self.ended_at.get_or_insert(self.readable_since);
    }

    /// Records that the next rows could be read since `readable_since`.
    pub(super) fn record_readable(&mut self, readable_since: Instant) {
        self.readable_since = readable_since;
    }

    /// Puts in force what has ended and is not yet.
    pub(super) fn settle(&mut self) {
        if !self.is_settled
            && let Some(view) = &self.in_force
        {
            self.put_in_force(Arc::clone(&view.snapshot));
        }
        if let Some(persistence) = &mut self.persistence {
            persistence.sync();
        }
    }

    /// Puts `snapshot` in force, with all that has ended on top of it.
    pub(super) fn publish(&mut self, snapshot: Arc<Snapshot>) {
        self.put_in_force(snapshot);
    }

    /// Sets the snapshot that refusals are compared with from the next view on; `None` counts at once.
    pub(super) fn compare_with(&mut self, previous: Option<Arc<Snapshot>>) {
        let was_compared = std::mem::replace(&mut self.previous, previous).is_some();
        if was_compared && self.previous.is_none() {
            self.is_settled = false;
        }
    }

    /// The store has confirmed at `now` that it was heard.
    pub(super) fn confirm(&mut self, now: UnixMillis) {
        self.authority.confirm(now);
        if let Some(persistence) = &mut self.persistence {
            persistence.confirm(now);
        }
    }

    /// Frees the views that no engine looks at any more, on this thread, and keeps on disk what is in
    /// force. To be called from time to time.
    pub(super) fn tidy(&mut self) {
        // What a fault has kept back.
        self.settle();
        self.retired.reclaim();
        if let Some(persistence) = &mut self.persistence {
            persistence.turn();
            if let Some(view) = self.in_force.as_ref().filter(|_| persistence.wants_state()) {
                persistence.keep(view, KeptBeside::default());
            }
        }
    }

    /// What keeps the state from being written to disk.
    pub(super) fn state_trouble(&self) -> Option<String> {
        self.persistence.as_ref().and_then(Persistence::trouble)
    }

    pub(super) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(super) fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// The generation of the next snapshot.
    pub(super) fn next_generation(&self) -> Generation {
        Generation(self.in_force.as_ref().map_or(0, |view| view.snapshot.generation().0) + 1)
    }

    fn put_in_force(&mut self, snapshot: Arc<Snapshot>) {
        let view = Arc::new(View {
            snapshot,
            revocations: Arc::clone(&self.revocations),
            previous: self.previous.clone(),
        });
        if let Some(persistence) = &mut self.persistence {
            persistence.outdate();
        }
        if let Some(ended_at) = self.ended_at.take() {
            self.authority.record_ends(ended_at);
        }
        self.authority.publish(Arc::clone(&view));
        self.is_settled = true;
        if let Some(old) = self.in_force.replace(view) {
            self.retired.push(old);
        }
        (self.on_publish)();
    }
}

impl Drop for Publisher {
    /// Keeps the state in force, so that the next start begins with it.
    fn drop(&mut self) {
        if let (Some(persistence), Some(view)) = (&mut self.persistence, &self.in_force) {
            persistence.stop(view, KeptBeside::default());
        }
    }
}

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
