//! What the control thread is at, as far as others want to know.

use std::sync::Arc;

use parking_lot::Mutex;

use super::api;
use crate::authz::{Generation, RowCounts, UnixMillis};
use crate::store::StoreWarnings;

#[derive(Clone, Debug, Default)]
pub struct ControlStatus {
    /// The kind and place of the store, without secrets.
    pub store: String,
    /// Generation in force; `None` while there is none.
    pub generation: Option<Generation>,
    /// Rows of the snapshot in force.
    pub rows: RowCounts,
    /// Time when the store last confirmed that the snapshot is current.
    pub confirmed_at: UnixMillis,
    /// Error of the last read; `None` while the store can be read.
    pub last_error: Option<String>,
    /// What keeps the node's state from being written to `authz.state`, and what to do; `None` while it is.
    pub state_trouble: Option<String>,
    /// Reads so far that failed.
    pub store_errors: u64,
    /// Rows that do not decode now; their last good versions are in force.
    pub quarantined: usize,
    /// Everything that is held now.
    pub held: Vec<api::HoldStatus>,
    /// Holds so far, by rule, in the order of [`api::Rule::ALL`].
    pub hold_counts: [u64; api::Rule::ALL.len()],
    /// Mass changes that an operator has announced.
    pub expectations: Vec<api::Expectation>,
    /// Reading of each relation.
    pub relations: Vec<api::RelationStatus>,
    /// Budgets of which something is used.
    pub budgets: Vec<api::BudgetUse>,
    /// Devices that are not dialled because it cannot be decided whose their address is.
    pub disputed_devices: usize,
    /// Reason why the state on disk is older than what is in force; `None` where it is not.
    pub state_unsaved: Option<String>,
    /// Rows that one read did not give, and that stay until a second does not either.
    pub absences_waiting: usize,
    /// Rows that ended so.
    pub absences_honoured: u64,
    /// Refusals are being compared with what decided before.
    pub on_probation: bool,
    /// Refusals so far that the generation before would not have given.
    pub regressions: u64,
    /// Times that the node went back to a generation before, by itself or by a person's word.
    pub rollbacks: u64,
    /// Full reads so far.
    pub reads_of_everything: u64,
    /// Addresses come from this node's own tables alone, and no table has given any since the start.
    pub lacks_addresses: bool,
    /// Rows and lines of the store and of the address sources that are not understood.
    pub warnings: StoreWarnings,
}

/// A way to the newest status, from any thread. Cheap to clone.
#[derive(Clone)]
pub struct StatusHandle {
    status: Arc<Mutex<ControlStatus>>,
}

impl StatusHandle {
    pub(super) fn new(status: ControlStatus) -> Self {
        Self { status: Arc::new(Mutex::new(status)) }
    }

    pub(super) fn update(&self, update: impl FnOnce(&mut ControlStatus)) {
        update(&mut self.status.lock());
    }

    pub fn get(&self) -> ControlStatus {
        self.status.lock().clone()
    }
}
