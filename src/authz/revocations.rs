//! What has explicitly ended. Looked at before any snapshot, and never taken back while the node runs.

use super::{Change, GrantId, KeyHash, PrincipalId};

/// An immutable set; adding makes a new one.
#[derive(Clone, Default)]
pub struct Revocations {}

impl Revocations {
    /// The set with every revocation among `changes` added; `None` where there is none that is new.
    pub fn with(&self, changes: &[Change]) -> Option<Self> {
        let _ = changes;
        todo!()
    }

    pub fn credential(&self, key: &KeyHash) -> bool {
        let _ = key;
        todo!()
    }

    pub fn grant(&self, grant: GrantId) -> bool {
        let _ = grant;
        todo!()
    }

    pub fn principal(&self, principal: PrincipalId) -> bool {
        let _ = principal;
        todo!()
    }
}
