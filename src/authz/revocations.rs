//! The set of rights that have ended, whatever the snapshot says of their rows. Decisions ask it first.

use hashbrown::HashSet;

use super::table::{Row, Table};
use super::{Change, CredentialId, End, Grant, GrantId, Incarnation, KeyHash, PrincipalId};

/// An immutable set of ends; a changed one shares with the old one all but what changed.
///
/// A deletion that the store named counts as a revocation: a snapshot that is older than it, kept by a hold or brought
/// back by a rollback, must not revive what was deleted. An end is in the set until the control thread takes it out, which
/// it does for two reasons: a newer explicit word says that the row is live, or no answer that could still be believed can
/// bring the row back. No query takes an end back.
#[derive(Clone, Default)]
pub struct Revocations {
    credentials: Table<KeyHash>,
    grants: Table<EndedGrant>,
    principals: Table<PrincipalId>,
}

impl Revocations {
    /// The set with every end among `changes` added, of grants by their number, whatever right that stands for; `None`
    /// where there is none that is new. [`End::all_of`] gives ends that leave the number free.
    pub fn with(&self, changes: &[Change]) -> Option<Self> {
        self.with_ends(changes.iter().filter_map(End::of))
    }

    /// The set with `ends` added; `None` where none is new.
    pub fn with_ends(&self, ends: impl IntoIterator<Item = End>) -> Option<Self> {
        let new = Ends::of(ends.into_iter().filter(|end| !self.contains(end)));
        if new.is_empty() {
            return None;
        }
        let mut next = self.clone();
        next.credentials.replace(new.credentials, Vec::new(), |_| false);
        next.grants.replace(new.grants, Vec::new(), |_| false);
        next.principals.replace(new.principals, Vec::new(), |_| false);
        Some(next)
    }

    /// The set without `ends`, each exactly as it was added; `None` where the set has none of them.
    pub fn without(&self, ends: impl IntoIterator<Item = End>) -> Option<Self> {
        let gone = Ends::of(ends.into_iter().filter(|end| self.contains(end)));
        if gone.is_empty() {
            return None;
        }
        let mut next = self.clone();
        remove(&mut next.credentials, gone.credentials);
        remove(&mut next.grants, gone.grants);
        remove(&mut next.principals, gone.principals);
        Some(next)
    }

    /// The ends of the set that an explicit word takes back, for [`Revocations::without`]: the word is the row in `change`,
    /// which is live. An end of another right that had the same number stays.
    pub fn taken_back_by(&self, change: &Change) -> impl Iterator<Item = End> {
        let ends = match change {
            Change::Credential(row) if !row.revoked => [Some(End::Credential(row.key)), None],
            Change::Grant(row) if !row.revoked => {
                [Some(End::of_grant(row)), Some(End::Grant(row.id, Incarnation::ANY))]
            }
            _ => [None, None],
        };
        ends.into_iter().flatten().filter(|end| self.contains(end))
    }

    /// The ends that a number has: for a word that names a grant by its number alone.
    pub fn ends_of_grant(&self, id: GrantId) -> impl Iterator<Item = End> {
        self.grants.rows(id).map(EndedGrant::end)
    }

    /// The ends in `changes` that are new to the set, in their barest form.
    pub fn news(&self, changes: &[Change]) -> Vec<Change> {
        changes.iter().filter_map(End::of).filter(|end| !self.contains(end)).map(End::gone).collect()
    }

    /// Every end of the set.
    pub fn ends(&self) -> impl Iterator<Item = End> {
        let credentials = self.credentials.iter().copied().map(End::Credential);
        let grants = self.grants.iter().map(EndedGrant::end);
        let principals = self.principals.iter().copied().map(End::Principal);
        credentials.chain(grants).chain(principals)
    }

    /// Every end of the set, in the form in which [`Revocations::with`] takes it.
    pub fn iter(&self) -> impl Iterator<Item = Change> {
        self.ends().map(End::gone)
    }

    pub fn len(&self) -> usize {
        self.credentials.len() + self.grants.len() + self.principals.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether the set has `end`, exactly as it was added.
    pub fn contains(&self, end: &End) -> bool {
        match end {
            End::Credential(key) => self.credential(key),
            End::Grant(id, incarnation) => self.grants.rows(*id).any(|row| row.incarnation == *incarnation),
            End::Principal(id) => self.principal(*id),
        }
    }

    #[inline]
    pub fn credential(&self, key: &KeyHash) -> bool {
        !self.credentials.is_empty()
            && self.credentials.rows(key.credential_id()).any(|revoked| revoked.matches(key))
    }

    /// Returns whether the right that `grant` is has ended.
    #[inline]
    pub fn grant(&self, grant: &Grant) -> bool {
        !self.grants.is_empty() && self.grants.rows(grant.id).any(|ended| ended.covers(grant))
    }

    #[inline]
    pub fn principal(&self, principal: PrincipalId) -> bool {
        !self.principals.is_empty() && self.principals.rows(principal).next().is_some()
    }
}

/// The end in its barest form as a change.
/// Takes `rows` out of `table`. An empty table keeps no directory.
fn remove<R: Row + Eq + std::hash::Hash>(table: &mut Table<R>, rows: Vec<R>) {
    let suspects = rows.iter().map(|row| table.digest(row.key())).collect();
    let rows: HashSet<R> = rows.into_iter().collect();
    table.replace(Vec::new(), suspects, |row| rows.contains(row));
    if table.is_empty() {
        *table = Table::default();
    }
}

#[derive(Default)]
struct Ends {
    credentials: Vec<KeyHash>,
    grants: Vec<EndedGrant>,
    principals: Vec<PrincipalId>,
}

impl Ends {
    fn of(ends: impl Iterator<Item = End>) -> Self {
        let mut sorted = Self::default();
        for end in ends {
            match end {
                End::Credential(key) => sorted.credentials.push(key),
                End::Grant(id, incarnation) => sorted.grants.push(EndedGrant { id, incarnation }),
                End::Principal(id) => sorted.principals.push(id),
            }
        }
        sorted
    }

    fn is_empty(&self) -> bool {
        self.credentials.is_empty() && self.grants.is_empty() && self.principals.is_empty()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct EndedGrant {
    id: GrantId,
    incarnation: Incarnation,
}

impl EndedGrant {
    fn end(&self) -> End {
        End::Grant(self.id, self.incarnation)
    }

    /// Hashes the grant's right only here: a decision meets the number of an ended grant rarely.
    #[cold]
    fn covers(&self, grant: &Grant) -> bool {
        self.incarnation == Incarnation::ANY || self.incarnation == Incarnation::of(grant)
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

impl Row for EndedGrant {
    type Key = GrantId;
    type Rank = Incarnation;

    fn key(&self) -> GrantId {
        self.id
    }

    fn rank(&self) -> Incarnation {
        self.incarnation
    }
}

impl Row for PrincipalId {
    type Key = Self;
    type Rank = ();

    fn key(&self) -> Self {
        *self
    }

    fn rank(&self) {}
}

const _: () = assert!(size_of::<EndedGrant>() == 16);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Credential, DeviceId, FleetId, PortRange, Scope};

    const PRINCIPAL: PrincipalId = PrincipalId(1);

    fn credential(token: &[u8], revoked: bool) -> Change {
        let key = KeyHash::of_token(token);
        Change::Credential(Credential { key, principal: PRINCIPAL, expires_at: None, revoked })
    }

    fn row(id: i64, scope: Scope, revoked: bool) -> Grant {
        let (id, ports) = (GrantId(id), PortRange::ANY);
        Grant { id, principal: PRINCIPAL, scope, ports, expires_at: None, revoked }
    }

    fn grant(id: i64, revoked: bool) -> Change {
        Change::Grant(row(id, Scope::Any, revoked))
    }

    fn has_ended(set: &Revocations, id: i64) -> bool {
        set.grant(&row(id, Scope::Any, false))
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
        assert_eq!([1, 2, 3, 4, 5].map(|id| has_ended(&some, id)), [true, false, true, false, false]);
        assert_eq!([1, 3, 4, 5].map(|id| some.principal(PrincipalId(id))), [false, false, true, false]);
        assert!(!has_ended(&none, 1), "the set that was added to is as it was");
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
        assert!(more.credential(&KeyHash::of_token(b"t")) && has_ended(&more, 1));
    }

    #[test]
    fn an_explicit_word_that_a_row_is_live_takes_its_end_back_and_no_other() {
        let ended = [
            credential(b"t", true),
            credential(b"other", true),
            grant(1, true),
            Change::GrantGone(GrantId(2)),
            Change::PrincipalGone(PRINCIPAL),
        ];
        let set = Revocations::default().with(&ended).unwrap();
        let words = [credential(b"t", false), grant(1, false), grant(3, false), credential(b"other", true)];
        let back: Vec<End> = words.iter().flat_map(|word| set.taken_back_by(word)).collect();
        let left = set.without(back).unwrap();
        let credentials = [&b"t"[..], b"other"].map(|token| left.credential(&KeyHash::of_token(token)));
        assert_eq!(credentials, [false, true]);
        assert_eq!([1, 2].map(|id| has_ended(&left, id)), [false, true]);
        assert!(left.principal(PRINCIPAL));
        let left = left.without([End::Principal(PRINCIPAL)]).unwrap();
        assert_eq!((left.principal(PRINCIPAL), left.len()), (false, 2));
        assert!(left.without([End::Principal(PRINCIPAL)]).is_none());
        assert!(has_ended(&set, 1), "the set that was changed is as it was");
    }

    #[test]
    fn a_number_that_names_another_right_is_another_row() {
        let (old, new) = (row(1, Scope::Any, true), row(1, Scope::Fleet(FleetId(3)), false));
        let set = Revocations::default().with_ends([End::of_grant(&old)]).unwrap();
        assert_eq!((set.grant(&old), set.grant(&new)), (true, false));
        assert_eq!(set.taken_back_by(&Change::Grant(new)).count(), 0);
        let both = set.with_ends([End::of_grant(&new)]).unwrap();
        assert_eq!((both.grant(&old), both.grant(&new), both.len()), (true, true, 2));
        // A word that names the number alone ends whatever it stands for, and one that it is live takes back all.
        let number = both.with(&[Change::GrantGone(GrantId(1))]).unwrap();
        assert!(number.grant(&row(1, Scope::Fleet(FleetId(4)), false)));
        let live = number.without(number.taken_back_by(&Change::Grant(new))).unwrap();
        assert_eq!((live.grant(&old), live.grant(&new)), (true, false));
        let none = number.without(number.ends_of_grant(GrantId(1))).unwrap();
        assert!(none.is_empty() && !none.grant(&old));
    }

    #[test]
    fn a_set_is_the_same_after_a_way_through_its_ends() {
        let (named, other) = (row(1, Scope::Any, true), row(1, Scope::Fleet(FleetId(3)), true));
        let set = Revocations::default()
            .with(&[credential(b"t", true), Change::GrantGone(GrantId(2)), Change::PrincipalGone(PRINCIPAL)])
            .and_then(|set| set.with_ends([End::of_grant(&named), End::of_grant(&other)]))
            .unwrap();
        let again = Revocations::default().with_ends(set.ends()).unwrap();
        let sorted = |set: &Revocations| set.ends().collect::<std::collections::BTreeSet<_>>();
        assert_eq!((sorted(&again), again.len()), (sorted(&set), 5));
        let empty = set.without(set.ends()).unwrap();
        assert_eq!((empty.len(), empty.ends().count()), (0, 0));
        assert!(empty.with_ends(set.ends()).is_some());
    }
}
