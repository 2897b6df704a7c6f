//! Rows that the store does not give any more, with no revocation to say why.
//!
//! One read may err. What a second one does not give either has ended, and from then on is a revocation,
//! which nothing takes back. Until then the row stays as it was.

use std::collections::{HashMap, HashSet};

use super::guard::{Difference, ReadScope};
use crate::authz::{Change, Revocations, UnixMillis};
use crate::store::RowKey;

/// Missing rows that wait for a second read.
#[derive(Default)]
pub(super) struct MissingRows {
    /// Missing rows, each with the read that missed it first.
    waiting: HashMap<RowKey, FirstMissed>,
    /// Reads so far.
    reads: Reads,
    honoured: u64,
}

/// The result of one read for the missing rows.
pub(super) struct Settled {
    /// Confirmed: these have ended.
    pub ended: Vec<Change>,
    /// Not confirmed yet: these rows stay.
    pub kept: HashSet<RowKey>,
}

/// Number of reads by kind.
#[derive(Clone, Copy, Default)]
struct Reads {
    everything: u64,
    any: u64,
}

#[derive(Clone, Copy)]
struct FirstMissed {
    by: ReadScope,
    at: Reads,
}

impl MissingRows {
    /// Counts a successful read. Call it once for each, before its missing rows are settled.
    pub(super) fn count_read(&mut self, read: ReadScope) {
        self.reads.any += 1;
        self.reads.everything += u64::from(read == ReadScope::Everything);
    }

    /// Sorts what `difference` has lost into what has ended and what is waited for.
    pub(super) fn settle(
        &mut self,
        difference: &Difference,
        revocations: &Revocations,
        read: ReadScope,
        now: UnixMillis,
    ) -> Settled {
        let mut still_waiting = HashMap::new();
        let mut settled = Settled { ended: Vec::new(), kept: HashSet::new() };
        for (key, gone) in lost(difference, revocations, now) {
            let seen = self.waiting.get(&key).copied().unwrap_or(FirstMissed { by: read, at: self.reads });
            if self.is_confirmed(seen) {
                settled.ended.push(gone);
            } else {
                settled.kept.insert(key.clone());
                still_waiting.insert(key, seen);
            }
        }
        self.honoured += settled.ended.len() as u64;
        // What is not lost any more came back.
        self.waiting = still_waiting;
        settled
    }

    /// All that `difference` has lost has ended, as a person says.
    pub(super) fn settle_all(
        &mut self,
        difference: &Difference,
        revocations: &Revocations,
        now: UnixMillis,
    ) -> Settled {
        self.waiting.clear();
        let ended: Vec<_> = lost(difference, revocations, now).map(|(_, gone)| gone).collect();
        self.honoured += ended.len() as u64;
        Settled { ended, kept: HashSet::new() }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Returns whether some rows wait for a second full read: no outbox named them.
    pub(super) fn want_everything_read(&self) -> bool {
        self.waiting.values().any(|seen| seen.by == ReadScope::Everything)
    }

    /// Rows whose absence has become a revocation, since the node runs.
    pub(super) fn honoured(&self) -> u64 {
        self.honoured
    }

    /// The second read must be of the same kind: one that only asks what has changed puts no query again.
    fn is_confirmed(&self, seen: FirstMissed) -> bool {
        match seen.by {
            ReadScope::Everything => self.reads.everything > seen.at.everything,
            ReadScope::Changes => self.reads.any > seen.at.any,
        }
    }
}

/// The rows that are absent, and what their absence would mean.
fn lost<'a>(
    difference: &'a Difference,
    revocations: &'a Revocations,
    now: UnixMillis,
) -> impl Iterator<Item = (RowKey, Change)> + use<'a> {
    let credentials = difference
        .lost_credentials(revocations, now)
        .map(|row| (RowKey::Credential(row.key), Change::CredentialGone(row.key)));
    let grants = difference
        .lost_grants(revocations, now)
        .map(|row| (RowKey::Grant(row.id), Change::GrantGone(row.id)));
    let devices = difference.lost_devices().map(|row| (RowKey::Device(row.id), Change::DeviceGone(row.id)));
    credentials.chain(grants).chain(devices)
}
