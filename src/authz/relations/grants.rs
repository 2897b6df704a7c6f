//! Grants, found by principal and scope, and by id where they change.

use std::cmp::Reverse;
use std::hash::{Hash, Hasher};

use super::index::{Entry, Index};
use super::packed_end::PackedEnd;
use super::{Edit, Identified, LastWords, pack_all};
use crate::authz::table::{KeyHasher, Row, Sought, Table};
use crate::authz::{DeviceId, FleetId, Grant, GrantId, PortRange, PrincipalId, Scope, UnixMillis};

#[derive(Clone)]
pub(in crate::authz) struct Grants {
    packed: Table<PackedGrant>,
    whole: Table<Grant>,
    index: Index<GrantId>,
}

/// What grants are looked up by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::authz) struct GrantKey {
    pub(in crate::authz) principal: PrincipalId,
    pub(in crate::authz) scope: Scope,
}

/// Orders grants that lead to the same devices: the one that lasts longest first, and of those the oldest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::authz) struct GrantRank {
    expires: bool,
    expires_at: Reverse<Option<UnixMillis>>,
    id: GrantId,
}

/// Grants on their way from memory.
pub(in crate::authz) struct SoughtGrants<'a> {
    packed: Sought<'a, PackedGrant>,
    whole: Sought<'a, Grant>,
}

impl<'a> SoughtGrants<'a> {
    /// By rank, those that are packed before the others.
    #[inline]
    pub(in crate::authz) fn rows(self) -> impl Iterator<Item = Grant> + use<'a> {
        self.packed.rows().map(PackedGrant::unpack).chain(self.whole.rows().copied())
    }
}

impl Grants {
    pub(in crate::authz) fn sized_for(rows: usize, hasher: KeyHasher) -> Self {
        Self {
            packed: Table::sized_for(rows, hasher.clone()),
            whole: Table::sized_for(0, hasher.clone()),
            index: Index::sized_for(rows, hasher),
        }
    }

    pub(in crate::authz) fn edit(&mut self, edits: Vec<Edit<Grant>>) {
        let LastWords { put, removed } = LastWords::of(edits);
        let entries = put.iter().map(|grant| Entry::new(grant.id, self.packed.digest(grant.key())));
        // A new version may have another principal or scope than the old one.
        let displaced = self.index.replace(entries.collect(), &removed);
        let (packed, whole) = pack_all(put, PackedGrant::pack);
        let (ids, suspects) = (displaced.ids, displaced.digests);
        self.packed.replace(packed, suspects.clone(), |row| ids.contains(&row.id()));
        self.whole.replace(whole, suspects, |row| ids.contains(&row.id));
    }

    pub(in crate::authz) fn get(&self, id: GrantId) -> Option<Grant> {
        let digest = self.index.get(id)?;
        let packed = self.packed.bucket(digest).iter().find(|row| row.id() == id).map(PackedGrant::unpack);
        packed.or_else(|| self.whole.bucket(digest).iter().find(|row| row.id == id).copied())
    }

    /// Has the grants with `key` fetched.
    #[inline]
    pub(in crate::authz) fn seek(&self, key: GrantKey) -> SoughtGrants<'_> {
        SoughtGrants { packed: self.packed.seek(key), whole: self.whole.seek(key) }
    }

    pub(in crate::authz) fn iter(&self) -> impl Iterator<Item = Grant> {
        self.packed.iter().map(PackedGrant::unpack).chain(self.whole.iter().copied())
    }

    pub(in crate::authz) fn len(&self) -> usize {
        self.index.len()
    }
}

impl Grant {
    pub(in crate::authz) fn rank(&self) -> GrantRank {
        let expires_at = self.expires_at;
        GrantRank { expires: expires_at.is_some(), expires_at: Reverse(expires_at), id: self.id }
    }
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

#[derive(Clone, Copy)]
struct PackedGrant {
    principal: u32,
    /// 0 for the scope `any`.
    target: u32,
    ports: PortRange,
    expires_at: PackedEnd,
    /// The lowest byte first.
    id: [u8; 5],
    kind: PackedKind,
}

/// A scope without its target, and whether the grant is revoked.
#[derive(Clone, Copy)]
#[repr(u8)]
enum PackedKind {
    Any,
    Fleet,
    Device,
    RevokedAny,
    RevokedFleet,
    RevokedDevice,
}

impl PackedGrant {
    fn pack(grant: &Grant) -> Option<Self> {
        let (kind, target) = match (grant.scope, grant.revoked) {
            (Scope::Any, false) => (PackedKind::Any, 0),
            (Scope::Any, true) => (PackedKind::RevokedAny, 0),
            (Scope::Fleet(fleet), false) => (PackedKind::Fleet, fleet.0),
            (Scope::Fleet(fleet), true) => (PackedKind::RevokedFleet, fleet.0),
            (Scope::Device(device), false) => (PackedKind::Device, device.0),
            (Scope::Device(device), true) => (PackedKind::RevokedDevice, device.0),
        };
        let [id @ .., 0, 0, 0] = grant.id.0.to_le_bytes() else { return None };
        Some(Self {
            principal: grant.principal.0.try_into().ok()?,
            target: target.try_into().ok()?,
            ports: grant.ports,
            expires_at: PackedEnd::pack(grant.expires_at)?,
            id,
            kind,
        })
    }

    fn unpack(&self) -> Grant {
        Grant {
            id: self.id(),
            principal: PrincipalId(self.principal.into()),
            scope: self.scope(),
            ports: self.ports,
            expires_at: self.expires_at.unpack(),
            revoked: self.kind as u8 >= PackedKind::RevokedAny as u8,
        }
    }

    fn id(&self) -> GrantId {
        let [a, b, c, d, e] = self.id;
        GrantId(i64::from_le_bytes([a, b, c, d, e, 0, 0, 0]))
    }

    fn scope(&self) -> Scope {
        let target = i64::from(self.target);
        match self.kind {
            PackedKind::Any | PackedKind::RevokedAny => Scope::Any,
            PackedKind::Fleet | PackedKind::RevokedFleet => Scope::Fleet(FleetId(target)),
            PackedKind::Device | PackedKind::RevokedDevice => Scope::Device(DeviceId(target)),
        }
    }
}

impl Row for PackedGrant {
    type Key = GrantKey;
    type Rank = GrantRank;

    fn key(&self) -> GrantKey {
        GrantKey { principal: PrincipalId(self.principal.into()), scope: self.scope() }
    }

    fn rank(&self) -> GrantRank {
        self.unpack().rank()
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

impl Identified for Grant {
    type Id = GrantId;

    fn id(&self) -> GrantId {
        self.id
    }
}

const _: () = assert!(size_of::<PackedGrant>() == 24);
