//! Relation `ended`: rows that a schema of the operator's own recorded as ended, and which of them are new.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use super::changed_key::EndedEntry;
use super::{Quarantined, Word};
use crate::authz::UnixMillis;

/// The rows of one read of the relation.
#[derive(Default)]
pub(super) struct EndedRows {
    pub(super) entries: Vec<EndedEntry>,
    pub(super) quarantined: Vec<Quarantined>,
}

impl EndedRows {
    pub(super) fn add(&mut self, row: Result<EndedEntry, Quarantined>) {
        match row {
            Ok(entry) => self.entries.push(entry),
            Err(bad) => self.quarantined.push(bad),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() + self.quarantined.len()
    }
}

/// The ends of the last read, so that each gives one word.
pub(super) struct EndedLog {
    /// Hashes of the rows that the last read gave.
    seen: HashSet<u64>,
    hasher: RandomState,
    /// Time of the newest end that was read.
    newest: Option<UnixMillis>,
    /// Time up to which an earlier process has read. Its ends give no word again.
    resumed: Option<UnixMillis>,
}

impl EndedLog {
    pub(super) fn new() -> Self {
        Self { seen: HashSet::new(), hasher: RandomState::new(), newest: None, resumed: None }
    }

    /// Continues after a process that has read up to `newest`.
    pub(super) fn resume(&mut self, newest: Option<UnixMillis>) {
        *self = Self { newest, resumed: newest, ..Self::new() };
    }

    /// Time of the newest end that was read, to be kept for [`EndedLog::resume`].
    pub(super) const fn newest(&self) -> Option<UnixMillis> {
        self.newest
    }

    /// The words for those of `rows` that the last read did not give, in the order of their times, and the rows that
    /// do not decode and are new.
    pub(super) fn record(&mut self, rows: EndedRows) -> (Vec<Word>, Vec<Quarantined>) {
        let EndedRows { mut entries, mut quarantined } = rows;
        let entry_hash = |entry: &EndedEntry| self.hasher.hash_one(entry);
        let bad_hash = |bad: &Quarantined| self.hasher.hash_one(bad);
        let seen = entries.iter().map(entry_hash).chain(quarantined.iter().map(bad_hash)).collect();
        let known_until = self.resumed.take().map(|time| UnixMillis(time.0.saturating_sub(OVERLAP_MS)));
        entries.retain(|entry| {
            !self.seen.contains(&entry_hash(entry)) && known_until.is_none_or(|known| entry.ended_at > known)
        });
        quarantined.retain(|bad| !self.seen.contains(&bad_hash(bad)));
        self.seen = seen;
        entries.sort_by_key(|entry| entry.ended_at);
        self.newest = self.newest.max(entries.last().map(|entry| entry.ended_at));
        (entries.iter().map(|entry| entry.key.ended()).collect(), quarantined)
    }
}

/// Rows of relation `ended` that one read may give. A query that gives more should leave old ends out.
pub(super) const ENDED_ROWS_MAX: usize = 1_000_000;

/// Time before the newest end that an earlier process has read, whose ends give words again after a restart, since
/// transactions can commit later than the times that they wrote.
const OVERLAP_MS: i64 = 3600 * 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{GrantId, PrincipalId};
    use crate::store::changed_key::ChangedKey;
    use crate::store::{Relation, RowKey};

    fn rows(ends: &[(i64, i64)]) -> EndedRows {
        let entry =
            |&(id, time)| EndedEntry { key: ChangedKey::Grant(GrantId(id)), ended_at: UnixMillis(time) };
        EndedRows { entries: ends.iter().map(entry).collect(), quarantined: Vec::new() }
    }

    fn ended(ids: &[i64]) -> Vec<Word> {
        ids.iter().map(|&id| Word::Ended(RowKey::Grant(GrantId(id)))).collect()
    }

    #[test]
    fn each_end_gives_one_word_in_the_order_of_their_times() {
        let mut log = EndedLog::new();
        assert_eq!(log.record(rows(&[(2, 20), (1, 10)])).0, ended(&[1, 2]));
        assert_eq!(log.record(rows(&[(2, 20), (1, 10)])).0, []);
        assert_eq!(log.record(rows(&[(2, 20), (1, 10), (3, 5)])).0, ended(&[3]), "committed late");
        assert_eq!(log.record(rows(&[(3, 5), (1, 30)])).0, ended(&[1]), "ended a second time");
        assert_eq!(log.newest(), Some(UnixMillis(30)));
    }

    #[test]
    fn a_principals_end_is_its_own_word() {
        let entry = EndedEntry { key: ChangedKey::Principal(PrincipalId(4)), ended_at: UnixMillis(1) };
        let rows = EndedRows { entries: vec![entry], ..EndedRows::default() };
        assert_eq!(EndedLog::new().record(rows).0, [Word::PrincipalEnded(PrincipalId(4))]);
    }

    #[test]
    fn after_a_restart_only_ends_near_the_last_one_and_later_give_words_again() {
        let mut log = EndedLog::new();
        log.record(rows(&[(1, 0), (2, OVERLAP_MS + 5)]));
        let mut resumed = EndedLog::new();
        resumed.resume(log.newest());
        let all = [(1, 0), (2, OVERLAP_MS + 5), (3, 6), (4, 2 * OVERLAP_MS)];
        assert_eq!(resumed.record(rows(&all)).0, ended(&[3, 2, 4]));
        assert_eq!(resumed.record(rows(&all)).0, []);
    }

    #[test]
    fn a_row_that_does_not_decode_is_quarantined_once() {
        let mut log = EndedLog::new();
        let bad = || {
            let key = RowKey::Unreadable { relation: Relation::Grants, key: "in relation ended".to_owned() };
            EndedRows {
                quarantined: vec![Quarantined { key, reason: "bad".to_owned() }],
                ..EndedRows::default()
            }
        };
        assert_eq!(log.record(bad()).1.len(), 1);
        assert_eq!(log.record(bad()).1.len(), 0);
    }
}
