//! The claims to one place.

use std::collections::HashMap;
use std::ops::BitOr;

use arrayvec::ArrayVec;

use crate::authz::DeviceId;

/// Claims to a place that more than one device in force has, or that a held answer claims.
#[derive(Default)]
pub(super) struct Contest {
    claimants: Claimants,
    /// The device that an explicit word moved here last. It is kept only while there is a contest.
    owner: Option<DeviceId>,
}

/// The sources of a device's claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Claim(u8);

/// The devices in force at a place that are disputed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Nobody,
    /// All, except the place's owner where it is known.
    AllBut(Option<DeviceId>),
}

/// Usually there are two, and after a wrong answer there may be as many as devices.
enum Claimants {
    Few(ArrayVec<(DeviceId, Claim), FEW>),
    Many(HashMap<DeviceId, Claim>),
}

impl Contest {
    pub(super) fn add(&mut self, id: DeviceId, claim: Claim) {
        match self.claimants.get_mut(id) {
            Some(known) => *known = *known | claim,
            None => self.claimants.insert(id, claim),
        }
    }

    pub(super) fn remove(&mut self, id: DeviceId, claim: Claim) {
        let Some(known) = self.claimants.get_mut(id) else { return };
        *known = known.without(claim);
        let is_gone = known.0 == 0;
        if is_gone {
            self.claimants.remove(id);
        }
        if claim == Claim::IN_FORCE && self.owner == Some(id) {
            self.owner = None;
        }
    }

    /// Records that an explicit word has moved the device here.
    pub(super) fn give_to(&mut self, id: DeviceId) {
        self.owner = Some(id);
    }

    pub(super) fn has(&self, id: DeviceId, claim: Claim) -> bool {
        self.claimants.get(id).is_some_and(|known| known.without(claim) != known)
    }

    /// True if a device other than `id` claims the place.
    pub(super) fn has_other(&self, id: DeviceId) -> bool {
        self.claimants.len() > usize::from(self.claimants.get(id).is_some())
    }

    /// The device, if it is the only one, and by its row in force alone.
    pub(super) fn sole(&self) -> Option<DeviceId> {
        let (id, claim) = self.claimants.iter().next()?;
        (self.claimants.len() == 1 && claim == Claim::IN_FORCE).then_some(id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.claimants.len() == 0
    }

    pub(super) fn in_force(&self) -> impl Iterator<Item = DeviceId> {
        let in_force = |(_, claim): &(DeviceId, Claim)| claim.without(Claim::IN_FORCE) != *claim;
        self.claimants.iter().filter(in_force).map(|(id, _)| id)
    }

    pub(super) fn verdict(&self) -> Verdict {
        if self.claimants.len() < 2 { Verdict::Nobody } else { Verdict::AllBut(self.owner) }
    }
}

impl Claim {
    /// The device's row in force.
    pub(super) const IN_FORCE: Self = Self(1);
    /// An answer of the store that is held.
    pub(super) const PENDING: Self = Self(2);

    const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for Claim {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Claimants {
    fn len(&self) -> usize {
        match self {
            Self::Few(few) => few.len(),
            Self::Many(many) => many.len(),
        }
    }

    fn get(&self, id: DeviceId) -> Option<Claim> {
        match self {
            Self::Few(few) => few.iter().find(|(other, _)| *other == id).map(|(_, claim)| *claim),
            Self::Many(many) => many.get(&id).copied(),
        }
    }

    fn get_mut(&mut self, id: DeviceId) -> Option<&mut Claim> {
        match self {
            Self::Few(few) => few.iter_mut().find(|(other, _)| *other == id).map(|(_, claim)| claim),
            Self::Many(many) => many.get_mut(&id),
        }
    }

    /// Adds a claim of a device that has none.
    fn insert(&mut self, id: DeviceId, claim: Claim) {
        match self {
            Self::Few(few) if few.is_full() => {
                let others = few.drain(..);
                let many = others.chain([(id, claim)]).collect();
                *self = Self::Many(many);
            }
            Self::Few(few) => few.push((id, claim)),
            Self::Many(many) => _ = many.insert(id, claim),
        }
    }

    fn remove(&mut self, id: DeviceId) {
        match self {
            Self::Few(few) => few.retain(|(other, _)| *other != id),
            Self::Many(many) => {
                many.remove(&id);
                if many.len() <= FEW {
                    let few = many.drain().collect();
                    *self = Self::Few(few);
                }
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = (DeviceId, Claim)> {
        let (few, many) = match self {
            Self::Few(few) => (Some(few.iter().copied()), None),
            Self::Many(many) => (None, Some(many.iter().map(|(id, claim)| (*id, *claim)))),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten())
    }
}

impl Default for Claimants {
    fn default() -> Self {
        Self::Few(ArrayVec::new())
    }
}

/// Claimants that are kept without a table.
const FEW: usize = 2;
