//! A persistent hash table: a changed copy shares every shard that the change did not touch.
//!
//! Rows lie in shards by the hash of their key, shards hang from branches, branches from a root. Cloning
//! a table copies the root's pointer alone; the first change to a clone copies the root, one branch and
//! one shard. Several rows may share a key, and the caller picks among them, so that the last word on a
//! secret is a comparison in constant time, and a principal may hold several grants on one device.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};

/// What a table holds.
pub(super) trait Row: Clone {
    /// What it is found by.
    type Key: Copy + Eq + Hash;

    fn key(&self) -> Self::Key;
}

/// See the module.
#[derive(Clone)]
pub(super) struct Table<R> {
    branches: Arc<[Branch<R>]>,
    /// Shards on all branches together, less one; their number is a power of two.
    shard_mask: usize,
    len: usize,
    /// Seeded at random: some keys are chosen by those whom the rows are about.
    hasher: DefaultHashBuilder,
}

/// [`BRANCH_SHARDS`] shards, or all of them where a table has fewer.
type Branch<R> = Arc<[Arc<HashTable<R>>]>;

impl<R: Row> Table<R> {
    /// An empty table that takes `rows` without being laid out anew.
    pub(super) fn sized_for(rows: usize) -> Self {
        let shards = rows.div_ceil(SHARD_ROWS_BUILT).next_power_of_two();
        // All shards are one until they are written to.
        let branch: Branch<R> = vec![Arc::default(); shards.min(BRANCH_SHARDS)].into();
        Self {
            branches: vec![branch; shards.div_ceil(BRANCH_SHARDS)].into(),
            shard_mask: shards - 1,
            len: 0,
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// Adds `row` in the place of the one with its key that `same` accepts, or beside all others.
    pub(super) fn put(&mut self, row: R, same: impl FnMut(&R) -> bool) {
        let hash = self.hasher.hash_one(row.key());
        let hasher = self.hasher.clone();
        let mut same = same;
        let key = row.key();
        let shard = self.shard_mut(hash);
        match shard.find_mut(hash, |other| other.key() == key && same(other)) {
            Some(place) => *place = row,
            None => {
                shard.insert_unique(hash, row, |other| hasher.hash_one(other.key()));
                self.len += 1;
                self.grow_if_crowded();
            }
        }
    }

    /// Removes and returns the row with `key` that `which` accepts.
    pub(super) fn take(&mut self, key: R::Key, mut which: impl FnMut(&R) -> bool) -> Option<R> {
        // Asked first, so that a row that is not there costs no copy.
        self.rows(key).find(|row| which(row))?;
        let hash = self.hasher.hash_one(key);
        let entry = self.shard_mut(hash).find_entry(hash, |row| row.key() == key && which(row)).ok()?;
        let (row, _) = entry.remove();
        self.len -= 1;
        Some(row)
    }

    /// Every row with `key`, in no order.
    pub(super) fn rows(&self, key: R::Key) -> impl Iterator<Item = &R> {
        let hash = self.hasher.hash_one(key);
        let (branch, shard) = self.place(hash);
        self.branches[branch][shard].iter_hash(hash).filter(move |row| row.key() == key)
    }

    /// Every row, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &R> {
        self.branches.iter().flat_map(|branch| branch.iter()).flat_map(|shard| shard.iter())
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The shard of `hash`, copied first where another table has it too.
    fn shard_mut(&mut self, hash: u64) -> &mut HashTable<R> {
        let (branch, shard) = self.place(hash);
        let branches = Arc::make_mut(&mut self.branches);
        let shards = Arc::make_mut(&mut branches[branch]);
        Arc::make_mut(&mut shards[shard])
    }

    /// Branch, and shard on it. The shards' own tables use the lowest and the highest bits of the hash.
    fn place(&self, hash: u64) -> (usize, usize) {
        let shard = (hash >> 32) as usize & self.shard_mask;
        (shard / BRANCH_SHARDS, shard % BRANCH_SHARDS)
    }

    /// Lays the table out anew, with room to double, once changes have made its shards too large to copy
    /// cheaply.
    fn grow_if_crowded(&mut self) {
        if self.len <= (self.shard_mask + 1) * SHARD_ROWS_MAX {
            return;
        }
        let mut grown = Self::sized_for(self.len);
        for row in self.iter() {
            grown.put(row.clone(), |_| false);
        }
        *self = grown;
    }
}

impl<R: Row> Default for Table<R> {
    fn default() -> Self {
        Self::sized_for(0)
    }
}

/// Rows that a shard holds on average when a table is built, at most.
const SHARD_ROWS_BUILT: usize = 128;

/// Rows that a shard may hold on average. A change copies a shard whole: 256 rows of 64 bytes are 16 KiB,
/// a microsecond or two.
const SHARD_ROWS_MAX: usize = 256;

/// Shards on a branch. At 10 million rows the root has about a thousand branches, so that no change
/// copies more than some ten KiB of pointers.
const BRANCH_SHARDS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Pair(u64, &'static str);

    impl Row for Pair {
        type Key = u64;

        fn key(&self) -> u64 {
            self.0
        }
    }

    fn values(table: &Table<Pair>, key: u64) -> Vec<&'static str> {
        let mut values: Vec<_> = table.rows(key).map(|row| row.1).collect();
        values.sort_unstable();
        values
    }

    fn filled(rows: u64) -> Table<Pair> {
        let mut table = Table::default();
        for key in 0..rows {
            table.put(Pair(key, "old"), |_| true);
        }
        table
    }

    #[test]
    fn a_row_takes_the_place_of_the_one_it_is_told_to_and_no_other() {
        let mut table = Table::default();
        table.put(Pair(1, "a"), |row| row.1 == "a");
        table.put(Pair(1, "b"), |row| row.1 == "b");
        table.put(Pair(1, "b"), |row| row.1 == "b");
        assert_eq!((values(&table, 1), table.len()), (vec!["a", "b"], 2));
        assert_eq!(table.take(1, |row| row.1 == "a"), Some(Pair(1, "a")));
        assert_eq!(table.take(1, |row| row.1 == "a"), None);
        assert_eq!((values(&table, 1), table.len()), (vec!["b"], 1));
    }

    #[test]
    fn a_table_that_grows_by_changes_keeps_its_rows_and_its_shape() {
        let mut table = filled(50_000);
        (0..50_000).for_each(|key| table.put(Pair(key, "twin"), |_| false));
        assert_eq!(table.len(), 100_000);
        assert!((0..50_000).all(|key| values(&table, key) == ["old", "twin"]));
        let largest = table.branches.iter().flat_map(|b| b.iter()).map(|shard| shard.len()).max();
        assert!(largest <= Some(2 * SHARD_ROWS_MAX), "{largest:?}");
    }

    #[test]
    fn a_change_to_a_clone_leaves_the_original_and_shares_all_but_one_shard() {
        let old = filled(100_000);
        let mut new = old.clone();
        new.put(Pair(7, "new"), |_| true);
        new.take(8, |_| true);
        assert_eq!((values(&old, 7), values(&new, 7)), (vec!["old"], vec!["new"]));
        assert_eq!((values(&old, 8), values(&new, 8)), (vec!["old"], vec![]));
        let shards = |table: &Table<Pair>| {
            table.branches.iter().flat_map(|branch| branch.iter()).cloned().collect::<Vec<_>>()
        };
        let copied =
            shards(&old).iter().zip(shards(&new)).filter(|(old, new)| !Arc::ptr_eq(old, new)).count();
        assert!((1..=2).contains(&copied), "{copied} shards were copied for two changes");
        assert_eq!(old.branches.len(), new.branches.len());
    }

    #[test]
    fn taking_what_is_not_there_copies_nothing() {
        let old = filled(1_000);
        let mut new = old.clone();
        assert_eq!(new.take(5_000, |_| true), None);
        assert!(Arc::ptr_eq(&old.branches, &new.branches));
    }
}
