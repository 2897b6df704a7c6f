//! A run of a table's rows, dense and in order, and where in it each bucket begins.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{BucketPlace, KeyDigest, Row};

/// Immutable, and cheap to clone.
#[derive(Clone)]
#[repr(align(64))]
pub(super) struct Shard<R> {
    rows: Arc<[R]>,
    /// Start of each bucket, which is the end of the one before, in steps of [`step_bits`], rounded down.
    bounds: [u8; BUCKETS + 1],
}

impl<R> Shard<R> {
    /// `rows` come in order and leave `rows` empty; `shards` is how many the table has.
    pub(super) fn new(rows: &mut Vec<Digested<R>>, shards: u32) -> Self {
        let step_bits = step_bits(rows.len());
        let mut bounds = [0; BUCKETS + 1];
        let mut row = 0;
        for (bucket, bound) in bounds.iter_mut().enumerate() {
            while row < rows.len() && BucketPlace::of(rows[row].digest, shards).bucket < bucket {
                row += 1;
            }
            *bound = (row >> step_bits) as u8;
        }
        Self { rows: rows.drain(..).map(|digested| digested.row).collect(), bounds }
    }

    pub(super) fn rows(&self) -> &[R] {
        &self.rows
    }

    /// The rows of a bucket, and in a crowded shard a few of its neighbours'.
    #[inline]
    pub(super) fn bucket(&self, bucket: usize) -> &[R] {
        let (start, end) = (usize::from(self.bounds[bucket]), usize::from(self.bounds[bucket + 1]));
        if self.rows.len() <= EXACT_ROWS_MAX { &self.rows[start..end] } else { self.crowded(start, end) }
    }

    #[cold]
    fn crowded(&self, start: usize, end: usize) -> &[R] {
        let step_bits = step_bits(self.rows.len());
        let end = ((end + 1) << step_bits) - 1;
        &self.rows[start << step_bits..end.min(self.rows.len())]
    }
}

#[cfg(test)]
impl<R> Shard<R> {
    pub(super) fn shares_rows_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.rows, &other.rows)
    }
}

impl<R> Default for Shard<R> {
    fn default() -> Self {
        Self { rows: Arc::default(), bounds: [0; BUCKETS + 1] }
    }
}

/// A row with its key's digest, while a shard is being put together.
pub(super) struct Digested<R> {
    pub(super) digest: KeyDigest,
    pub(super) row: R,
}

impl<R: Row> Digested<R> {
    /// The order of rows in a table. Versions of one row are equal.
    pub(super) fn cmp(&self, other: &Self) -> Ordering {
        let by_digest = self.digest.cmp(&other.digest);
        by_digest
            .then_with(|| self.row.key().cmp(&other.row.key()))
            .then_with(|| self.row.rank().cmp(&other.row.rank()))
    }
}

/// Step of the bounds in a shard of so many rows, as a power of two. It is 1, but in a shard that one key
/// crowds.
fn step_bits(rows: usize) -> u32 {
    (rows / (EXACT_ROWS_MAX + 1)).checked_ilog2().map_or(0, |bits| bits + 1)
}

const EXACT_ROWS_MAX: usize = u8::MAX as usize;

/// Buckets of a shard, TWO rows each on average. With the bound that ends the last, its entry in the
/// directory takes 48 bytes.
pub(super) const BUCKETS: usize = 47;
