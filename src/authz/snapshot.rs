//! One immutable, complete state of all rights. A delta makes a new one that shares what it did not touch.

use super::{
    Credential, Decision, Device, DeviceId, Grant, GrantId, KeyHash, PrincipalId, Query, Revocations,
    UnixMillis,
};

/// Numbers snapshots in the order of their publication, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// One committed change of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// New, or with new values.
    Credential(Credential),
    CredentialGone(KeyHash),
    Grant(Grant),
    GrantGone(GrantId),
    Device(Device),
    DeviceGone(DeviceId),
    /// The principal was removed, with everything that it holds.
    PrincipalGone(PrincipalId),
}

/// Rows that a snapshot holds, by relation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RowCounts {
    pub credentials: usize,
    pub grants: usize,
    pub devices: usize,
}

/// Immutable; see the module.
pub struct Snapshot {}

impl Snapshot {
    /// Builds a snapshot from whole relations. Where two rows share a key the later one wins.
    pub fn build(
        generation: Generation,
        credentials: Vec<Credential>,
        grants: Vec<Grant>,
        devices: Vec<Device>,
    ) -> Self {
        let _ = (generation, credentials, grants, devices);
        todo!()
    }

    /// The snapshot after `changes`, in their order.
    pub fn apply(&self, generation: Generation, changes: &[Change]) -> Self {
        let _ = (generation, changes);
        todo!()
    }

    pub fn generation(&self) -> Generation {
        todo!()
    }

    pub fn row_counts(&self) -> RowCounts {
        todo!()
    }

    /// Decides from this snapshot, with `revocations` on top of it. Looks at nothing but memory.
    pub fn decide(
        &self,
        query: &Query,
        revocations: &Revocations,
        node: Option<&str>,
        now: UnixMillis,
    ) -> Decision {
        let _ = (query, revocations, node, now);
        todo!()
    }
}
