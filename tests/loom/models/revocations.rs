//! A revocation is published while an engine thread decides: no decision after it allows.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use sluicegate_loom::authz::{
    Authority, Change, Credential, Decision, Device, DeviceId, DeviceUuid, Generation, Grant, GrantId,
    KeyHash, PortRange, PrincipalId, Query, Refusal, Revocations, Scope, Snapshot, UnixMillis, View,
};
use sluicegate_loom::engine::{EngineThread, Shared};
use sluicegate_loom::explore;

const NOW: UnixMillis = UnixMillis(1_000_000);
const UUID: &str = "0123456789abcdef0123456789abcdef";
const REVOKED: Decision = Decision::Refuse(Refusal::CredentialRevoked);

fn key() -> KeyHash {
    KeyHash::of_token(b"token")
}

/// The query of the one credential for the one device. The grant allows it.
fn query() -> Query {
    Query { subject: Some(key().into()), device: DeviceUuid::parse(UUID), port: 22 }
}

/// A snapshot that allows the query.
fn snapshot(generation: u64) -> Arc<Snapshot> {
    let principal = PrincipalId(1);
    let credential = Credential { key: key(), principal, expires_at: None, revoked: false };
    let (id, ports) = (GrantId(1), PortRange::ANY);
    let grant = Grant { id, principal, scope: Scope::Any, ports, expires_at: None, revoked: false };
    let device = Device {
        id: DeviceId(1),
        uuid: DeviceUuid::parse(UUID).unwrap(),
        fleet: None,
        address: Some([127, 0, 0, 1].into()),
        node: None,
        online: true,
        disputed: false,
    };
    Arc::new(Snapshot::build(Generation(generation), vec![credential], vec![grant], vec![device]))
}

/// Three views: the first snapshot with nothing revoked, then the second and again the first snapshot, both
/// with the credential revoked. They are built once, outside the models, so that loom does not explore how.
static VIEWS: LazyLock<[Arc<View>; 3]> = LazyLock::new(|| {
    let (first, second) = (snapshot(1), snapshot(2));
    let none = Arc::new(Revocations::default());
    let revoked = Arc::new(none.with(&[Change::CredentialGone(key())]).unwrap());
    let view = |snapshot: &Arc<Snapshot>, revocations: &Arc<Revocations>| {
        let (snapshot, revocations) = (Arc::clone(snapshot), Arc::clone(revocations));
        Arc::new(View { snapshot, revocations, previous: None })
    };
    [view(&first, &none), view(&second, &revoked), view(&first, &revoked)]
});

fn authority() -> Authority {
    let authority = Authority::new(Duration::from_secs(60), None);
    authority.publish(Arc::clone(&VIEWS[0]));
    authority.confirm(NOW);
    authority
}

#[test]
fn a_decision_that_begins_after_a_revocation_was_published_refuses() {
    LazyLock::force(&VIEWS);
    explore(|| {
        let authority = loom::sync::Arc::new(authority());
        // Set when the person who revoked has the reply that the revocation is in force.
        let is_done = loom::sync::Arc::new(AtomicBool::new(false));
        let engine = thread::spawn({
            let (authority, is_done) = (loom::sync::Arc::clone(&authority), loom::sync::Arc::clone(&is_done));
            move || {
                let was_done = is_done.load(Ordering::Acquire);
                let decision = authority.pin().decide(&query(), NOW);
                match decision {
                    Decision::Allow(_) => assert!(!was_done, "allowed after the revocation was in force"),
                    refused => assert_eq!(refused, REVOKED),
                }
            }
        });
        authority.publish(Arc::clone(&VIEWS[1]));
        is_done.store(true, Ordering::Release);
        engine.join().unwrap();
    });
}

#[test]
fn a_rollback_to_an_older_snapshot_does_not_allow_a_revoked_credential_again() {
    LazyLock::force(&VIEWS);
    explore(|| {
        let authority = loom::sync::Arc::new(authority());
        let engine = thread::spawn({
            let authority = loom::sync::Arc::clone(&authority);
            move || {
                let decisions = [(); 3].map(|()| authority.pin().decide(&query(), NOW));
                let refused = decisions.iter().skip_while(|decision| **decision != REVOKED);
                assert!(refused.into_iter().all(|decision| *decision == REVOKED), "{decisions:?}");
            }
        });
        authority.publish(Arc::clone(&VIEWS[1]));
        authority.publish(Arc::clone(&VIEWS[2]));
        engine.join().unwrap();
    });
}

#[test]
fn a_tunnel_is_rechecked_by_the_view_that_its_revocation_is_in() {
    LazyLock::force(&VIEWS);
    explore(|| {
        let shared = Shared::new(authority());
        let engine = thread::spawn({
            let shared = loom::sync::Arc::clone(&shared);
            move || {
                let mut engine = EngineThread::new(&shared);
                let decision = loop {
                    if let Some(decision) = engine.turn(&query(), NOW).recheck {
                        break decision;
                    }
                };
                assert_eq!(decision, REVOKED);
            }
        });
        // With a second wake-up, the thread can see the recheck before its own wake-up arrives.
        let nudger = thread::spawn({
            let shared = loom::sync::Arc::clone(&shared);
            move || shared.nudge()
        });
        shared.authority.publish(Arc::clone(&VIEWS[1]));
        shared.recheck();
        nudger.join().unwrap();
        engine.join().unwrap();
    });
}
