//! Grants, found by principal and scope, and by id where they change.

use std::ops::ControlFlow;

use super::grant_key::GrantKey;
use super::index::{Index, IndexEntry};
use super::packed_grants::{EndingGrant, LastingGrant, PackedKey};
use super::{Edit, Identified, LastWords, pack_all};
use crate::authz::table::{KeyHasher, Row, Sought, Table};
use crate::authz::{DeviceId, FleetId, Grant, GrantId, PrincipalId, Scope, UnixMillis};

#[derive(Clone)]
pub(in crate::authz) struct Grants {
    /// Most of them, in two thirds of the space that one with an end takes.
    lasting: Table<LastingGrant>,
    ending: Table<EndingGrant>,
    whole: Table<Grant>,
    index: Index<GrantId>,
}

/// Grants on their way from memory.
pub(in crate::authz) struct SoughtGrants<'a> {
    grants: &'a Grants,
    lasting: [Sought<'a, LastingGrant>; SCOPES],
    between: Between,
}

/// The principal and the device that grants are sought for.
#[derive(Clone, Copy)]
pub(in crate::authz) struct Between {
    pub(in crate::authz) principal: PrincipalId,
    pub(in crate::authz) device: DeviceId,
    pub(in crate::authz) fleet: Option<FleetId>,
}

impl Between {
    /// Returns the keys of all grants that may apply. Without a fleet, one of them is there twice, which changes no
    /// decision.
    #[inline]
    fn keys(self) -> [GrantKey; SCOPES] {
        let Self { principal, device, fleet } = self;
        let to = |scope| GrantKey { principal, scope };
        [to(Scope::Device(device)), to(fleet.map_or(Scope::Any, Scope::Fleet)), to(Scope::Any)]
    }
}

impl SoughtGrants<'_> {
    /// Shows grants to `visit`: every one that has not ended by `now`, and a few of those that have. Where `visit` breaks,
    /// those of the same scope that rank after the grant are of no use, and most of them are passed over.
    #[inline]
    pub(in crate::authz) fn visit(&self, now: UnixMillis, mut visit: impl FnMut(Grant) -> ControlFlow<()>) {
        let [device, fleet, any] = &self.lasting;
        let mut hits = device.hits() | fleet.hits() << 8 | any.hits() << 16;
        while hits != 0 {
            let bit = hits.trailing_zeros() as usize;
            hits &= hits - 1;
            if let Some(row) = self.lasting[(bit / 8) % 3].row(bit % 8) {
                // To stop early would cost more than the few rows that are left.
                let _goes_on = visit(row.unpack());
            }
        }
        if device.is_long() || fleet.is_long() || any.is_long() {
            self.visit_beyond(&mut visit);
        }
        if self.grants.has_others() {
            self.visit_others(now, &mut visit)
        }
    }

    #[cold]
    fn visit_beyond(&self, visit: &mut dyn FnMut(Grant) -> ControlFlow<()>) {
        for sought in &self.lasting {
            let _broke = sought.beyond().try_for_each(|row| visit(row.unpack()));
        }
    }

    #[inline(never)]
    fn visit_others(&self, now: UnixMillis, visit: &mut dyn FnMut(Grant) -> ControlFlow<()>) {
        for key in self.between.keys() {
            let ending = self.grants.ending.rows(PackedKey::pack_or_none(key));
            visit_by_rank(ending.map(EndingGrant::unpack), now, visit);
            visit_by_rank(self.grants.whole.rows(key).copied(), now, visit);
        }
    }
}

/// Shows grants of one key to `visit`. They come by rank, so that behind one that has ended all have.
fn visit_by_rank(
    grants: impl Iterator<Item = Grant>,
    now: UnixMillis,
    visit: &mut dyn FnMut(Grant) -> ControlFlow<()>,
) {
    let mut ended = 0;
    for grant in grants {
        ended += usize::from(grant.has_ended(now));
        if ended > ENDED_SHOWN_MAX || visit(grant).is_break() {
            return;
        }
    }
}

/// Ended grants of one principal and scope that a decision sees at most, for the reason of a refusal: with more, the
/// reason may be one that says less. Enough for what a person has been granted and lost, and some 100 ns.
pub(in crate::authz) const ENDED_SHOWN_MAX: usize = 32;

/// Number of the scopes that cover a device: itself, its fleet, any.
const SCOPES: usize = 3;

impl Grants {
    pub(in crate::authz) fn sized_for(rows: usize, hasher: KeyHasher) -> Self {
        Self {
            lasting: Table::sized_for(rows, hasher.clone()),
            ending: Table::sized_for(0, hasher.clone()),
            whole: Table::sized_for(0, hasher.clone()),
            index: Index::sized_for(rows, hasher),
        }
    }

    pub(in crate::authz) fn edit(&mut self, edits: Vec<Edit<Grant>>) {
        let LastWords { put, removed } = LastWords::of(edits);
        let (lasting, others) = pack_all(put, LastingGrant::pack);
        let (ending, whole) = pack_all(others, EndingGrant::pack);
        let mut entries = Vec::with_capacity(lasting.len() + ending.len() + whole.len());
        entries.extend(lasting.iter().map(|row| IndexEntry::new(row.id(), self.lasting.digest(row.key()))));
        entries.extend(ending.iter().map(|row| IndexEntry::new(row.id(), self.ending.digest(row.key()))));
        entries.extend(whole.iter().map(|row| IndexEntry::new(row.id, self.whole.digest(row.key()))));

        // A new version may have another principal or scope than the old one.
        let displaced = self.index.replace(entries, &removed);
        let (ids, suspects) = (displaced.ids, displaced.digests);
        self.lasting.replace(lasting, suspects.clone(), |row| ids.contains(&row.id()));
        self.ending.replace(ending, suspects.clone(), |row| ids.contains(&row.id()));
        self.whole.replace(whole, suspects, |row| ids.contains(&row.id));
    }

    pub(in crate::authz) fn get(&self, id: GrantId) -> Option<Grant> {
        let digest = self.index.get(id)?;
        let lasting = self.lasting.bucket(digest).iter().find(|row| row.id() == id).map(LastingGrant::unpack);
        let ending = || self.ending.bucket(digest).iter().find(|row| row.id() == id).map(EndingGrant::unpack);
        let whole = || self.whole.bucket(digest).iter().find(|row| row.id == id).copied();
        lasting.or_else(ending).or_else(whole)
    }

    /// Begins to fetch the grants that lead from a principal to a device.
    #[inline]
    pub(in crate::authz) fn seek(&self, between: Between) -> SoughtGrants<'_> {
        if self.has_others() {
            self.seek_others(between);
        }
        let [device, fleet, any] = between.keys();
        let lasting = |key| self.lasting.seek(PackedKey::pack_or_none(key));
        SoughtGrants { grants: self, lasting: [lasting(device), lasting(fleet), lasting(any)], between }
    }

    #[inline]
    fn has_others(&self) -> bool {
        !self.ending.is_empty() || !self.whole.is_empty()
    }

    #[inline(never)]
    fn seek_others(&self, between: Between) {
        for key in between.keys() {
            self.ending.seek(PackedKey::pack_or_none(key));
            self.whole.seek(key);
        }
    }

    pub(in crate::authz) fn iter(&self) -> impl Iterator<Item = Grant> {
        let lasting = self.lasting.iter().map(LastingGrant::unpack);
        let ending = self.ending.iter().map(EndingGrant::unpack);
        lasting.chain(ending).chain(self.whole.iter().copied())
    }

    pub(in crate::authz) fn len(&self) -> usize {
        self.index.len()
    }
}

impl Identified for Grant {
    type Id = GrantId;

    fn id(&self) -> GrantId {
        self.id
    }
}
