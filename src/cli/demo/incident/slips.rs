//! Ways in which a query slips, each a small change that looks right in a review.

use std::fmt;

/// A view by which the relay reads a relation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Devices,
    Grants,
}

/// A changed query, and what is expected of it.
pub(super) struct Slip {
    pub name: &'static str,
    pub view: View,
    pub query: String,
    /// Group that the guard is to hold.
    pub group: &'static str,
    pub meanwhile: Meanwhile,
}

/// What a client gets while the guard holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Meanwhile {
    /// A tunnel, to the device that it asked for.
    Tunnel,
    /// 503: it cannot be told whose the address is.
    Disputed,
}

impl View {
    pub const ALL: [Self; 2] = [Self::Devices, Self::Grants];

    pub const fn true_query(self) -> &'static str {
        match self {
            Self::Devices => DEVICES_QUERY,
            Self::Grants => GRANTS_QUERY,
        }
    }

    /// SQL that puts `query` behind the view.
    pub fn replacement(self, query: &str) -> String {
        format!("BEGIN IMMEDIATE; DROP VIEW IF EXISTS {self}; CREATE VIEW {self} AS {query}; COMMIT;")
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Devices => "reachable_devices",
            Self::Grants => "rights",
        })
    }
}

/// The slips in the order of the demo.
pub(super) fn all() -> [Slip; 3] {
    let next = format!("(SELECT address FROM devices AS next WHERE next.id = devices.id % {DEVICES} + 1)");
    [
        Slip {
            name: "devices: the query finds none",
            view: View::Devices,
            // As in the incident, where an id was compared with a flag.
            query: format!("{DEVICES_QUERY} WHERE uuid = online"),
            group: "devices.absent",
            meanwhile: Meanwhile::Tunnel,
        },
        Slip {
            name: "grants: all read as revoked",
            view: View::Grants,
            query: GRANTS_QUERY.replace("IS NOT NULL AS revoked", "IS NULL AS revoked"),
            group: "grants.ended",
            meanwhile: Meanwhile::Tunnel,
        },
        Slip {
            name: "devices: each has another's IP",
            view: View::Devices,
            query: DEVICES_QUERY.replace("address,", &format!("{next} AS address,")),
            group: "devices.moved",
            meanwhile: Meanwhile::Disputed,
        },
    ]
}

const DEVICES_QUERY: &str = "SELECT id AS device, uuid, fleet, address, node, online FROM devices";

const GRANTS_QUERY: &str = "SELECT id AS grant_id, principal, scope, target, port_min, port_max, \
                            expires_at, revoked_at IS NOT NULL AS revoked FROM grants";

/// Devices of the installation, so few that a person can count them.
pub(super) const DEVICES: u8 = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slip_changes_its_query() {
        for slip in all() {
            assert_ne!(slip.query, slip.view.true_query(), "{}", slip.name);
        }
    }
}
