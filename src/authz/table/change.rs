//! How a table changes: many rows at once, and each shard that they touch is put together anew.

use std::sync::Arc;

use super::shard::{Digested, Shard};
use super::{BRANCH_SHARDS, BucketPlace, KeyDigest, Row, SHARD_ROWS_MAX, SHARDS_MAX, Table};

impl<R: Row> Table<R> {
    /// Puts `new` in, each in the place of the version of it that is there, and takes out what `goes`.
    /// Where `new` has two versions of a row, the later one counts.
    ///
    /// What may have to go is found by the digests in `suspects`. Returns the rows that the table does not
    /// have any more.
    pub(in super::super) fn replace(
        &mut self,
        new: Vec<R>,
        mut suspects: Vec<KeyDigest>,
        goes: impl Fn(&R) -> bool,
    ) -> Vec<R> {
        // Asked first, so that a row that is not there costs no copy.
        suspects.sort_unstable();
        suspects.dedup();
        suspects.retain(|digest| self.bucket(*digest).iter().any(&goes));
        let new = self.in_order(new);
        let rows_put = new.len();

        let digests = new.iter().map(|new| new.digest).chain(suspects.iter().copied());
        let mut touched: Vec<_> =
            digests.map(|digest| BucketPlace::of(digest, self.shards).number()).collect();
        touched.sort_unstable();
        touched.dedup();

        let goes = |row: &R| !suspects.is_empty() && goes(row);
        let mut removed = Vec::new();
        let mut merged = Vec::new();
        let mut new = new.into_iter().peekable();
        for number in touched {
            for row in self.shard(number).rows() {
                let old = Digested { digest: self.digest(row.key()), row: row.clone() };
                while let Some(before) = new.next_if(|new| new.cmp(&old).is_lt()) {
                    merged.push(before);
                }
                if goes(row) || new.peek().is_some_and(|new| new.cmp(&old).is_eq()) {
                    removed.push(old.row);
                } else {
                    merged.push(old);
                }
            }
            let shards = self.shards;
            while let Some(after) = new.next_if(|new| BucketPlace::of(new.digest, shards).number() == number)
            {
                merged.push(after);
            }
            *self.shard_mut(number) = Shard::new(&mut merged, shards);
        }
        self.len = self.len + rows_put - removed.len();
        self.grow_if_crowded();
        removed
    }

    /// Sorts `rows` as they will lie, without versions that a later one supersedes.
    fn in_order(&self, rows: Vec<R>) -> Vec<Digested<R>> {
        let mut rows: Vec<_> =
            rows.into_iter().map(|row| Digested { digest: self.digest(row.key()), row }).collect();
        // Stable: the later version stays the later one.
        rows.sort_by(Digested::cmp);
        rows.dedup_by(|later, kept| {
            let supersedes = later.cmp(kept).is_eq();
            if supersedes {
                std::mem::swap(later, kept);
            }
            supersedes
        });
        rows
    }

    fn shard(&self, number: usize) -> &Shard<R> {
        &self.branches[number / BRANCH_SHARDS][number % BRANCH_SHARDS]
    }

    /// The way to the shard is copied first where another table shares it.
    fn shard_mut(&mut self, number: usize) -> &mut Shard<R> {
        let branches = Arc::make_mut(&mut self.branches);
        let branch = Arc::make_mut(&mut branches[number / BRANCH_SHARDS]);
        &mut branch[number % BRANCH_SHARDS]
    }

    /// Lays the table out anew, with room to double, once changes have made its shards too large to copy
    /// cheaply.
    fn grow_if_crowded(&mut self) {
        if self.len <= self.shards as usize * SHARD_ROWS_MAX || self.shards as usize == SHARDS_MAX {
            return;
        }
        let mut grown = Self::sized_for(self.len, self.hasher.clone());
        for branch in &*self.branches {
            let rows = branch.iter().flat_map(Shard::rows).cloned().collect();
            grown.replace(rows, Vec::new(), |_| false);
        }
        *self = grown;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use proptest::prelude::*;

    use super::super::KeyHasher;
    use super::*;

    /// Found by `key`; `rank` distinguishes rows that share it, `version` is what the row says.
    #[derive(Clone, Debug, PartialEq)]
    struct Versioned {
        key: u32,
        rank: u32,
        version: u32,
    }

    impl Row for Versioned {
        type Key = u32;
        type Rank = u32;

        fn key(&self) -> u32 {
            self.key
        }

        fn rank(&self) -> u32 {
            self.rank
        }
    }

    fn row(key: u32, rank: u32, version: u32) -> Versioned {
        Versioned { key, rank, version }
    }

    fn put(table: &mut Table<Versioned>, rows: Vec<Versioned>) -> Vec<Versioned> {
        table.replace(rows, Vec::new(), |_| false)
    }

    fn take(table: &mut Table<Versioned>, keys: &[u32], goes: impl Fn(&Versioned) -> bool) -> Vec<Versioned> {
        let suspects = keys.iter().map(|key| table.digest(*key)).collect();
        table.replace(Vec::new(), suspects, goes)
    }

    fn versions(table: &Table<Versioned>, key: u32) -> Vec<u32> {
        table.rows(key).map(|row| row.version).collect()
    }

    fn filled(keys: u32) -> Table<Versioned> {
        let mut table = Table::sized_for(keys as usize, KeyHasher::default());
        put(&mut table, (0..keys).map(|key| row(key, 0, 0)).collect());
        table
    }

    fn shards(table: &Table<Versioned>) -> Vec<Shard<Versioned>> {
        table.branches.iter().flat_map(|branch| branch.iter()).cloned().collect()
    }

    #[test]
    fn rows_that_share_a_key_lie_by_rank_and_the_last_version_of_each_counts() {
        let mut table = Table::default();
        put(&mut table, vec![row(1, 2, 20), row(1, 1, 10), row(1, 2, 21)]);
        assert_eq!(versions(&table, 1), [10, 21]);
        assert_eq!(put(&mut table, vec![row(1, 2, 22), row(1, 3, 30)]), [row(1, 2, 21)]);
        assert_eq!((versions(&table, 1), table.len()), (vec![10, 22, 30], 3));
        assert_eq!(take(&mut table, &[1], |row| row.rank == 1), [row(1, 1, 10)]);
        assert_eq!((versions(&table, 1), table.len()), (vec![22, 30], 2));
    }

    #[test]
    fn a_change_to_a_clone_leaves_the_original_and_shares_all_but_the_shards_that_it_touches() {
        let old = filled(100_000);
        let mut new = old.clone();
        put(&mut new, vec![row(7, 0, 1)]);
        take(&mut new, &[8], |row| row.key == 8);
        assert_eq!((versions(&old, 7), versions(&new, 7)), (vec![0], vec![1]));
        assert_eq!((versions(&old, 8), versions(&new, 8)), (vec![0], vec![]));
        let pairs = || shards(&old).into_iter().zip(shards(&new));
        let copied = pairs().filter(|(old, new)| !old.shares_rows_with(new)).count();
        assert!((1..=2).contains(&copied), "{copied} shards were copied for two changes");
        let branches = old.branches.iter().zip(&*new.branches);
        let copied = branches.filter(|(old, new)| !Arc::ptr_eq(old, new)).count();
        assert!((1..=2).contains(&copied), "{copied} branches were copied for two changes");
    }

    #[test]
    fn taking_what_is_not_there_copies_nothing() {
        let old = filled(1_000);
        let mut new = old.clone();
        assert_eq!(take(&mut new, &[5_000], |row| row.key == 5_000), []);
        assert!(Arc::ptr_eq(&old.branches, &new.branches));
    }

    #[test]
    fn a_table_that_grows_by_changes_keeps_its_rows_and_its_shape() {
        let mut table = Table::default();
        for start in (0..50_000).step_by(1_000) {
            put(&mut table, (start..start + 1_000).map(|key| row(key, 0, key)).collect());
        }
        assert!((0..50_000).all(|key| versions(&table, key) == [key]));
        assert_eq!((table.len(), table.iter().count()), (50_000, 50_000));
        let largest = shards(&table).iter().map(|shard| shard.rows().len()).max();
        assert!(largest <= Some(2 * SHARD_ROWS_MAX), "{largest:?}");
    }

    #[test]
    fn keys_in_sequence_are_spread_over_buckets() {
        let table = filled(100_000);
        let crowded = (0..100_000).filter(|key| table.bucket(table.digest(*key)).len() > 12).count();
        assert!(crowded < 100, "{crowded} of 100,000 rows lie in buckets of more than 12");
    }

    #[test]
    fn a_key_with_a_hundred_thousand_rows_is_filled_and_emptied_in_linear_time() {
        let mut table = filled(1_000);
        put(&mut table, (0..100_000).map(|rank| row(7, rank + 1, rank)).collect());
        assert_eq!(table.rows(7).count(), 100_001);
        assert!(table.rows(7).is_sorted_by_key(|row| row.rank));
        assert!((0..1_000).filter(|key| *key != 7).all(|key| versions(&table, key) == [0]));
        assert!((1_000..2_000).all(|key| versions(&table, key).is_empty()));
        let even = take(&mut table, &[7], |row| row.key == 7 && row.rank % 2 == 0);
        assert_eq!((even.len(), table.rows(7).count()), (50_001, 50_000));
    }

    #[derive(Clone, Debug)]
    struct Step {
        puts: Vec<(u32, u32)>,
        takes: Vec<u32>,
    }

    fn step() -> impl Strategy<Value = Step> {
        // Few keys crowd buckets, many make the table grow, and with many ranks one key crowds a bucket.
        let key = prop_oneof![0..8_u32, 0..5_000_u32];
        let row = prop_oneof![3 => (key.clone(), 0..3_u32), 1 => (0..4_u32, 0..1_000_u32)];
        let puts = prop::collection::vec(row, 0..600);
        let takes = prop::collection::vec(key, 0..200);
        (puts, takes).prop_map(|(puts, takes)| Step { puts, takes })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_table_holds_what_a_map_would(steps in prop::collection::vec(step(), 0..8)) {
            let mut table = Table::default();
            let mut map = BTreeMap::new();
            let mut earlier = Vec::new();
            for (version, step) in (0..).zip(&steps) {
                let takes: HashSet<u32> = step.takes.iter().copied().collect();
                let suspects = step.takes.iter().map(|key| table.digest(*key)).collect();
                let puts = step.puts.iter().map(|(key, rank)| row(*key, *rank, version)).collect();
                let mut removed: Vec<_> = table
                    .replace(puts, suspects, |row| takes.contains(&row.key))
                    .iter()
                    .map(|row| (row.key, row.rank))
                    .collect();
                removed.sort_unstable();

                let before = map.clone();
                map.retain(|(key, _), _| !takes.contains(key));
                let gone = before.keys().filter(|identity| {
                    !map.contains_key(identity) || step.puts.contains(identity)
                });
                prop_assert_eq!(removed, gone.copied().collect::<Vec<_>>());
                map.extend(step.puts.iter().map(|identity| (*identity, version)));
                earlier.push((table.clone(), map.clone()));
            }
            // What was there once is as it was, whatever was built upon it.
            for (table, map) in earlier {
                prop_assert_eq!(table.len(), map.len());
                for key in (0..8).chain((8..5_000).step_by(7)) {
                    let rows: Vec<_> = table.rows(key).map(|row| (row.rank, row.version)).collect();
                    let expected: Vec<_> =
                        map.range((key, 0)..(key + 1, 0)).map(|((_, rank), v)| (*rank, *v)).collect();
                    prop_assert_eq!(rows, expected);
                }
            }
        }
    }
}
