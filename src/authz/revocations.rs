//! What has explicitly ended. Looked at before any snapshot, and never taken back while the node runs.

use super::table::{Row, Table};
use super::{Change, CredentialId, GrantId, KeyHash, PrincipalId};

/// An immutable set; adding makes a new one, which shares with the old one all but what was added.
///
/// A deletion that the store named counts as a revocation: a snapshot that is older than it, kept by
/// a hold or brought back by a rollback, must not revive what was deleted. So a token that was deleted
/// and issued again with the same key stays refused, as does a principal or grant whose number the store
/// uses again; stores must number without reuse.
#[derive(Clone, Default)]
pub struct Revocations {
    credentials: Table<KeyHash>,
    grants: Table<GrantId>,
    principals: Table<PrincipalId>,
}

impl Revocations {
    /// The set with every revocation among `changes` added; `None` where there is none that is new.
    pub fn with(&self, changes: &[Change]) -> Option<Self> {
        let mut new = Ends::default();
        for change in changes {
            match change {
                Change::Credential(row) if row.revoked => new.credentials.push(row.key),
                Change::CredentialGone(key) => new.credentials.push(*key),
                Change::Grant(row) if row.revoked => new.grants.push(row.id),
                Change::GrantGone(id) => new.grants.push(*id),
                Change::PrincipalGone(id) => new.principals.push(*id),
                // A device holds no right. Without its row nothing leads to it.
                Change::Credential(_) | Change::Grant(_) | Change::Device(_) | Change::DeviceGone(_) => {}
            }
        }
        new.credentials.retain(|key| !self.credential(key));
        new.grants.retain(|id| !self.grant(*id));
        new.principals.retain(|id| !self.principal(*id));
        if new.is_empty() {
            return None;
        }
        let mut next = self.clone();
        next.credentials.replace(new.credentials, Vec::new(), |_| false);
        next.grants.replace(new.grants, Vec::new(), |_| false);
        next.principals.replace(new.principals, Vec::new(), |_| false);
        Some(next)
    }

    /// The ends in `changes` that are new to the set, in their barest form.
    pub fn news(&self, changes: &[Change]) -> Vec<Change> {
        let end = |change: &Change| match change {
            Change::Credential(row) if row.revoked => Some(Change::CredentialGone(row.key)),
            Change::Grant(row) if row.revoked => Some(Change::GrantGone(row.id)),
            Change::CredentialGone(_) | Change::GrantGone(_) | Change::PrincipalGone(_) => {
                Some(change.clone())
            }
            Change::Credential(_) | Change::Grant(_) | Change::Device(_) | Change::DeviceGone(_) => None,
        };
        let is_new = |end: &Change| match end {
            Change::CredentialGone(key) => !self.credential(key),
            Change::GrantGone(id) => !self.grant(*id),
            Change::PrincipalGone(id) => !self.principal(*id),
            _ => false,
        };
        changes.iter().filter_map(end).filter(is_new).collect()
    }

    /// Every end of the set, in the form in which [`Revocations::with`] takes it.
    pub fn iter(&self) -> impl Iterator<Item = Change> {
        let credentials = self.credentials.iter().copied().map(Change::CredentialGone);
        let grants = self.grants.iter().copied().map(Change::GrantGone);
        let principals = self.principals.iter().copied().map(Change::PrincipalGone);
        credentials.chain(grants).chain(principals)
    }

    #[inline]
    pub fn credential(&self, key: &KeyHash) -> bool {
        !self.credentials.is_empty()
            && self.credentials.rows(key.credential_id()).any(|revoked| revoked.matches(key))
    }

    #[inline]
    pub fn grant(&self, grant: GrantId) -> bool {
        !self.grants.is_empty() && self.grants.rows(grant).next().is_some()
    }

    #[inline]
    pub fn principal(&self, principal: PrincipalId) -> bool {
        !self.principals.is_empty() && self.principals.rows(principal).next().is_some()
    }
}

#[derive(Default)]
struct Ends {
    credentials: Vec<KeyHash>,
    grants: Vec<GrantId>,
    principals: Vec<PrincipalId>,
}

impl Ends {
    fn is_empty(&self) -> bool {
        self.credentials.is_empty() && self.grants.is_empty() && self.principals.is_empty()
    }
}

impl Row for KeyHash {
    type Key = CredentialId;
    type Rank = Self;

    fn key(&self) -> CredentialId {
        self.credential_id()
    }

    fn rank(&self) -> Self {
        *self
    }
}

impl Row for GrantId {
    type Key = Self;
    type Rank = ();

    fn key(&self) -> Self {
        *self
    }

    fn rank(&self) {}
}

impl Row for PrincipalId {
    type Key = Self;
    type Rank = ();

    fn key(&self) -> Self {
        *self
    }

    fn rank(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Credential, DeviceId, Grant, PortRange, Scope};

    const PRINCIPAL: PrincipalId = PrincipalId(1);

    fn credential(token: &[u8], revoked: bool) -> Change {
        let key = KeyHash::of_token(token);
        Change::Credential(Credential { key, principal: PRINCIPAL, expires_at: None, revoked })
    }

    fn grant(id: i64, revoked: bool) -> Change {
        let (id, ports) = (GrantId(id), PortRange::ANY);
        Change::Grant(Grant { id, principal: PRINCIPAL, scope: Scope::Any, ports, expires_at: None, revoked })
    }

    #[test]
    fn every_kind_of_end_is_a_revocation_and_nothing_else_is() {
        let none = Revocations::default();
        let changes = [
            credential(b"revoked", true),
            credential(b"live", false),
            Change::CredentialGone(KeyHash::of_token(b"gone")),
            grant(1, true),
            grant(2, false),
            Change::GrantGone(GrantId(3)),
            Change::PrincipalGone(PrincipalId(4)),
            Change::DeviceGone(DeviceId(5)),
        ];
        let some = none.with(&changes).unwrap();
        let credentials = [&b"revoked"[..], b"live", b"gone"].map(|t| some.credential(&KeyHash::of_token(t)));
        assert_eq!(credentials, [true, false, true]);
        assert_eq!([1, 2, 3, 4, 5].map(|id| some.grant(GrantId(id))), [true, false, true, false, false]);
        assert_eq!([1, 3, 4, 5].map(|id| some.principal(PrincipalId(id))), [false, false, true, false]);
        assert!(!none.grant(GrantId(1)), "the set that was added to is as it was");
    }

    #[test]
    fn nothing_new_makes_no_new_set() {
        let set = Revocations::default().with(&[grant(1, true), credential(b"t", true)]).unwrap();
        assert!(set.with(&[grant(1, true), Change::GrantGone(GrantId(1)), credential(b"t", true)]).is_none());
        assert!(set.with(&[grant(2, false)]).is_none());
    }

    #[test]
    fn what_was_revoked_is_not_taken_back_by_a_row_that_says_otherwise() {
        let set = Revocations::default().with(&[credential(b"t", true), grant(1, true)]).unwrap();
        let more = set.with(&[credential(b"t", false), grant(1, false), grant(2, true)]).unwrap();
        assert!(more.credential(&KeyHash::of_token(b"t")) && more.grant(GrantId(1)));
    }
}
