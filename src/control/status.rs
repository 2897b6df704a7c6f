//! What the control thread is at, as far as others want to know.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::authz::{Generation, RowCounts, UnixMillis};

#[derive(Clone, Debug)]
pub struct Status {
    /// The kind and place of the store, without secrets.
    pub store: String,
    /// Of the snapshot in force.
    pub generation: Generation,
    /// In the snapshot in force.
    pub rows: RowCounts,
    /// When the store last said that the snapshot is current.
    pub confirmed_at: UnixMillis,
    /// Why the store cannot be read now; `None` while it can.
    pub last_error: Option<String>,
    /// Rows that do not decode now; their last good versions are in force.
    pub quarantined: usize,
}

/// A way to the newest status, from any thread. Cheap to clone.
#[derive(Clone)]
pub struct StatusHandle {
    status: Arc<Mutex<Status>>,
}

impl StatusHandle {
    pub(super) fn new(status: Status) -> Self {
        Self { status: Arc::new(Mutex::new(status)) }
    }

    pub(super) fn update(&self, update: impl FnOnce(&mut Status)) {
        update(&mut self.status.lock());
    }

    pub fn get(&self) -> Status {
        self.status.lock().clone()
    }
}
