//! Rule `unique`: no key is there twice.
//!
//! A join that fans out gives the same row many times, and which of them counts would be chance.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, RandomState};

use super::{Candidate, Hold, Rule};
use crate::authz::Change;
use crate::store::{RowKey, Rows};

/// Keys that reads gave more than once.
#[derive(Default)]
pub(in crate::control) struct Duplicates {
    /// Rows beyond the first of their key.
    rows: usize,
    /// Examples of their keys.
    keys: Vec<String>,
}

impl Duplicates {
    /// Finds duplicates in a full read.
    pub(in crate::control) fn among_rows(rows: &Rows) -> Self {
        let mut duplicates = Self::default();
        duplicates.search(&rows.credentials, |row| row.key, |key| RowKey::Credential(key).to_string());
        duplicates.search(&rows.grants, |row| row.id, |id| RowKey::Grant(id).to_string());
        duplicates.search(&rows.devices, |row| row.id, |id| RowKey::Device(id).to_string());
        duplicates.search(&rows.devices, |row| row.uuid, |uuid| format!("devices {uuid}"));
        duplicates
    }

    /// Finds duplicates in a read of changes, which should give each row once.
    pub(in crate::control) fn among_changes(changes: &[Change]) -> Self {
        let key = |change: &Change| match change {
            Change::Credential(row) => Some(RowKey::Credential(row.key)),
            Change::Grant(row) => Some(RowKey::Grant(row.id)),
            Change::Device(row) => Some(RowKey::Device(row.id)),
            _ => None,
        };
        let keys: Vec<RowKey> = changes.iter().filter_map(key).collect();
        let mut duplicates = Self::default();
        duplicates.search(&keys, RowKey::clone, |key| key.to_string());
        duplicates
    }

    /// Adds those of a later read.
    pub(in crate::control) fn add(&mut self, later: Self) {
        self.rows += later.rows;
        self.keys.extend(later.keys);
        self.keys.truncate(KEYS_MAX);
    }

    /// Looks at hashes first: keeping every key of ten million rows, to find none, would double what a
    /// full read takes.
    fn search<R, K: Hash + Eq>(&mut self, rows: &[R], key: impl Fn(&R) -> K, name: impl Fn(K) -> String) {
        let hasher = RandomState::new();
        let mut hashes: Vec<u64> = rows.iter().map(|row| hasher.hash_one(key(row))).collect();
        hashes.sort_unstable();
        let repeated: HashSet<u64> =
            hashes.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
        if repeated.is_empty() {
            return;
        }
        let mut seen = HashSet::new();
        for row in rows.iter().filter(|row| repeated.contains(&hasher.hash_one(key(row)))) {
            if !seen.insert(key(row)) {
                self.rows += 1;
                let name = name(key(row));
                if self.keys.len() < KEYS_MAX && !self.keys.contains(&name) {
                    self.keys.push(name);
                }
            }
        }
    }
}

pub(super) fn check(candidate: &Candidate<'_>) -> Result<(), Hold> {
    let duplicates = candidate.duplicates;
    if duplicates.rows == 0 {
        return Ok(());
    }
    let figures = format!("{} rows have the key of another one", duplicates.rows);
    Err(Hold::new(Rule::Unique, duplicates.rows, figures, &duplicates.keys))
}

/// Keys that are kept to be shown.
const KEYS_MAX: usize = 5;
