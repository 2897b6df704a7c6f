//! The guard judges as plain lists do, whatever was in force and whatever is read.

use std::collections::HashSet;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::authz::{
    Change, Credential, Device, DeviceId, DeviceUuid, Generation, Grant, GrantId, KeyHash, PortRange,
    PrincipalId, Scope,
};
use crate::config::{Bound, Config, Vpn};
use crate::store::{RowKey, Rows};

const NOW: UnixMillis = UnixMillis(100);

/// Small limits, so that random worlds fall on either side of them.
fn config() -> Config {
    let mut config = Config { vpn: Vpn::loopback(), ..Config::default() };
    let guard = &mut config.authz.guard;
    guard.max_bad_rows = Allowance { share: 0.1, rows: 2 };
    guard.max_loss = Allowance { share: 0.2, rows: 2 };
    guard.max_dangling = Allowance { share: 0.2, rows: 2 };
    guard.max_outside = Allowance { share: 0.2, rows: 2 };
    guard.bounds.grants = Bound { min: None, max: Some(14) };
    config
}

fn key(number: u8) -> KeyHash {
    KeyHash::of_token(&[number])
}

fn uuid(number: i64) -> DeviceUuid {
    DeviceUuid::parse(&format!("{number:032x}")).unwrap()
}

fn credential() -> impl Strategy<Value = Credential> {
    (0..12u8, 0..4i64, prop::option::of(80..130i64), prop::bool::weighted(0.2)).prop_map(
        |(number, principal, end, revoked)| Credential {
            key: key(number),
            principal: PrincipalId(principal),
            expires_at: end.map(UnixMillis),
            revoked,
        },
    )
}

fn grant() -> impl Strategy<Value = Grant> {
    (0..16i64, 0..4i64, prop::option::of(80..130i64), prop::bool::weighted(0.2)).prop_map(
        |(id, principal, end, revoked)| Grant {
            id: GrantId(id),
            principal: PrincipalId(principal),
            // Of the targets, rule `references` has nothing to say here: only of the principals.
            scope: Scope::Any,
            ports: PortRange::ANY,
            expires_at: end.map(UnixMillis),
            revoked,
        },
    )
}

fn device() -> impl Strategy<Value = Device> {
    // A uuid of its own for each id: what two of them do to each other is `unique`'s to tell.
    (0..12i64, prop::bool::weighted(0.2)).prop_map(|(id, is_outside)| Device {
        id: DeviceId(id),
        uuid: uuid(id),
        fleet: None,
        address: Some(IpAddr::from([if is_outside { 203 } else { 127 }, 0, 0, id as u8 + 1])),
        node: None,
        online: true,
        disputed: false,
    })
}

#[derive(Clone, Debug)]
struct World {
    credentials: Vec<Credential>,
    grants: Vec<Grant>,
    devices: Vec<Device>,
}

impl World {
    fn any() -> impl Strategy<Value = Self> {
        let credentials = prop::collection::vec(credential(), 0..14);
        let grants = prop::collection::vec(grant(), 0..18);
        let devices = prop::collection::vec(device(), 0..14);
        (credentials, grants, devices).prop_map(|(credentials, grants, devices)| Self {
            credentials,
            grants,
            devices,
        })
    }

    /// A world and what a read makes of it: some rows left out, some from another world on top.
    fn and_next() -> impl Strategy<Value = (Self, Self)> {
        (Self::any().prop_map(Self::once_each), Self::any(), prop::collection::vec(0..10u8, 18), 0..3usize)
            .prop_map(|(world, other, fates, more)| {
                let stays = |place: usize| fates[place % fates.len()] > 1;
                let mut next = world.clone();
                let mut place = 0;
                let mut keep = || {
                    place += 1;
                    stays(place)
                };
                next.credentials.retain(|_| keep());
                next.grants.retain(|_| keep());
                next.devices.retain(|_| keep());
                next.credentials.extend(other.credentials.into_iter().take(more));
                next.grants.extend(other.grants.into_iter().take(more));
                next.devices.extend(other.devices.into_iter().take(more));
                (world, next)
            })
    }

    /// Builds a candidate without the rows whose key another row has.
    fn once_each(mut self) -> Self {
        let mut seen = HashSet::new();
        self.credentials.retain(|row| seen.insert(RowKey::Credential(row.key)));
        self.grants.retain(|row| seen.insert(RowKey::Grant(row.id)));
        self.devices.retain(|row| seen.insert(RowKey::Device(row.id)));
        self
    }

    fn snapshot(&self) -> Snapshot {
        let Self { credentials, grants, devices } = self.clone();
        Snapshot::build(Generation(1), credentials, grants, devices)
    }

    fn rows(&self) -> Rows {
        let Self { credentials, grants, devices } = self.clone();
        Rows { credentials, grants, devices, ..Rows::default() }
    }

    fn live(&self) -> RowCounts {
        RowCounts {
            credentials: self.credentials.iter().filter(|row| !row.revoked).count(),
            grants: self.grants.iter().filter(|row| !row.revoked).count(),
            devices: self.devices.len(),
        }
    }
}

/// The rule that plain lists would hold by.
fn reference(before: &World, after: &World, ended: &[Change], bad_rows: usize) -> Option<Rule> {
    let distinct = after.clone().once_each();
    let rows = |world: &World| world.credentials.len() + world.grants.len() + world.devices.len();
    if bad_rows > 2 && bad_rows as f64 > 0.1 * rows(&distinct) as f64 {
        return Some(Rule::Decode);
    }
    if rows(&distinct) < rows(after) {
        return Some(Rule::Unique);
    }
    if after.grants.len() > 14 {
        return Some(Rule::Bounds);
    }
    let has_ended = |end: Option<UnixMillis>| end.is_some_and(|end| end <= NOW);
    let lost_credentials = before.credentials.iter().filter(|row| {
        let was_live = !row.revoked
            && !has_ended(row.expires_at)
            && !ended.contains(&Change::CredentialGone(row.key))
            && !ended.contains(&Change::PrincipalGone(row.principal));
        was_live && !after.credentials.iter().any(|other| other.key == row.key)
    });
    let lost_grants = before.grants.iter().filter(|row| {
        let was_live = !row.revoked
            && !has_ended(row.expires_at)
            && !ended.contains(&Change::GrantGone(row.id))
            && !ended.contains(&Change::PrincipalGone(row.principal));
        was_live && !after.grants.iter().any(|other| other.id == row.id)
    });
    let lost_devices =
        before.devices.iter().filter(|row| !after.devices.iter().any(|other| other.id == row.id));
    let live = before.live();
    for (lost, total) in [
        (lost_credentials.count(), live.credentials),
        (lost_grants.count(), live.grants),
        (lost_devices.count(), live.devices),
    ] {
        if lost > 0 && (lost * 2 > total || (lost > 2 && lost as f64 > 0.2 * total as f64)) {
            return Some(Rule::Loss);
        }
    }
    let holds_credential =
        |principal: PrincipalId| after.credentials.iter().any(|row| row.principal == principal);
    let held_another = |principal: PrincipalId| {
        before.credentials.iter().any(|row| {
            let is_given_away = |other: &Credential| other.key == row.key && other.principal != row.principal;
            row.principal == principal && after.credentials.iter().any(is_given_away)
        })
    };
    let dangling = after.grants.iter().filter(|row| {
        let is_live = !row.revoked
            && !has_ended(row.expires_at)
            && !ended.contains(&Change::GrantGone(row.id))
            && !ended.contains(&Change::PrincipalGone(row.principal));
        let has_moved =
            before.grants.iter().any(|other| other.id == row.id && other.principal != row.principal);
        is_live && !holds_credential(row.principal) && (has_moved || held_another(row.principal))
    });
    let dangling = dangling.count();
    if dangling > 2 && dangling as f64 > 0.2 * live.grants as f64 {
        return Some(Rule::References);
    }
    let is_outside = |row: &Device| row.address.is_some_and(|address| !address.is_loopback());
    let turned_outside = after.devices.iter().filter(|row| {
        is_outside(row) && !before.devices.iter().any(|other| other.id == row.id && is_outside(other))
    });
    let (outside, total) = (turned_outside.count(), live.devices);
    let is_too_many = outside > 2 && (outside as f64 > 0.2 * total as f64 || outside * 2 > total);
    is_too_many.then_some(Rule::Addresses)
}

fn ended() -> impl Strategy<Value = Vec<Change>> {
    let end = prop_oneof![
        (0..12u8).prop_map(|number| Change::CredentialGone(key(number))),
        (0..16i64).prop_map(|id| Change::GrantGone(GrantId(id))),
        (0..8i64).prop_map(|id| Change::PrincipalGone(PrincipalId(id))),
    ];
    prop::collection::vec(end, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_guard_judges_as_plain_lists_do(
        (before, after) in World::and_next(),
        ended in ended(),
        bad_rows in prop_oneof![4 => Just(0usize), 1 => 0..8usize],
    ) {
        let (in_force, store) = (before.snapshot(), after.snapshot());
        let none = Revocations::default();
        let revocations = none.with(&ended).unwrap_or(none);
        let verdict = Guard::new(&config()).judge(
            &Candidate {
                store: &store,
                difference: &Difference::between(&in_force, &store, &Touched::Everything),
                live: before.live(),
                revocations: &revocations,
                duplicates: &Duplicates::among_rows(&after.rows()),
                bad_rows,
                bad_examples: &[],
                read: ReadScope::Everything,
                unlocated: None,
                displaced: PeerAnswer::Agrees,
                now: NOW,
            },
            None,
        );
        let held_by = match verdict {
            Verdict::Hold(hold) => Some(hold.rule),
            Verdict::Publish | Verdict::Wait => None,
        };
        prop_assert_eq!(held_by, reference(&before, &after, &ended, bad_rows));
    }

    #[test]
    fn a_difference_leads_from_the_one_to_the_other(
        (before, after) in World::and_next(),
        twins in prop::collection::vec((0..12i64, 0..12i64), 0..3),
    ) {
        let mut after = after.once_each();
        // Devices that take over the uuids of others.
        for (id, other) in twins {
            after.devices.retain(|row| row.uuid != uuid(other));
            if let Some(row) = after.devices.iter_mut().find(|row| row.id == DeviceId(id)) {
                row.uuid = uuid(other);
            }
        }
        let (one, other) = (before.snapshot(), after.snapshot());
        let whole = Difference::between(&one, &other, &Touched::Everything);
        let mut touched = Touched::nothing();
        touched.add(whole.keys());
        let by_rows = Difference::between(&one, &other, &touched);
        prop_assert_eq!(whole.len(), by_rows.len());
        let led = one.apply(Generation(2), &whole.changes());
        prop_assert_eq!(led.row_counts(), other.row_counts());
        prop_assert!(Difference::between(&led, &other, &Touched::Everything).is_empty());
        prop_assert_eq!(whole.count_live(before.live()), after.live());
    }
}
