//! Rows in which the store's newest answer differs from what is in force, by relation.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::row::AnyRow;
use crate::authz::UnixMillis;
use crate::control::api::{ChangeKind, Rule};
use crate::store::{Position, Quarantined, RowKey};

/// The newest answer about one relation.
#[derive(Default)]
pub(in crate::control) struct RelationState {
    /// Rows that differ and were not applied.
    pub(in crate::control) pending: HashMap<RowKey, PendingRow>,
    /// Kinds of which more rows differ than are kept.
    pub(in crate::control) overflow: BTreeMap<ChangeKind, Overflow>,
    /// Answers so far that were believed.
    pub(in crate::control) reads: u64,
    pub(in crate::control) read_at: Option<UnixMillis>,
    pub(in crate::control) position: Option<Position>,
    /// Rows of the last answer, with those that did not decode.
    pub(in crate::control) rows: usize,
    /// Rows that do not decode; their last good versions stay.
    pub(in crate::control) bad: HashSet<RowKey>,
    pub(in crate::control) bad_examples: Vec<Quarantined>,
    /// Why the whole relation waits, but for mends.
    pub(in crate::control) relation_hold: Option<RelationHold>,
}

/// A row that differs.
#[derive(Clone, Debug)]
pub(in crate::control) struct PendingRow {
    pub(in crate::control) after: Option<AnyRow>,
    /// Kind of the change from the baseline; `None` for a mend, and for what changes no decision.
    pub(in crate::control) kind: Option<ChangeKind>,
    pub(in crate::control) since: UnixMillis,
    /// Number of the answer that showed the change first.
    pub(in crate::control) first_read: u64,
    /// `None` where the row only waits for a second answer.
    pub(in crate::control) held: Option<Rule>,
}

/// Rows of one kind that are too many to keep. They are counted anew with each answer.
#[derive(Clone, Debug)]
pub(in crate::control) struct Overflow {
    pub(in crate::control) rows: usize,
    pub(in crate::control) digest: u128,
    pub(in crate::control) examples: Vec<String>,
    pub(in crate::control) since: UnixMillis,
}

/// Reason that keeps all changes of a relation back.
#[derive(Clone, Debug)]
pub(in crate::control) struct RelationHold {
    pub(in crate::control) rule: Rule,
    pub(in crate::control) figures: String,
    pub(in crate::control) examples: Vec<String>,
    pub(in crate::control) since: UnixMillis,
}

impl RelationState {
    pub(in crate::control) fn is_held(&self, kind: ChangeKind) -> bool {
        self.overflow.contains_key(&kind)
            || self.pending.values().any(|row| row.kind == Some(kind) && row.held.is_some())
    }
}

/// Differing rows of one kind that are kept one by one. Held rows beyond are read again when they are accepted.
pub(in crate::control) const PENDING_ROWS_MAX: usize = 100_000;
