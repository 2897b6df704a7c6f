//! An end: what is known to have ended, by the key or number of its row.

use super::{Change, Grant, GrantId, KeyHash, PrincipalId, Scope, Snapshot};

/// One entry of [`Revocations`](super::Revocations).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum End {
    Credential(KeyHash),
    Grant(GrantId, Incarnation),
    Principal(PrincipalId),
}

/// The right that a grant's number stood for: a hash of its principal and scope. Stores use numbers again, after a
/// restored backup for instance, and a number that names another right is another row.
///
/// The hash is the same in every process, so that it can be kept on disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Incarnation(pub u64);

impl End {
    /// The end that `change` records: of a credential by its key, of a grant by its number, whatever right that stands
    /// for, of a principal. `None` for a change that ends nothing.
    pub fn of(change: &Change) -> Option<Self> {
        match change {
            Change::Credential(row) => row.revoked.then_some(Self::Credential(row.key)),
            Change::CredentialGone(key) => Some(Self::Credential(*key)),
            Change::Grant(row) => row.revoked.then_some(Self::Grant(row.id, Incarnation::ANY)),
            Change::GrantGone(id) => Some(Self::Grant(*id, Incarnation::ANY)),
            Change::PrincipalGone(id) => Some(Self::Principal(*id)),
            // A device holds no right. Without its row nothing leads to it.
            Change::Device(_) | Change::DeviceGone(_) => None,
        }
    }

    /// The change that records the end by the number of its row alone.
    pub const fn gone(self) -> Change {
        match self {
            Self::Credential(key) => Change::CredentialGone(key),
            Self::Grant(id, _) => Change::GrantGone(id),
            Self::Principal(id) => Change::PrincipalGone(id),
        }
    }

    /// The ends that `change` records, where `before` is the state that it changes: of a grant, the right in `before` and
    /// the one in the change, so that another right that gets the number later is not refused. The number itself has
    /// ended only where neither has a row.
    pub fn all_of(change: &Change, before: &Snapshot) -> impl Iterator<Item = Self> {
        let (by_number, rows) = match (Self::of(change), change) {
            (Some(Self::Grant(id, _)), Change::Grant(row)) => (None, [Some(*row), before.grant(id)]),
            (Some(Self::Grant(id, any)), _) => match before.grant(id) {
                Some(row) => (None, [Some(row), None]),
                None => (Some(Self::Grant(id, any)), [None, None]),
            },
            (end, _) => (end, [None, None]),
        };
        by_number.into_iter().chain(rows.into_iter().flatten().map(|row| Self::of_grant(&row)))
    }

    /// The end of the right that `row` has.
    pub fn of_grant(row: &Grant) -> Self {
        Self::Grant(row.id, Incarnation::of(row))
    }

    /// The end, and what it means for `older`, a state from before it: the row that has the number there is the same row
    /// in an earlier form, and has ended with it. For a state that was kept on disk.
    pub fn within(self, older: &Snapshot) -> impl Iterator<Item = Self> {
        let row = match self {
            Self::Grant(id, _) => older.grant(id),
            Self::Credential(_) | Self::Principal(_) => None,
        };
        std::iter::once(self).chain(row.map(|row| Self::of_grant(&row)).filter(move |end| *end != self))
    }
}

impl Incarnation {
    /// Every right that a number stands for.
    pub const ANY: Self = Self(0);

    pub fn of(grant: &Grant) -> Self {
        let (kind, target) = match grant.scope {
            Scope::Any => (0, 0),
            Scope::Fleet(fleet) => (1, fleet.0),
            Scope::Device(device) => (2, device.0),
        };
        let words = [grant.principal.0 as u64, kind, target as u64];
        let hash = words.into_iter().fold(0, |hash: u64, word| mixed(hash.wrapping_add(word)));
        Self(hash.max(1))
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): every bit of `word` changes half of the bits.
const fn mixed(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::authz::{DeviceId, FleetId, Generation, PortRange};

    fn grant(id: i64, principal: i64, scope: Scope, revoked: bool) -> Grant {
        let (id, principal) = (GrantId(id), PrincipalId(principal));
        Grant { id, principal, scope, ports: PortRange::ANY, expires_at: None, revoked }
    }

    #[test]
    fn an_incarnation_is_the_principal_and_the_scope_and_the_same_in_every_process() {
        let scopes = |target: i64| [Scope::Fleet(FleetId(target)), Scope::Device(DeviceId(target))];
        let all = (-50..50).flat_map(scopes).chain([Scope::Any]);
        let rows: Vec<_> =
            all.flat_map(|scope| (-50..50).map(move |principal| grant(1, principal, scope, false))).collect();
        let different: HashSet<_> = rows.iter().map(Incarnation::of).collect();
        assert_eq!((different.len(), different.contains(&Incarnation::ANY)), (rows.len(), false));
        let row = grant(1, 7, Scope::Device(DeviceId(9)), false);
        let narrower = Grant { id: GrantId(2), ports: PortRange::new(22, 22).unwrap(), revoked: true, ..row };
        assert_eq!(Incarnation::of(&row), Incarnation::of(&narrower));
        assert_eq!(Incarnation::of(&row), Incarnation(KEPT_ON_DISK));
    }

    /// State files have it: a change of the hash needs a new version of theirs.
    const KEPT_ON_DISK: u64 = 0x5928_d831_472e_1f38;

    #[test]
    fn a_grants_end_names_the_rights_that_its_number_stood_for() {
        let (old, new) = (grant(1, 1, Scope::Any, false), grant(1, 1, Scope::Fleet(FleetId(3)), true));
        let before = Snapshot::build(Generation(1), vec![], vec![old], vec![]);
        let ends = |change: Change| End::all_of(&change, &before).collect::<Vec<_>>();
        assert_eq!(ends(Change::Grant(new)), [End::of_grant(&new), End::of_grant(&old)]);
        assert_eq!(ends(Change::Grant(Grant { revoked: false, ..new })), []);
        assert_eq!(ends(Change::GrantGone(GrantId(1))), [End::of_grant(&old)]);
        assert_eq!(ends(Change::GrantGone(GrantId(2))), [End::Grant(GrantId(2), Incarnation::ANY)]);
        assert_eq!(ends(Change::PrincipalGone(PrincipalId(4))), [End::Principal(PrincipalId(4))]);
    }

    #[test]
    fn an_end_counts_in_an_older_state_for_the_row_that_has_its_number_there() {
        let old = grant(1, 1, Scope::Any, false);
        let older = Snapshot::build(Generation(1), vec![], vec![old], vec![]);
        let end = End::of_grant(&grant(1, 1, Scope::Fleet(FleetId(3)), true));
        assert_eq!(end.within(&older).collect::<Vec<_>>(), [end, End::of_grant(&old)]);
        let same = End::of_grant(&old);
        assert_eq!(same.within(&older).collect::<Vec<_>>(), [same]);
        let key = End::Credential(KeyHash::of_token(b"t"));
        assert_eq!(key.within(&older).collect::<Vec<_>>(), [key]);
    }
}
