//! Where the row with an id lies: for changes, which may name a row by its id alone or move it.

use std::hash::Hash;
use std::marker::PhantomData;

use hashbrown::HashSet;

use crate::authz::table::{KeyDigest, KeyHasher, Row, Table};
use crate::authz::{DeviceId, GrantId};

#[derive(Clone)]
pub(super) struct Index<I> {
    entries: Table<IndexEntry<I>>,
}

/// The digest of the key of one id's row.
#[derive(Clone, Copy)]
pub(super) struct IndexEntry<I> {
    /// The id as bytes: an `i64` would be followed by four bytes of padding.
    id: [u8; 8],
    digest: KeyDigest,
    of: PhantomData<I>,
}

/// Places of the rows that a change replaces or removes.
pub(super) struct DisplacedEntries<I> {
    pub(super) ids: HashSet<I>,
    pub(super) digests: Vec<KeyDigest>,
}

/// A number that the store gives.
pub(super) trait StoreId: Copy + Ord + Hash {
    fn from_number(number: i64) -> Self;

    fn number(self) -> i64;
}

impl<I: StoreId> Index<I> {
    pub(super) fn sized_for(rows: usize, hasher: KeyHasher) -> Self {
        Self { entries: Table::sized_for(rows, hasher) }
    }

    /// Takes in `entries`, each in the place of the one with its id, and lets go of those for `removed`.
    pub(super) fn replace(
        &mut self,
        entries: Vec<IndexEntry<I>>,
        removed: &HashSet<I>,
    ) -> DisplacedEntries<I> {
        let suspects = removed.iter().map(|id| self.entries.digest(*id)).collect();
        let displaced = self.entries.replace(entries, suspects, |entry| removed.contains(&entry.id()));
        DisplacedEntries {
            ids: displaced.iter().map(IndexEntry::id).collect(),
            digests: displaced.iter().map(|entry| entry.digest).collect(),
        }
    }

    pub(super) fn get(&self, id: I) -> Option<KeyDigest> {
        self.entries.rows(id).next().map(|entry| entry.digest)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl<I: StoreId> IndexEntry<I> {
    pub(super) fn new(id: I, digest: KeyDigest) -> Self {
        Self { id: id.number().to_ne_bytes(), digest, of: PhantomData }
    }

    fn id(&self) -> I {
        I::from_number(i64::from_ne_bytes(self.id))
    }
}

impl<I: StoreId> Row for IndexEntry<I> {
    type Key = I;
    type Rank = ();

    fn key(&self) -> I {
        self.id()
    }

    fn rank(&self) {}
}

impl StoreId for GrantId {
    fn from_number(number: i64) -> Self {
        Self(number)
    }

    fn number(self) -> i64 {
        self.0
    }
}

impl StoreId for DeviceId {
    fn from_number(number: i64) -> Self {
        Self(number)
    }

    fn number(self) -> i64 {
        self.0
    }
}

const _: () = assert!(size_of::<IndexEntry<GrantId>>() == 12);
