//! Rows that were gained or widened by inference and have become the baseline, as they were before.
//!
//! Their mend is free, since it takes nothing from anybody who had it before. An answer that loses rows by mistake could
//! lose these free as well: no more are remembered than one window lets in, the newest.

use std::collections::HashMap;

use super::row::AnyRow;
use crate::store::{Relation, RowKey};

/// See the module.
#[derive(Default)]
pub(super) struct AgedGains {
    rows: HashMap<RowKey, AgedGain>,
    /// Number of rows that were ever remembered, by which the newest are known.
    remembered: u64,
}

struct AgedGain {
    before: Option<AnyRow>,
    number: u64,
}

impl AgedGains {
    /// Remembers what a row was before its gain.
    pub(super) fn remember(&mut self, key: RowKey, before: Option<AnyRow>) {
        self.remembered += 1;
        self.rows.insert(key, AgedGain { before, number: self.remembered });
    }

    /// Forgets all rows of `relation` but the newest.
    pub(super) fn keep_newest(&mut self, relation: Relation, most: usize) {
        let of_relation = self.rows.iter().filter(|(key, _)| key.relation() == relation);
        let mut numbers: Vec<u64> = of_relation.map(|(_, gain)| gain.number).collect();
        let Some(surplus) = numbers.len().checked_sub(most).filter(|surplus| *surplus > 0) else { return };
        numbers.sort_unstable();
        let newest_forgotten = numbers[surplus - 1];
        self.rows.retain(|key, gain| key.relation() != relation || gain.number > newest_forgotten);
        super::shrink(&mut self.rows);
    }

    pub(super) fn forget(&mut self, key: &RowKey) {
        self.rows.remove(key);
    }

    /// Returns whether `after` is what the row was before its gain.
    pub(super) fn is_mend(&self, key: &RowKey, after: Option<&AnyRow>) -> bool {
        self.rows.get(key).is_some_and(|gain| gain.before.as_ref() == after)
    }

    /// The rows, the oldest first.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&RowKey, Option<&AnyRow>)> {
        let mut rows: Vec<(&RowKey, &AgedGain)> = self.rows.iter().collect();
        rows.sort_unstable_by_key(|(_, gain)| gain.number);
        rows.into_iter().map(|(key, gain)| (key, gain.before.as_ref()))
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{DeviceId, GrantId};

    #[test]
    fn the_newest_of_one_relation_are_kept() {
        let mut gains = AgedGains::default();
        gains.remember(RowKey::Device(DeviceId(1)), None);
        (1..=5).for_each(|id| gains.remember(RowKey::Grant(GrantId(id)), None));
        gains.keep_newest(Relation::Grants, 2);
        let kept: Vec<RowKey> = gains.rows().map(|(key, _)| key.clone()).collect();
        let expected = [RowKey::Device(DeviceId(1)), RowKey::Grant(GrantId(4)), RowKey::Grant(GrantId(5))];
        assert_eq!(kept, expected);
        assert!(!gains.is_mend(&RowKey::Grant(GrantId(3)), None));
        assert!(gains.is_mend(&RowKey::Grant(GrantId(4)), None));
    }
}
