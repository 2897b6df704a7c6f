//! The key that grants are found by, and their order.

use std::cmp::Reverse;
use std::hash::{Hash, Hasher};

use crate::authz::table::Row;
use crate::authz::{Grant, GrantId, PrincipalId, Scope, UnixMillis};

/// The key of a grant in its table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::authz) struct GrantKey {
    pub(in crate::authz) principal: PrincipalId,
    pub(in crate::authz) scope: Scope,
}

/// Orders grants that lead to the same devices: the one that lasts longest first, and of those the oldest. Revoked ones
/// come last, so that whenever a decision is made, those that have ended stand behind all others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::authz) struct GrantRank {
    revoked: bool,
    ends: bool,
    ends_at: Reverse<Option<UnixMillis>>,
    id: GrantId,
}

impl Hash for GrantKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Two words make one round of the hasher, the derived way takes three.
        let target = match self.scope {
            Scope::Any => 0,
            Scope::Fleet(fleet) => fleet.0 ^ 1 << 62,
            Scope::Device(device) => device.0 ^ 2 << 62,
        };
        state.write_i64(self.principal.0);
        state.write_i64(target);
    }
}

impl Grant {
    pub(in crate::authz) fn rank(&self) -> GrantRank {
        GrantRank {
            revoked: self.revoked,
            ends: self.expires_at.is_some(),
            ends_at: Reverse(self.expires_at),
            id: self.id,
        }
    }
}

impl Row for Grant {
    type Key = GrantKey;
    type Rank = GrantRank;

    fn key(&self) -> GrantKey {
        GrantKey { principal: self.principal, scope: self.scope }
    }

    fn rank(&self) -> GrantRank {
        self.rank()
    }
}
