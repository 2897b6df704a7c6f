//! The three relations as tables: how their rows are packed, and how they change.
//!
//! A row is packed where its numbers are small and its shape is the usual one. Any other is kept whole in a
//! table of its own, which is empty in most snapshots and then costs no lookup.

mod credentials;
mod devices;
mod grant_key;
mod grants;
mod index;
mod node_names;
mod packed_end;
mod packed_grants;

use std::hash::Hash;

pub(super) use credentials::{Credentials, HeldCredential, SoughtCredential};
pub(super) use devices::{Devices, LocatedDevice, SoughtDevice};
#[cfg(test)]
pub(super) use grants::ENDED_SHOWN_MAX;
pub(super) use grants::{Between, Grants, SoughtGrants};
use hashbrown::HashSet;

/// A change of one row of a relation.
pub(super) enum Edit<R: Identified> {
    Put(R),
    Remove(R::Id),
}

/// A row that the store names by an id of its own.
pub(super) trait Identified {
    type Id: Copy + Eq + Hash;

    fn id(&self) -> Self::Id;
}

impl<R: Identified> Edit<R> {
    fn id(&self) -> R::Id {
        match self {
            Self::Put(row) => row.id(),
            Self::Remove(id) => *id,
        }
    }
}

/// The last word on each row that was spoken of.
struct LastWords<R: Identified> {
    put: Vec<R>,
    removed: HashSet<R::Id>,
}

impl<R: Identified> LastWords<R> {
    fn of(edits: Vec<Edit<R>>) -> Self {
        let mut spoken_of = HashSet::with_capacity(edits.len());
        let mut last = Self { put: Vec::with_capacity(edits.len()), removed: HashSet::new() };
        for edit in edits.into_iter().rev() {
            if !spoken_of.insert(edit.id()) {
                continue;
            }
            match edit {
                Edit::Put(row) => last.put.push(row),
                Edit::Remove(id) => {
                    last.removed.insert(id);
                }
            }
        }
        last
    }
}

/// Packs the rows that can be, and gives back the others whole.
fn pack_all<R, P>(rows: Vec<R>, pack: impl Fn(&R) -> Option<P>) -> (Vec<P>, Vec<R>) {
    let mut packed = Vec::with_capacity(rows.len());
    let whole = rows.into_iter().filter(|row| match pack(row) {
        Some(small) => {
            packed.push(small);
            false
        }
        None => true,
    });
    let whole = whole.collect();
    (packed, whole)
}
