//! A persistent hash table: a changed copy shares every shard that the change did not touch.
//!
//! Rows lie in the order of their hashes, cut into shards that are dense and never written to again. The
//! entry of a shard in the directory says where in it each bucket begins, so that a lookup waits for one
//! entry, which the cache mostly has, and then for the rows themselves: no probing, no tags, no free slots.
//! Shards hang from branches, branches from a root. Several rows may share a key.

mod change;
mod shard;

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use hashbrown::DefaultHashBuilder;
use shard::Shard;

use crate::sys::memory;

/// A row of a table.
pub(super) trait Row: Clone {
    /// The key that the row is found by.
    type Key: Copy + Ord + Hash;
    /// Orders rows that share a key, the one to be looked at first before the others. Where keys and ranks
    /// are equal, one row is a version of the other.
    type Rank: Ord;

    fn key(&self) -> Self::Key;

    fn rank(&self) -> Self::Rank;
}

/// The upper half of a key's hash. Rows keep none: it takes less time to hash a shard's keys again than
/// to read hashes from memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct KeyDigest(u32);

/// Turns keys into digests. Seeded at random: some keys are chosen by those whom the rows are about.
#[derive(Clone, Default)]
pub(super) struct KeyHasher(DefaultHashBuilder);

impl KeyHasher {
    #[inline]
    pub(super) fn digest(&self, key: impl Hash) -> KeyDigest {
        KeyDigest((stirred(self.0.hash_one(key)) >> 32) as u32)
    }
}

/// The hasher multiplies once. With some seeds of a process, hashes of numbers in sequence lie in a grid, and
/// half of all rows in buckets of dozens; folding another product breaks it up.
#[inline]
fn stirred(hash: u64) -> u64 {
    let product = u128::from(hash) * u128::from(GOLDEN_RATIO);
    (product >> 64) as u64 ^ product as u64
}

/// Its fraction, in 64 bits.
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

/// See the module.
#[derive(Clone)]
pub(super) struct Table<R> {
    branches: Arc<[Branch<R>]>,
    /// Number of shards on all branches, without those that only fill up the last one.
    shards: u32,
    len: usize,
    hasher: KeyHasher,
}

/// Branches of a fixed length, so that the root is an array of plain pointers.
type Branch<R> = Arc<[Shard<R>; BRANCH_SHARDS]>;

impl<R: Row> Table<R> {
    /// An empty table that takes `rows` without being laid out anew.
    pub(super) fn sized_for(rows: usize, hasher: KeyHasher) -> Self {
        let shards = rows.div_ceil(SHARD_ROWS).clamp(1, SHARDS_MAX);
        // All branches are one until they are written to.
        let branch: Branch<R> = Arc::new(std::array::from_fn(|_| Shard::default()));
        Self {
            branches: vec![branch; shards.div_ceil(BRANCH_SHARDS)].into(),
            shards: shards as u32,
            len: 0,
            hasher,
        }
    }

    /// Every row with `key`, by rank.
    #[inline]
    pub(super) fn rows(&self, key: R::Key) -> impl Iterator<Item = &R> {
        self.seek(key).rows()
    }

    /// Has the rows with `key` fetched, for a look at them later.
    #[inline]
    pub(super) fn seek(&self, key: R::Key) -> Sought<'_, R> {
        if self.len == 0 {
            return Sought { key, bucket: &[] };
        }
        let digest = self.digest(key);
        let mut bucket = self.bucket(digest);
        if bucket.len() > SCANNED_ROWS_MAX {
            bucket = self.cut_to_first(bucket, digest, key);
        }
        memory::prefetch(bucket);
        Sought { key, bucket }
    }

    /// Cuts off the rows before the first one with `key`, in a bucket that one key, perhaps another one, crowds. Empty
    /// where there is none.
    #[cold]
    fn cut_to_first<'a>(&self, bucket: &'a [R], digest: KeyDigest, key: R::Key) -> &'a [R] {
        let is_before = |row: &R| (self.digest(row.key()), row.key()) < (digest, key);
        let bucket = &bucket[bucket.partition_point(is_before)..];
        if bucket.first().is_some_and(|row| row.key() == key) { bucket } else { &[] }
    }

    /// Every row whose key has `digest`, by key and rank, and a few others.
    #[inline]
    pub(super) fn bucket(&self, digest: KeyDigest) -> &[R] {
        let place = BucketPlace::of(digest, self.shards);
        self.branches[place.branch][place.shard].bucket(place.bucket)
    }

    #[inline]
    pub(super) fn digest(&self, key: R::Key) -> KeyDigest {
        self.hasher.digest(key)
    }

    /// Every row, by digest, key and rank.
    pub(super) fn iter(&self) -> impl Iterator<Item = &R> {
        self.branches.iter().flat_map(|branch| branch.iter()).flat_map(Shard::rows)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<R: Row> Default for Table<R> {
    fn default() -> Self {
        Self::sized_for(0, KeyHasher::default())
    }
}

/// Rows on their way from memory.
#[derive(Clone, Copy)]
pub(super) struct Sought<'a, R: Row> {
    key: R::Key,
    bucket: &'a [R],
}

impl<'a, R: Row> Sought<'a, R> {
    #[inline]
    pub(super) fn hits(&self) -> u32 {
        let mut hits = 0;
        for (number, row) in self.bucket.iter().take(AT_ONCE).enumerate() {
            hits |= u32::from(row.key() == self.key) << number;
        }
        hits
    }
    #[inline]
    pub(super) fn row(&self, number: usize) -> Option<&'a R> {
        self.bucket.get(number)
    }
    #[inline]
    pub(super) fn is_long(&self) -> bool {
        self.bucket.len() > AT_ONCE
    }

    /// The rows with the key that are not among the first of the bucket.
    pub(super) fn beyond(&self) -> impl Iterator<Item = &'a R> {
        self.rest().iter().take_while(|row| row.key() == self.key)
    }

    /// The bucket from the first row with the key on that is not among the first rows. Rows with one key lie together.
    #[cold]
    fn rest(&self) -> &'a [R] {
        let Some((first, rest)) = self.bucket.split_at_checked(AT_ONCE) else { return &[] };
        if first.iter().any(|row| row.key() == self.key) {
            return rest;
        }
        // A bucket that is long to go through begins with the key, see `Table::seek`.
        let start = rest.iter().position(|row| row.key() == self.key).unwrap_or(rest.len());
        &rest[start..]
    }

    /// Every row with the key, by rank.
    #[inline]
    pub(super) fn rows(self) -> Hits<'a, R> {
        let mut hits = 0;
        for (number, row) in self.bucket.iter().take(AT_ONCE).enumerate() {
            hits |= u32::from(row.key() == self.key) << number;
        }
        Hits { sought: self, hits, beyond: None }
    }
}

/// Rows with one key. Which of the first rows of a bucket those are is found for all of them at once: to
/// stop at the first would save a few instructions, but nobody can foretell where that is, and a processor
/// that guessed wrong has to start over.
pub(super) struct Hits<'a, R: Row> {
    sought: Sought<'a, R>,
    hits: u32,
    /// What is left beyond the first rows; `None` until those are done.
    beyond: Option<&'a [R]>,
}

impl<'a, R: Row> Iterator for Hits<'a, R> {
    type Item = &'a R;

    #[inline]
    fn next(&mut self) -> Option<&'a R> {
        if self.hits != 0 {
            let number = self.hits.trailing_zeros() as usize;
            self.hits &= self.hits - 1;
            return self.sought.bucket.get(number);
        }
        if self.sought.bucket.len() > AT_ONCE { self.beyond() } else { None }
    }
}

impl<'a, R: Row> Hits<'a, R> {
    #[cold]
    fn beyond(&mut self) -> Option<&'a R> {
        let (first, rest) = self.beyond.unwrap_or_else(|| self.sought.rest()).split_first()?;
        let is_hit = first.key() == self.sought.key;
        self.beyond = Some(if is_hit { rest } else { &[] });
        is_hit.then_some(first)
    }
}

/// Rows of a bucket that are looked at together.
const AT_ONCE: usize = 8;

/// Rows of a bucket that are looked at one after the other. In a longer one the first that counts is found by halves: the
/// past grants of one pair must cost neither that pair's decisions nor its neighbours'.
const SCANNED_ROWS_MAX: usize = 32;

/// The position of a digest in a table. Keeps the order of the digests.
#[derive(Clone, Copy)]
struct BucketPlace {
    branch: usize,
    shard: usize,
    bucket: usize,
}

impl BucketPlace {
    #[inline]
    fn of(digest: KeyDigest, shards: u32) -> Self {
        let scaled = u64::from(digest.0) * u64::from(shards);
        let (shard, within) = ((scaled >> 32) as usize, scaled as u32);
        Self {
            branch: shard / BRANCH_SHARDS,
            shard: shard % BRANCH_SHARDS,
            bucket: ((u64::from(within) * shard::BUCKETS as u64) >> 32) as usize,
        }
    }

    /// Index of the shard, counted from the first of the first branch.
    fn number(self) -> usize {
        self.branch * BRANCH_SHARDS + self.shard
    }
}

/// Rows that a shard holds on average when a table is laid out. A change copies a shard whole: two to
/// four KiB, well under a microsecond.
const SHARD_ROWS: usize = 160;

/// Rows that a shard may hold on average before the table is laid out anew.
const SHARD_ROWS_MAX: usize = 2 * SHARD_ROWS;

/// Shards on a branch. At 10 million rows the root has some five thousand branches; a change copies those
/// pointers and one branch.
const BRANCH_SHARDS: usize = 32;

/// Limit so that a digest still distinguishes the buckets of a shard. Beyond some two billion rows, shards grow.
const SHARDS_MAX: usize = 1 << 25;
