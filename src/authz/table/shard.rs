//! A run of a table's rows, dense and in order, and where in it each bucket begins.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{KeyDigest, Place, Row};

/// Immutable, and cheap to clone.
#[derive(Clone)]
pub(super) struct Shard<R> {
    rows: Arc<[R]>,
    /// In steps of [`step_bits`], rounded down.
    starts: [u8; BUCKETS],
}

impl<R> Shard<R> {
    /// `rows` come in order and leave `rows` empty; `shards` is how many the table has.
    pub(super) fn new(rows: &mut Vec<Digested<R>>, shards: u32) -> Self {
        let step_bits = step_bits(rows.len());
        let mut starts = [0; BUCKETS];
        let mut row = 0;
        for (bucket, start) in starts.iter_mut().enumerate() {
            while row < rows.len() && Place::of(rows[row].digest, shards).bucket < bucket {
                row += 1;
            }
            *start = (row >> step_bits) as u8;
        }
        Self { rows: rows.drain(..).map(|digested| digested.row).collect(), starts }
    }

    pub(super) fn rows(&self) -> &[R] {
        &self.rows
    }

    /// The rows of a bucket, and in a crowded shard a few of its neighbours'.
    #[inline]
    pub(super) fn bucket(&self, bucket: usize) -> &[R] {
        let rows = &*self.rows;
        let step_bits = step_bits(rows.len());
        let start = usize::from(self.starts[bucket]) << step_bits;
        let end = match self.starts.get(bucket + 1) {
            Some(&next) => ((usize::from(next) + 1) << step_bits) - 1,
            None => rows.len(),
        };
        &rows[start..end.min(rows.len())]
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
        Self { rows: Arc::default(), starts: [0; BUCKETS] }
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

/// How coarsely the starts of buckets are told in a shard of so many rows, in powers of two: in all but
/// those that one key crowds, exactly.
#[inline]
fn step_bits(rows: usize) -> u32 {
    (rows >> 8).checked_ilog2().map_or(0, |bits| bits + 1)
}

/// Buckets of a shard; two rows each on average. A power of two.
pub(super) const BUCKETS: usize = 32;
