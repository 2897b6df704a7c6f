//! An installation of any size in a real store, and a control thread on it with nothing in between.
//!
//! Tests break the store as a person, a job or a changed query would: a relation's table can be put behind
//! a view, which then is what the relay's query reads.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use sluicegate::authz::{Authority, Decision, DecisionLog, DeviceUuid, KeyHash, Query, UnixMillis};
use sluicegate::config::{self, Authz, Config, StoreUrl, Vpn};
use sluicegate::control::{Control, ControlError, ControlStatus, Rule};
use sluicegate::store;
use sluicegate::store::sqlite;
use sluicegate::telemetry::AuditSender;
use tempfile::TempDir;

use super::wait_for;

/// Device `n` at 127.1.x.y; one grant on it, held by principal `n % principals`; one credential for each.
pub struct Installation {
    folder: TempDir,
    pub devices: usize,
    pub principals: usize,
}

/// A control thread on an installation, and what it publishes to. Stands where an engine thread does.
pub struct Judged {
    pub authority: Arc<Authority>,
    decision_log: Arc<DecisionLog>,
    pub control: Control,
    devices: usize,
    principals: usize,
}

impl Installation {
    pub fn new(devices: usize) -> Self {
        let installation =
            Self { folder: tempfile::tempdir().unwrap(), devices, principals: (devices / 10).max(3) };
        sqlite::init(&installation.store_path()).unwrap();
        let mut sql = String::from("BEGIN;");
        for n in 0..installation.principals {
            let id = n + 1;
            let key = hex::encode(Self::key(n).as_bytes());
            sql += &format!(
                "INSERT INTO principals (id, name, created_at) VALUES ({id}, 'p{n}', 0);
                INSERT INTO credentials (key_sha256, principal, created_at) VALUES (x'{key}', {id}, 0);"
            );
        }
        for n in 0..devices {
            let (id, uuid, address) = (n + 1, Self::uuid(n), Self::address(n));
            let holder = n % installation.principals + 1;
            sql += &format!(
                "INSERT INTO devices (id, uuid, address, created_at) VALUES ({id}, '{uuid}', '{address}', 0);
                INSERT INTO grants (principal, scope, target, port_min, port_max, created_at)
                    VALUES ({holder}, 'device', {id}, 1, 65535, 0);"
            );
        }
        installation.sql(&(sql + "COMMIT"));
        installation
    }

    pub fn key(principal: usize) -> KeyHash {
        KeyHash::of_token(format!("token-{principal}").as_bytes())
    }

    pub fn uuid(device: usize) -> DeviceUuid {
        DeviceUuid::parse(&format!("{:032x}", 0xd00d_0000 + device)).unwrap()
    }

    pub fn address(device: usize) -> String {
        format!("127.1.{}.{}", device / 250, device % 250 + 1)
    }

    pub fn store_path(&self) -> PathBuf {
        self.folder.path().join("store.db")
    }

    pub fn state_folder(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Runs statements with constraints off, like a person with the sqlite3 shell.
    pub fn sql(&self, statements: &str) {
        let connection = Connection::open(self.store_path()).unwrap();
        connection.busy_timeout(Duration::from_secs(20)).unwrap();
        connection.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON").unwrap();
        connection.execute_batch(statements).unwrap();
    }

    /// Puts a view in the place of a table: the relay's query then reads what `select` gives from `relation_table`. The
    /// outbox records nothing. No read sees the store between the two statements.
    pub fn replace_query(&self, relation: &str, select: &str) {
        self.sql(&format!(
            "BEGIN; ALTER TABLE {relation} RENAME TO {relation}_table;
            CREATE VIEW {relation} AS {select}; COMMIT"
        ));
    }

    /// The true query again.
    pub fn restore_query(&self, relation: &str) {
        self.sql(&format!(
            "BEGIN; DROP VIEW {relation}; ALTER TABLE {relation}_table RENAME TO {relation}; COMMIT"
        ));
    }

    /// Reads often and whole, so that what no outbox tells is found at once.
    pub fn start(&self) -> Judged {
        self.start_with(|_| {})
    }

    pub fn start_with(&self, configure: impl FnOnce(&mut Config)) -> Judged {
        self.try_start(configure).unwrap()
    }

    pub fn try_start(&self, configure: impl FnOnce(&mut Config)) -> Result<Judged, ControlError> {
        let authz = Authz {
            refresh: Duration::from_millis(10),
            reconcile: Duration::from_millis(50),
            ..Authz::default()
        };
        let mut config = Config { authz, vpn: Vpn::loopback(), ..Config::default() };
        configure(&mut config);
        let authority = Arc::new(Authority::new(config.authz.max_stale, config.vpn.node.as_deref()));
        let url = StoreUrl::Sqlite(self.store_path());
        let source = store::source(&config::Store { url, ..config::Store::default() }, &config.authz);
        let control =
            Control::start(source, Arc::clone(&authority), || {}, AuditSender::disabled(), &config)?;
        let decision_log = authority.decision_log();
        Ok(Judged { authority, decision_log, control, devices: self.devices, principals: self.principals })
    }
}

impl Judged {
    pub fn status(&self) -> ControlStatus {
        self.control.status().get()
    }

    /// The decision for the holder of the grant on `device`.
    pub fn decide(&self, device: usize) -> Decision {
        self.authority.pin().decide(&self.query(device), UnixMillis::now())
    }

    /// The holder of the grant on `device` asks for it, as a client does.
    pub fn ask(&self, device: usize) -> Decision {
        let (view, query, now) = (self.authority.pin(), self.query(device), UnixMillis::now());
        let decision = view.decide(&query, now);
        self.decision_log.record(&view, &query, &decision, now);
        decision
    }

    fn query(&self, device: usize) -> Query {
        let subject = Some(Installation::key(device % self.principals).into());
        Query { subject, device: Some(Installation::uuid(device)), port: 22 }
    }

    pub fn allows(&self, device: usize) -> bool {
        matches!(self.decide(device), Decision::Allow(_))
    }

    /// Devices that can be reached by whoever holds the grant.
    pub fn allowed(&self) -> usize {
        (0..self.devices).filter(|device| self.allows(*device)).count()
    }

    pub fn held_by(&self) -> Option<Rule> {
        self.status().hold.map(|held| held.hold.rule)
    }

    /// Waits for a hold, whichever; says what it says.
    pub fn hold(&self) -> (Rule, String) {
        let hold = wait_for(|| self.status().hold).expect("the guard never held").hold;
        (hold.rule, hold.to_string())
    }

    pub fn heals(&self) -> bool {
        wait_for(|| self.held_by().is_none().then_some(())).is_some()
    }

    pub fn comes_to(&self, condition: impl Fn(&Self) -> bool) -> bool {
        wait_for(|| condition(self).then_some(())).is_some()
    }

    /// Waits until the store was read whole so many times more.
    pub fn read_whole(&self, times: u64) {
        let seen = self.status().reads_of_everything;
        assert!(self.comes_to(|judged| judged.status().reads_of_everything >= seen + times));
    }
}
