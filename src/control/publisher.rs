//! Puts views in force, and frees those that were.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam::epoch;

use crate::authz::{Authority, Change, Generation, Revocations, Snapshot, View};
use crate::store::{Quarantined, RowKey, Rows};

/// The only writer of an [`Authority`].
pub(super) struct Publisher {
    authority: Arc<Authority>,
    on_publish: Box<dyn Fn() + Send>,
    current: Arc<View>,
    retired: Retired,
}

impl Publisher {
    /// Publishes `rows` as generation 1.
    pub(super) fn start(authority: Arc<Authority>, on_publish: Box<dyn Fn() + Send>, rows: Rows) -> Self {
        let none = Revocations::default();
        let revocations = Arc::new(none.with(&ends(&rows)).unwrap_or(none));
        let Rows { credentials, grants, devices, .. } = rows;
        let snapshot = Arc::new(Snapshot::build(Generation(1), credentials, grants, devices));
        let current = Arc::new(View { snapshot, revocations });
        authority.publish(Arc::clone(&current));
        on_publish();
        Self { authority, on_publish, current, retired: Retired::default() }
    }

    /// Publishes a full read. What it says has ended, ends first, whatever comes of the rest.
    pub(super) fn take_rows(&mut self, rows: Rows, quarantined: &[Quarantined]) {
        self.end(&ends(&rows));
        let candidate = self.candidate(rows, quarantined);
        self.publish_snapshot(candidate);
    }

    /// Publishes changes, what has ended first: applying a long list takes its time.
    pub(super) fn take_changes(&mut self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        self.end(changes);
        let candidate = self.current.snapshot.apply(self.next_generation(), changes);
        self.publish_snapshot(candidate);
    }

    /// Frees the views that no engine looks at any more, on this thread. To be called from time to time.
    pub(super) fn reclaim(&mut self) {
        self.retired.reclaim();
    }

    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.current.snapshot
    }

    /// A snapshot of `rows`, and of the last good version of each row that is quarantined.
    fn candidate(&self, rows: Rows, quarantined: &[Quarantined]) -> Snapshot {
        let Rows { credentials, grants, devices, .. } = rows;
        let old = &self.current.snapshot;
        // First, so that a good row that claims the same uuid or key wins.
        let credentials = carried(quarantined, |key| match key {
            RowKey::Credential(key) => old.credential(key),
            _ => None,
        })
        .chain(credentials);
        let grants = carried(quarantined, |key| match key {
            RowKey::Grant(id) => old.grant(*id),
            _ => None,
        })
        .chain(grants);
        let devices = carried(quarantined, |key| match key {
            RowKey::Device(id) => old.device(*id),
            _ => None,
        })
        .chain(devices);
        Snapshot::build(self.next_generation(), credentials.collect(), grants.collect(), devices.collect())
    }

    fn end(&mut self, changes: &[Change]) {
        if let Some(revocations) = self.current.revocations.with(changes) {
            let snapshot = Arc::clone(&self.current.snapshot);
            self.publish(View { snapshot, revocations: Arc::new(revocations) });
        }
    }

    fn publish_snapshot(&mut self, snapshot: Snapshot) {
        let revocations = Arc::clone(&self.current.revocations);
        self.publish(View { snapshot: Arc::new(snapshot), revocations });
    }

    fn publish(&mut self, view: View) {
        let view = Arc::new(view);
        self.authority.publish(Arc::clone(&view));
        self.retired.push(std::mem::replace(&mut self.current, view));
        (self.on_publish)();
    }

    fn next_generation(&self) -> Generation {
        Generation(self.current.snapshot.generation().0 + 1)
    }
}

/// What `rows` explicitly say has ended.
fn ends(rows: &Rows) -> Vec<Change> {
    let credentials = rows.credentials.iter().filter(|row| row.revoked).copied().map(Change::Credential);
    let grants = rows.grants.iter().filter(|row| row.revoked).copied().map(Change::Grant);
    rows.ended.iter().cloned().chain(credentials).chain(grants).collect()
}

fn carried<T>(
    quarantined: &[Quarantined],
    last_good: impl Fn(&RowKey) -> Option<T>,
) -> impl Iterator<Item = T> {
    quarantined.iter().filter_map(move |row| last_good(&row.key))
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
