//! The control thread on a real store: what is written decides, and what goes wrong decides nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;
use rusqlite::Connection;
use sluicegate::authz::{
    Authority, Decision, DecisionContext, DeviceUuid, Generation, GrantId, KeyHash, PortRange, Query,
    Refusal, Undecided, UnixMillis, View,
};
use sluicegate::config::{self, Authz, Config, StoreUrl};
use sluicegate::control::{Control, ControlError, StoreAccess};
use sluicegate::store::admin::{DevicePatch, GrantTarget, NewDevice};
use sluicegate::store::{ReportQueue, StoreError};
use sluicegate::telemetry::AuditSender;

use crate::support::StoreFile;

const UUID: &str = "00112233445566778899aabbccddeeff";

/// Longest wait for a condition without a deadline of its own.
const PATIENCE: Duration = Duration::from_secs(20);

/// A store with principal `alice`, who may reach every port of the one device.
struct Store {
    file: StoreFile,
}

impl Store {
    fn new() -> Self {
        let mut file = StoreFile::new();
        file.admin
            .add_device(&NewDevice {
                uuid: uuid(),
                name: None,
                fleet: None,
                address: Some("127.0.0.1".parse().unwrap()),
                node: None,
                online: true,
            })
            .unwrap();
        file.admin.add_grant("alice", &GrantTarget::Device(uuid()), PortRange::ANY, None).unwrap();
        Self { file }
    }

    fn path(&self) -> PathBuf {
        self.file.path()
    }

    fn issue(&mut self) -> KeyHash {
        self.file.issue()
    }

    fn revoke(&mut self, key: KeyHash) {
        self.file.admin.revoke_credential(&key.credential_id().to_string()).unwrap();
    }

    /// Runs statements with the schema's checks off, as a person with the sqlite3 shell could.
    fn by_hand(&self, statements: &str) {
        let connection = Connection::open(self.path()).unwrap();
        connection.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON").unwrap();
        connection.execute_batch(statements).unwrap();
    }

    /// A control thread, and what `look` sees in each view that it publishes.
    fn watched<T: Send + 'static>(
        &self,
        look: impl Fn(&View) -> T + Send + 'static,
    ) -> (Control, Receiver<T>) {
        let config = Config::default();
        let authority = Arc::new(Authority::new(config.authz.max_stale, None));
        let (sender, seen) = crossbeam::channel::unbounded();
        let on_publish = {
            let authority = Arc::clone(&authority);
            move || {
                let pin = authority.pin();
                // Nobody looks any more once the test is over.
                let _ = sender.send(look(pin.get().unwrap()));
            }
        };
        let source = sqlite_access(self.path(), &Authz::default());
        (Control::start(source, authority, on_publish, AuditSender::disabled(), &config).unwrap(), seen)
    }

    fn node(&self) -> Node {
        self.node_with(&Authz::default(), || {})
    }

    fn node_with(&self, config: &Authz, on_publish: impl Fn() + Send + 'static) -> Node {
        let authority = Arc::new(Authority::new(config.max_stale, None));
        let source = sqlite_access(self.path(), config);
        let config = Config { authz: config.clone(), ..Config::default() };
        let control =
            Control::start(source, Arc::clone(&authority), on_publish, AuditSender::disabled(), &config)
                .unwrap();
        Node { authority, control }
    }
}

/// A control thread and what it publishes to.
struct Node {
    authority: Arc<Authority>,
    control: Control,
}

impl Node {
    fn decide(&self, key: KeyHash) -> Decision {
        let query = Query { subject: Some(key.into()), device: Some(uuid()), port: 80 };
        self.authority.pin().decide(&query, UnixMillis::now())
    }

    fn allows(&self, key: KeyHash) -> bool {
        matches!(self.decide(key), Decision::Allow(_))
    }

    fn refuses(&self, key: KeyHash, refusal: Refusal) -> bool {
        self.decide(key) == Decision::Refuse(refusal)
    }

    fn generation(&self) -> Generation {
        self.authority.pin().get().unwrap().snapshot.generation()
    }

    fn store_is_lost(&self) -> bool {
        self.control.status().get().last_error.is_some()
    }
}

fn sqlite_access(path: PathBuf, authz: &Authz) -> StoreAccess {
    let store = config::Store { url: StoreUrl::Sqlite(path), ..config::Store::default() };
    let config = Config { store, authz: authz.clone(), ..Config::default() };
    StoreAccess::of(&config, &ReportQueue::default())
}

fn uuid() -> DeviceUuid {
    DeviceUuid::parse(UUID).unwrap()
}

/// Waits until `condition` holds, and returns the time that it took.
fn wait_for(what: &str, condition: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    start.elapsed()
}

#[test]
fn what_is_in_the_store_at_start_decides_at_once() {
    let mut store = Store::new();
    let (live, revoked) = (store.issue(), store.issue());
    store.revoke(revoked);
    let published = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&published);

    let node = store.node_with(&Authz::default(), move || {
        count.fetch_add(1, Ordering::Relaxed);
    });

    assert!(node.allows(live));
    assert!(node.refuses(revoked, Refusal::CredentialRevoked));
    assert_eq!((node.generation(), published.load(Ordering::Relaxed)), (Generation(1), 1));
    let status = node.control.status().get();
    assert_eq!((status.rows.credentials, status.rows.grants, status.rows.devices), (2, 1, 1));
    assert!(status.store.starts_with("sqlite:") && status.last_error.is_none());
}

#[test]
fn a_token_works_and_a_revocation_holds_within_250_ms() {
    let mut store = Store::new();
    let node = store.node();
    // This machine may be busy with other tests for once; it is not three times.
    let slowest_of = |rounds: usize, store: &mut Store| {
        let mut slowest = Duration::ZERO;
        for _ in 0..rounds {
            let key = store.issue();
            slowest = slowest.max(wait_for("the token works", || node.allows(key)));
            store.revoke(key);
            let revoked = || node.refuses(key, Refusal::CredentialRevoked);
            slowest = slowest.max(wait_for("the token is refused", revoked));
        }
        slowest
    };
    let slowest = [(); 3].map(|()| slowest_of(2, &mut store)).into_iter().min().unwrap();
    assert!(slowest < Duration::from_millis(250), "{slowest:?}");
}

#[test]
fn every_change_decides() {
    let mut store = Store::new();
    let key = store.issue();
    let node = store.node();
    assert!(node.allows(key));

    let offline = DevicePatch { online: Some(false), ..DevicePatch::default() };
    store.file.admin.set_device(uuid(), &offline).unwrap();
    wait_for("the device is offline", || node.refuses(key, Refusal::DeviceOffline));

    store.file.admin.revoke_grant(GrantId(1)).unwrap();
    wait_for("the grant is revoked", || node.refuses(key, Refusal::GrantRevoked));

    store.file.admin.remove_device(uuid()).unwrap();
    wait_for("the device is gone", || node.refuses(key, Refusal::DeviceUnknown));

    store.by_hand("UPDATE principals SET removed_at = 1");
    let ended = [Refusal::CredentialRevoked, Refusal::PrincipalRevoked];
    wait_for("the principal is gone", || ended.iter().any(|refusal| node.refuses(key, *refusal)));
}

#[test]
fn a_publication_is_told_after_it_is_in_force() {
    let mut store = Store::new();
    let key = store.issue();
    let refused = Arc::new(AtomicBool::new(false));
    let authority = Arc::new(Authority::new(Duration::from_secs(60), None));
    let on_publish = {
        let (refused, authority) = (Arc::clone(&refused), Arc::clone(&authority));
        move || {
            let query = Query { subject: Some(key.into()), device: Some(uuid()), port: 80 };
            let decision = authority.pin().decide(&query, UnixMillis::now());
            if decision == Decision::Refuse(Refusal::CredentialRevoked) {
                refused.store(true, Ordering::Relaxed);
            }
        }
    };
    let source = sqlite_access(store.path(), &Authz::default());
    let _control =
        Control::start(source, authority, on_publish, AuditSender::disabled(), &Config::default()).unwrap();

    store.revoke(key);

    wait_for("the callback sees the revocation", || refused.load(Ordering::Relaxed));
}

#[test]
fn a_lost_store_leaves_the_last_snapshot_in_force() {
    let mut store = Store::new();
    let (known, revoked, unknown) = (store.issue(), store.issue(), KeyHash::of_token(b"unknown"));
    store.revoke(revoked);
    let node = store.node();
    assert!(node.refuses(unknown, Refusal::CredentialUnknown));

    let aside = store.file.folder.path().join("aside.db");
    std::fs::rename(store.path(), &aside).unwrap();
    wait_for("the loss is noticed", || node.store_is_lost());

    assert!(node.allows(known));
    assert!(node.refuses(revoked, Refusal::CredentialRevoked));
    assert_eq!(node.decide(unknown), Decision::Undecided(Undecided::StoreUnreachable));
    let error = node.control.status().get().last_error.unwrap();
    assert!(error.contains("store init"), "{error}");

    std::fs::rename(&aside, store.path()).unwrap();
    wait_for("the store is back", || !node.store_is_lost());
    assert!(node.refuses(unknown, Refusal::CredentialUnknown));
    let later = store.issue();
    wait_for("changes are read again", || node.allows(later));
}

#[test]
fn damage_to_a_running_store_decides_nothing() {
    let mut store = Store::new();
    let key = store.issue();
    let node = store.node();
    let damaged = store.file.folder.path().join("damaged.db");
    std::fs::write(&damaged, vec![0xa5; 65_536]).unwrap();
    std::fs::rename(&damaged, store.path()).unwrap();
    wait_for("the damage is noticed", || node.store_is_lost());
    assert!(node.allows(key));
    let error = node.control.status().get().last_error.unwrap();
    assert!(error.contains("was replaced") && error.contains("restore the store again"), "{error}");
}

#[test]
fn a_snapshot_that_nobody_confirms_goes_stale() {
    let mut store = Store::new();
    let key = store.issue();
    let config = Authz { max_stale: Duration::from_millis(1_500), ..Authz::default() };
    let node = store.node_with(&config, || {});
    std::thread::sleep(Duration::from_millis(2_000));
    assert!(node.allows(key), "a quiet store confirms too");
    std::fs::remove_file(store.path()).unwrap();
    wait_for("the snapshot is stale", || node.decide(key) == Decision::Undecided(Undecided::Stale));
}

#[test]
fn a_row_that_turns_bad_keeps_its_last_good_version_through_full_reads() {
    let mut store = Store::new();
    let key = store.issue();
    let config =
        Authz { reconcile: Duration::from_millis(20), refresh: Duration::from_millis(5), ..Authz::default() };
    let node = store.node_with(&config, || {});

    store.by_hand(
        "UPDATE devices SET address = 'nowhere';
        UPDATE grants SET port_min = 0;
        UPDATE credentials SET expires_at = NULL, principal = 1;",
    );
    wait_for("two rows are quarantined", || node.control.status().get().quarantined == 2);
    let reads = || node.control.status().get().reads_of_everything;
    let seen = reads();
    wait_for("two more full reads", || reads() >= seen + 2);
    assert!(node.allows(key), "{:?}", node.decide(key));

    store.by_hand("UPDATE grants SET revoked_at = 1");
    let ended = [Refusal::GrantRevoked, Refusal::NoGrant];
    wait_for("a bad row can be revoked", || ended.iter().any(|refusal| node.refuses(key, *refusal)));
    store.by_hand("UPDATE devices SET address = '127.0.0.2'; DELETE FROM grants");
    wait_for("no row is bad any more", || node.control.status().get().quarantined == 0);
}

#[test]
fn a_full_read_finds_what_no_outbox_told() {
    let mut store = Store::new();
    let key = store.issue();
    let config = Authz { reconcile: Duration::from_millis(50), ..Authz::default() };
    let node = store.node_with(&config, || {});
    store.by_hand("DROP TRIGGER grants_updated; UPDATE grants SET revoked_at = 1");
    wait_for("the revocation is found", || node.refuses(key, Refusal::GrantRevoked));
}

#[test]
fn a_revocation_that_the_store_takes_back_is_taken_back() {
    let mut store = Store::new();
    let key = store.issue();
    let node = store.node();
    store.revoke(key);
    wait_for("the token is refused", || node.refuses(key, Refusal::CredentialRevoked));
    store.by_hand("DROP TRIGGER credentials_stay_revoked; UPDATE credentials SET revoked_at = NULL");
    wait_for("the token works again", || node.allows(key));
}

#[test]
fn a_long_list_of_changes_is_one_publication_with_what_has_ended() {
    let mut store = Store::new();
    let key = store.issue();
    let (_control, seen) = store.watched(move |view| {
        let is_revoked = view.snapshot.credential(&key).is_some_and(|row| row.revoked);
        (view.snapshot.generation().0, is_revoked, view.snapshot.row_counts().devices)
    });

    store.by_hand(
        "BEGIN;
         UPDATE credentials SET revoked_at = 1;
         INSERT INTO devices (uuid, created_at)
            WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n <= 1000)
            SELECT printf('%032x', n), 1 FROM numbers;
         COMMIT",
    );

    let seen: Vec<_> = (0..2).map(|_| seen.recv_timeout(PATIENCE).unwrap()).collect();
    assert_eq!(seen, [(1, false, 1), (2, true, 1_002)]);
}

#[test]
fn a_right_that_is_replaced_in_one_transaction_never_looks_ended() {
    let mut store = Store::new();
    let key = store.issue();
    let (_control, seen) = store.watched(move |view| {
        let query = Query { subject: Some(key.into()), device: Some(uuid()), port: 80 };
        let context = DecisionContext { revocations: &view.revocations, node: None, now: UnixMillis::now() };
        let decision = view.snapshot.decide(&query, context);
        (view.snapshot.generation().0, matches!(decision, Decision::Allow(_)))
    });

    store.by_hand(
        "BEGIN;
         UPDATE grants SET revoked_at = 1;
         INSERT INTO grants (principal, scope, port_min, port_max, created_at) VALUES (1, 'any', 1, 65535, 1);
         COMMIT",
    );

    let seen: Vec<_> = (0..2).map(|_| seen.recv_timeout(PATIENCE).unwrap()).collect();
    assert_eq!(seen, [(1, true), (2, true)]);
}

#[test]
fn a_fault_in_a_refresh_is_survived_and_nothing_is_missed() {
    let mut store = Store::new();
    let revoked = store.issue();
    let faulty = Arc::new(AtomicBool::new(false));
    let on_publish = {
        let faulty = Arc::clone(&faulty);
        move || assert!(!faulty.swap(false, Ordering::Relaxed), "a fault made on purpose")
    };
    let node = store.node_with(&Authz::default(), on_publish);

    // The fault comes with the first publication, the revocation, and the rest of the read is lost by it.
    faulty.store(true, Ordering::Relaxed);
    let added = KeyHash::of_token(b"added");
    store.by_hand(&format!(
        "BEGIN; UPDATE credentials SET revoked_at = 1;
        INSERT INTO credentials (key_sha256, principal, created_at) VALUES (x'{}', 1, 0); COMMIT",
        hex::encode(added.as_bytes())
    ));

    wait_for("the token is refused", || node.refuses(revoked, Refusal::CredentialRevoked));
    wait_for("the added token works", || node.allows(added));
    assert!(!faulty.load(Ordering::Relaxed), "there was a fault");
    wait_for("the store is confirmed again", || !node.store_is_lost());
    let later = store.issue();
    wait_for("a later token works", || node.allows(later));
}

#[test]
fn a_node_without_a_store_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let source = sqlite_access(folder.path().join("none.db"), &Authz::default());
    let authority = Arc::new(Authority::new(Duration::from_secs(60), None));
    let error =
        Control::start(source, authority, || {}, AuditSender::disabled(), &Config::default()).err().unwrap();
    assert!(matches!(error, ControlError::Store(StoreError::Missing { .. })), "{error}");
}

#[test]
fn replaced_views_are_freed() {
    let mut store = Store::new();
    // A probation would keep what it compares with.
    let guard = config::GuardConfig { probation: Duration::ZERO, ..config::GuardConfig::default() };
    let config = Authz { refresh: Duration::from_millis(5), guard, ..Authz::default() };
    let node = store.node_with(&config, || {});
    let first = Arc::downgrade(&node.authority.pin().get().unwrap().snapshot);
    let key = store.issue();
    wait_for("the token works", || node.allows(key));
    wait_for("the first snapshot is freed", || first.upgrade().is_none());
}

#[test]
fn dropping_the_control_stops_its_thread() {
    let store = Store::new();
    let node = store.node();
    let status = node.control.status();
    drop(node.control);
    let seen = status.get().confirmed_at;
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(status.get().confirmed_at, seen);
}
