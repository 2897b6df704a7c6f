//! Decisions of a principal who has had many grants: those that have ended change no permission and cost next to nothing.

use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::select;

use super::super::relations::ENDED_SHOWN_MAX;
use super::*;
use crate::authz::{
    Change, Credential, Device, DeviceId, DeviceUuid, FleetId, Generation, GrantId, KeyHash, PortRange,
    PrincipalId, Scope,
};

const NOW: UnixMillis = UnixMillis(1_000);
const PRINCIPAL: PrincipalId = PrincipalId(1);
const PORTS: [(u16, u16); 3] = [(22, 22), (80, 443), (1, u16::MAX)];
/// Too large for a packed row.
const LARGE_ID: i64 = 1 << 60;

fn query(port: u16) -> Query {
    Query { subject: Some(key().into()), device: Some(uuid()), port }
}

fn key() -> KeyHash {
    KeyHash::of_token(b"token")
}

fn uuid() -> DeviceUuid {
    DeviceUuid::parse(&"ab".repeat(16)).unwrap()
}

fn snapshot(grants: &[Grant]) -> Snapshot {
    let credential = Credential { key: key(), principal: PRINCIPAL, expires_at: None, revoked: false };
    let device = Device {
        id: DeviceId(7),
        uuid: uuid(),
        fleet: Some(FleetId(3)),
        address: Some(IpAddr::from([10, 0, 0, 1])),
        node: None,
        online: true,
        disputed: false,
    };
    Snapshot::build(Generation(1), vec![credential], grants.to_vec(), vec![device])
}

fn grant(id: i64, ports: (u16, u16), expires_at: Option<i64>, revoked: bool) -> Grant {
    let ports = PortRange::new(ports.0, ports.1).unwrap();
    let expires_at = expires_at.map(UnixMillis);
    Grant { id: GrantId(id), principal: PRINCIPAL, scope: Scope::Any, ports, expires_at, revoked }
}

/// The decision, and the reason that says most, by a look at every row.
fn naive(grants: &[Grant], port: u16, revocations: &Revocations) -> Result<GrantId, Refusal> {
    let reason = |grant: &Grant| {
        if !grant.ports.contains(port) {
            Some(Refusal::PortNotGranted)
        } else if grant.revoked || revocations.grant(grant) {
            Some(Refusal::GrantRevoked)
        } else {
            grant.expires_at.is_some_and(|end| end <= NOW).then_some(Refusal::GrantExpired)
        }
    };
    let live = grants.iter().filter(|grant| reason(grant).is_none());
    let best = live
        .min_by_key(|grant| (std::cmp::Reverse(grant.expires_at.map_or(i64::MAX, |end| end.0)), grant.id));
    let refusal = || grants.iter().filter_map(reason).max_by_key(|reason| reason_rank(*reason));
    best.map(|grant| grant.id).ok_or_else(|| refusal().unwrap_or(Refusal::NoGrant))
}

fn decided(snapshot: &Snapshot, port: u16, revocations: &Revocations) -> Result<GrantId, Refusal> {
    let context = DecisionContext { revocations, node: None, now: NOW };
    let query = query(port);
    let decision = snapshot.decide(&query, context);
    let mut together = Vec::new();
    snapshot.decide_all(&[query; 3], context, |decision| together.push(decision));
    assert_eq!(together, vec![decision.clone(); 3]);
    let right = snapshot.decide_right(&query, context).map(|right| right.grant);
    let access = snapshot.grants_access(PRINCIPAL, uuid(), port, revocations, NOW);
    let permitted = snapshot.permitted(&query, context).map(|permitted| permitted.grant);
    assert_eq!((access, permitted), (right.is_ok(), right.ok()));
    match decision {
        Decision::Allow(route) => Ok(route.grant),
        Decision::Refuse(refusal) => Err(refusal),
        Decision::Undecided(undecided) => panic!("{undecided:?}"),
    }
}

fn grants() -> impl Strategy<Value = Vec<Grant>> {
    let scope = select(vec![Scope::Any, Scope::Fleet(FleetId(3)), Scope::Device(DeviceId(7))]);
    let end = select(vec![None, Some(-5), Some(10), Some(999), Some(1_000), Some(1_001), Some(5_000)]);
    let kinds = (scope, select(PORTS.to_vec()), end, prop::bool::weighted(0.4), prop::bool::weighted(0.1));
    // Of some kinds many: dozens of rows that share a key, most of them past.
    prop::collection::vec((kinds, 1..60_usize), 0..8).prop_map(|kinds| {
        let rows = kinds.into_iter().flat_map(|(kind, count)| std::iter::repeat_n(kind, count));
        (1..)
            .zip(rows)
            .map(|(id, (scope, ports, end, revoked, is_large))| {
                let id = if is_large { LARGE_ID + id } else { id };
                Grant { scope, ..grant(id, ports, end, revoked) }
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_decision_is_as_if_it_had_looked_at_every_grant(
        grants in grants(),
        ended in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        port in select(vec![22_u16, 80, 9_000]),
    ) {
        let tombstones = ended.iter().filter_map(|index| {
            let grant = if grants.is_empty() { None } else { Some(index.get(&grants)) };
            grant.map(crate::authz::End::of_grant)
        });
        let revocations = Revocations::default().with_ends(tombstones).unwrap_or_default();
        let (found, expected) = (decided(&snapshot(&grants), port, &revocations), naive(&grants, port, &revocations));
        let past = grants.iter().filter(|grant| grant.has_ended(NOW)).count();
        match (found, expected) {
            // The reason may say less than the best one, but has to be true of some grant.
            (Err(found), Err(best)) if past > ENDED_SHOWN_MAX => {
                prop_assert!(reason_rank(found) <= reason_rank(best));
                prop_assert!(grants.is_empty() || found != Refusal::NoGrant);
            }
            (found, expected) => prop_assert_eq!(found, expected),
        }
    }
}

#[test]
fn a_live_grant_is_found_behind_any_number_of_past_ones_and_of_live_ones_for_other_ports() {
    let none = Revocations::default();
    for live_end in [None, Some(1_001)] {
        let past = (1..5_000).map(|id| grant(id, PORTS[2], Some(id % 1_000), id % 2 == 0));
        let others = (5_000..6_000).map(|id| grant(id, PORTS[1], Some(9_000), false));
        let lasting = (6_000..7_000).map(|id| grant(id, PORTS[1], None, false));
        let mut all: Vec<_> = past.chain(others).chain(lasting).collect();
        assert_eq!(decided(&snapshot(&all), 22, &none), Err(Refusal::GrantExpired));
        all.push(grant(9_000, PORTS[0], live_end, false));
        assert_eq!(decided(&snapshot(&all), 22, &none), Ok(GrantId(9_000)));
    }
}

#[test]
fn the_reason_comes_from_a_bounded_number_of_past_grants() {
    let none = Revocations::default();
    let expired = |count: i64| (1..=count).map(|id| grant(id, PORTS[0], Some(10), false));
    let revoked = grant(5_000, PORTS[0], None, true);
    let bound = ENDED_SHOWN_MAX as i64;
    for (count, expected) in [(bound - 1, Refusal::GrantRevoked), (bound, Refusal::GrantExpired)] {
        let all: Vec<_> = expired(count).chain([revoked]).collect();
        assert_eq!(decided(&snapshot(&all), 22, &none), Err(expected), "{count}");
    }
}

#[test]
fn a_past_grant_is_found_by_its_number_and_its_neighbours_by_their_key() {
    let past: Vec<_> = (1..3_000).map(|id| grant(id, PORTS[2], Some(id), id % 3 == 0)).collect();
    let neighbours = (0..500).map(|target| Grant {
        scope: Scope::Device(DeviceId(target)),
        ..grant(10_000 + target, PORTS[2], Some(9_000), false)
    });
    let all: Vec<_> = past.iter().copied().chain(neighbours).collect();
    let snapshot = snapshot(&all);
    assert!(past.iter().all(|row| snapshot.grant(row.id) == Some(*row)));
    assert_eq!(decided(&snapshot, 22, &Revocations::default()), Ok(GrantId(10_007)));
    let fewer =
        snapshot.apply(Generation(2), &past.iter().map(|row| Change::GrantGone(row.id)).collect::<Vec<_>>());
    assert_eq!((fewer.row_counts().grants, fewer.grant(GrantId(5))), (500, None));
}
