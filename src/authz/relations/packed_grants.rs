//! Grants in 16 bytes, or 24 where they end: what nearly every grant fits in.

use super::grant_key::{GrantKey, GrantRank};
use super::packed_end::PackedEnd;
use crate::authz::table::Row;
use crate::authz::{DeviceId, FleetId, Grant, GrantId, PortRange, PrincipalId, Scope};

/// A principal and a scope in one word, compared and hashed as such.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PackedKey(u64);

impl PackedKey {
    /// `None` where a number is too large.
    fn pack(key: GrantKey) -> Option<Self> {
        let packed = Self::pack_or_none(key);
        (packed != Self::NONE).then_some(packed)
    }

    /// [`Self::NONE`] where a number is too large.
    #[inline]
    pub(super) fn pack_or_none(key: GrantKey) -> Self {
        let (kind, target) = match key.scope {
            Scope::Any => (KIND_ANY, 0),
            Scope::Fleet(fleet) => (KIND_FLEET, fleet.0 as u64),
            Scope::Device(device) => (KIND_DEVICE, device.0 as u64),
        };
        let principal = key.principal.0 as u64;
        let too_large = principal >> 32 | target >> TARGET_BITS;
        if too_large == 0 { Self(principal << 32 | kind << TARGET_BITS | target) } else { Self::NONE }
    }

    /// The key of no grant.
    const NONE: Self = Self(u64::MAX);

    #[inline]
    fn unpack(self) -> GrantKey {
        let target = (self.0 & ((1 << TARGET_BITS) - 1)) as i64;
        let scope = match (self.0 as u32 >> TARGET_BITS).into() {
            KIND_ANY => Scope::Any,
            KIND_FLEET => Scope::Fleet(FleetId(target)),
            _ => Scope::Device(DeviceId(target)),
        };
        GrantKey { principal: PrincipalId((self.0 >> 32) as i64), scope }
    }

    /// Splits the key into two halves: a row of whole words would be aligned to eight bytes.
    const fn halves(self) -> [u32; 2] {
        [self.0 as u32, (self.0 >> 32) as u32]
    }

    const fn of_halves([low, high]: [u32; 2]) -> Self {
        Self((high as u64) << 32 | low as u64)
    }
}

const KIND_ANY: u64 = 0;
const KIND_FLEET: u64 = 1;
const KIND_DEVICE: u64 = 2;

/// The kind takes the other two bits of a half.
const TARGET_BITS: u32 = 30;

/// A grant without an end.
#[derive(Clone, Copy)]
pub(super) struct LastingGrant {
    key: [u32; 2],
    id: u32,
    ports: PortRange,
}

impl LastingGrant {
    pub(super) fn pack(grant: &Grant) -> Option<Self> {
        let lasts = grant.expires_at.is_none() && !grant.revoked;
        let key = PackedKey::pack(grant.key())?;
        let id = grant.id.0.try_into().ok()?;
        lasts.then_some(Self { key: key.halves(), id, ports: grant.ports })
    }

    #[inline]
    pub(super) fn unpack(&self) -> Grant {
        let GrantKey { principal, scope } = self.key().unpack();
        Grant { id: self.id(), principal, scope, ports: self.ports, expires_at: None, revoked: false }
    }

    pub(super) fn id(&self) -> GrantId {
        GrantId(self.id.into())
    }
}

impl Row for LastingGrant {
    type Key = PackedKey;
    type Rank = u32;

    #[inline]
    fn key(&self) -> PackedKey {
        PackedKey::of_halves(self.key)
    }

    fn rank(&self) -> u32 {
        self.id
    }
}

/// A grant that expires or is revoked, or whose id is too large for a [`LastingGrant`].
#[derive(Clone, Copy)]
pub(super) struct EndingGrant {
    key: [u32; 2],
    ports: PortRange,
    expires_at: PackedEnd,
    /// The lowest byte first.
    id: [u8; 5],
    revoked: bool,
}

impl EndingGrant {
    pub(super) fn pack(grant: &Grant) -> Option<Self> {
        let key = PackedKey::pack(grant.key())?;
        let [id @ .., 0, 0, 0] = grant.id.0.to_le_bytes() else { return None };
        let expires_at = PackedEnd::pack(grant.expires_at)?;
        Some(Self { key: key.halves(), ports: grant.ports, expires_at, id, revoked: grant.revoked })
    }

    #[inline]
    pub(super) fn unpack(&self) -> Grant {
        let GrantKey { principal, scope } = self.key().unpack();
        let expires_at = self.expires_at.unpack();
        Grant { id: self.id(), principal, scope, ports: self.ports, expires_at, revoked: self.revoked }
    }

    pub(super) fn id(&self) -> GrantId {
        let [a, b, c, d, e] = self.id;
        GrantId(i64::from_le_bytes([a, b, c, d, e, 0, 0, 0]))
    }
}

impl Row for EndingGrant {
    type Key = PackedKey;
    type Rank = GrantRank;

    #[inline]
    fn key(&self) -> PackedKey {
        PackedKey::of_halves(self.key)
    }

    fn rank(&self) -> GrantRank {
        self.unpack().rank()
    }
}

const _: () = assert!(size_of::<LastingGrant>() == 16);
const _: () = assert!(size_of::<EndingGrant>() == 24);
