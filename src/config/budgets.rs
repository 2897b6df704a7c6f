//! `[authz.guard.budgets]`: numbers of rows that may change within the window, where they are not those of the guard.

use serde::Deserialize;

use super::Allowance;

/// Budgets that replace the guard's own, by the kind of change. Each counts the rows of one relation that changed in
/// that way within `authz.guard.window`. `None` leaves the guard's own, which grows with the relation.
#[derive(Clone, Copy, Debug, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budgets {
    /// Rows that say that they are revoked or expired.
    pub ended: Option<Allowance>,
    /// Rows that are not there any more.
    pub absent: Option<Allowance>,
    /// Rows that give less than before.
    pub narrowed: Option<Allowance>,
    /// Rows that are somebody else's.
    pub reassigned: Option<Allowance>,
    /// New rows.
    pub gained: Option<Allowance>,
    /// Rows that give more than before, or last longer.
    pub widened: Option<Allowance>,
    /// Devices with another address or node.
    pub moved: Option<Allowance>,
    /// Devices that go offline or lose their address.
    pub unlocated: Option<Allowance>,
    /// Rows that do not decode.
    pub undecodable: Option<Allowance>,
    /// Ends that the store recorded itself, row by row.
    pub explicit: Option<Allowance>,
}

impl Budgets {
    /// All budgets with their keys.
    pub const fn all(&self) -> [(&'static str, Option<Allowance>); 10] {
        [
            ("ended", self.ended),
            ("absent", self.absent),
            ("narrowed", self.narrowed),
            ("reassigned", self.reassigned),
            ("gained", self.gained),
            ("widened", self.widened),
            ("moved", self.moved),
            ("unlocated", self.unlocated),
            ("undecodable", self.undecodable),
            ("explicit", self.explicit),
        ]
    }
}
