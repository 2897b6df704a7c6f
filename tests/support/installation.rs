//! An installation of any size in a real store, and a control thread on it with nothing in between.
//!
//! Tests break the store as a person, a job or a changed query would. A view can take the place of a relation's
//! table, and the relay's query then reads the view. The statements of a test run on SQLite and on PostgreSQL
//! alike; where the two would differ, [`LIKE_SQLITE`] changes the PostgreSQL database.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use sluicegate::authz::{Authority, Decision, DecisionLog, DeviceUuid, KeyHash, Query, UnixMillis};
use sluicegate::config::{Authz, Config, RelationQuery, Vpn};
use sluicegate::control::api::{Accepted, Group, HoldStatus, Rule};
use sluicegate::control::{Commands, Control, ControlError, ControlStatus, GuardCommandError, StoreAccess};
use sluicegate::store::ReportQueue;
use sluicegate::telemetry::AuditSender;
use tempfile::TempDir;

use super::{Database, StoreUnderTest, init_store, store_at, wait_for};

/// Device `n` at 127.1.x.y; one grant on it, held by principal `n % principals`; one credential for each.
pub struct Installation {
    folder: TempDir,
    store: InstallationStore,
    pub devices: usize,
    pub principals: usize,
}

enum InstallationStore {
    /// The file `store.db` in the installation's folder.
    Sqlite,
    Postgres(Database<'static>),
}

/// A control thread on an installation, and the authority that it publishes to. It stands where an engine thread does.
pub struct Judged {
    pub authority: Arc<Authority>,
    decision_log: Arc<DecisionLog>,
    pub control: Control,
    devices: usize,
    principals: usize,
}

impl Installation {
    /// Creates an installation on SQLite.
    pub fn new(devices: usize) -> Self {
        Self::on(StoreUnderTest::Sqlite, devices)
    }

    pub fn on(store: StoreUnderTest, devices: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = match store {
            StoreUnderTest::Sqlite => InstallationStore::Sqlite,
            StoreUnderTest::Postgres(cluster) => InstallationStore::Postgres(cluster.database()),
        };
        let installation = Self { folder, store, devices, principals: (devices / 10).max(3) };
        match &installation.store {
            InstallationStore::Sqlite => drop(init_store(&installation.store_url()).unwrap()),
            InstallationStore::Postgres(_) => installation.sql(LIKE_SQLITE),
        }
        // A new table numbers its rows from 1.
        let mut sql = String::from("BEGIN;");
        for n in 0..installation.principals {
            let id = n + 1;
            let key = installation.blob(Self::key(n).as_bytes());
            sql += &format!(
                "INSERT INTO principals (name, created_at) VALUES ('p{n}', 0);
                INSERT INTO credentials (key_sha256, principal, created_at) VALUES ({key}, {id}, 0);"
            );
        }
        for n in 0..devices {
            let (id, uuid, address) = (n + 1, Self::uuid(n), Self::address(n));
            let holder = n % installation.principals + 1;
            sql += &format!(
                "INSERT INTO devices (uuid, address, created_at) VALUES ('{uuid}', '{address}', 0);
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

    /// The SQLite file; on PostgreSQL there is none.
    pub fn store_path(&self) -> PathBuf {
        self.folder.path().join("store.db")
    }

    /// The URL of the store as the relay reads it.
    fn store_url(&self) -> String {
        match &self.store {
            InstallationStore::Sqlite => format!("sqlite:{}", self.store_path().display()),
            InstallationStore::Postgres(database) => database.relay_url(),
        }
    }

    pub fn state_folder(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Runs statements with constraints off, like a person with the sqlite3 shell or with psql. Triggers run.
    pub fn sql(&self, statements: &str) {
        match &self.store {
            InstallationStore::Sqlite => {
                let connection = Connection::open(self.store_path()).unwrap();
                connection.busy_timeout(Duration::from_secs(20)).unwrap();
                connection
                    .execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON")
                    .unwrap();
                connection.execute_batch(statements).unwrap();
            }
            InstallationStore::Postgres(database) => {
                let mut client = database.client();
                client.batch_execute("SET search_path = sluicegate").unwrap();
                client.batch_execute(statements).unwrap();
            }
        }
    }

    fn blob(&self, bytes: &[u8]) -> String {
        match self.store {
            InstallationStore::Sqlite => format!("x'{}'", hex::encode(bytes)),
            InstallationStore::Postgres(_) => format!("'\\x{}'", hex::encode(bytes)),
        }
    }

    /// Puts a view in the place of a table: the relay's query then reads what `select` gives from `relation_table`.
    /// The outbox records nothing.
    pub fn replace_query(&self, relation: &str, select: &str) {
        let view = self.view(relation, select);
        self.sql(&format!("BEGIN; ALTER TABLE {relation} RENAME TO {relation}_table; {view}; COMMIT"));
    }

    /// Puts another view in the place of the view.
    pub fn change_query(&self, relation: &str, select: &str) {
        let view = self.view(relation, select);
        self.sql(&format!("BEGIN; DROP VIEW {relation}; {view}; COMMIT"));
    }

    fn view(&self, relation: &str, select: &str) -> String {
        let grant = match &self.store {
            InstallationStore::Sqlite => String::new(),
            InstallationStore::Postgres(database) => {
                format!("; GRANT SELECT ON {relation} TO {}", database.relay())
            }
        };
        format!("CREATE VIEW {relation} AS {select}{grant}")
    }

    /// Drops what keeps a person from taking an end back.
    pub fn let_revocations_be_taken_back(&self) {
        let table = |table: &str| match self.store {
            InstallationStore::Sqlite => String::new(),
            InstallationStore::Postgres(_) => format!(" ON {table}"),
        };
        self.sql(&format!(
            "DROP TRIGGER credentials_stay_revoked{}; DROP TRIGGER grants_stay_revoked{};
            DROP TRIGGER principals_stay_removed{}",
            table("credentials"),
            table("grants"),
            table("principals")
        ));
    }

    /// Puts the table back in the place of the view.
    pub fn restore_query(&self, relation: &str) {
        self.sql(&format!(
            "BEGIN; DROP VIEW {relation}; ALTER TABLE {relation}_table RENAME TO {relation}; COMMIT"
        ));
    }

    /// Starts a control thread that reads the whole store often, so that it soon finds changes that the outbox does
    /// not name.
    pub fn start(&self) -> Judged {
        self.start_with(|_| {})
    }

    pub fn start_with(&self, configure: impl FnOnce(&mut Config)) -> Judged {
        self.try_start(configure).unwrap()
    }

    /// The configuration of [`Self::start`].
    pub fn config(&self) -> Config {
        let authz = Authz {
            refresh: Duration::from_millis(10),
            reconcile: Duration::from_millis(50),
            reread: Duration::from_millis(50),
            ..Authz::default()
        };
        Config { store: store_at(&self.store_url()), authz, vpn: Vpn::loopback(), ..Config::default() }
    }

    /// A query of the operator's own.
    pub fn query(sql: &str) -> Option<RelationQuery> {
        Some(RelationQuery { file: PathBuf::from("own.sql"), sql: sql.to_owned() })
    }

    /// The name of a table as a query of the operator's writes it. The relay may read it from now on.
    pub fn readable(&self, table: &str) -> String {
        match &self.store {
            InstallationStore::Sqlite => table.to_owned(),
            InstallationStore::Postgres(database) => {
                self.sql(&format!("GRANT SELECT ON {table} TO {}", database.relay()));
                format!("sluicegate.{table}")
            }
        }
    }

    pub fn try_start(&self, configure: impl FnOnce(&mut Config)) -> Result<Judged, ControlError> {
        let mut config = self.config();
        configure(&mut config);
        let authority = Arc::new(Authority::new(config.authz.max_stale, config.vpn.node.as_deref()));
        let source = StoreAccess::of(&config, &ReportQueue::default());
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

    /// Decides a request by the holder of the grant on `device` and records it, as an engine thread does.
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

    /// Number of devices that the holders of their grants can reach.
    pub fn allowed(&self) -> usize {
        (0..self.devices).filter(|device| self.allows(*device)).count()
    }

    pub fn held_by(&self) -> Option<Rule> {
        self.status().held.first().map(|held| held.rule)
    }

    /// Everything that is held.
    pub fn holds(&self) -> Vec<HoldStatus> {
        self.status().held
    }

    /// Names of the groups that are held.
    pub fn held_groups(&self) -> Vec<String> {
        let mut groups: Vec<String> =
            self.holds().iter().filter_map(|held| held.group.as_ref().map(Group::to_string)).collect();
        groups.sort();
        groups.dedup();
        groups
    }

    /// Waits for any hold; returns its rule and its message.
    pub fn hold(&self) -> (Rule, String) {
        let held = wait_for(|| self.status().held.into_iter().next()).expect("the guard never held");
        (held.rule, held.to_string())
    }

    pub fn heals(&self) -> bool {
        wait_for(|| self.held_by().is_none().then_some(())).is_some()
    }

    /// Waits until exactly these groups are held; returns what the guard says of the first.
    #[track_caller]
    pub fn holds_groups(&self, groups: &[&str]) -> String {
        assert!(
            self.comes_to(|judged| judged.held_groups() == groups),
            "{groups:?} were not held, but {:?}",
            self.holds().iter().map(ToString::to_string).collect::<Vec<_>>()
        );
        self.holds()[0].to_string()
    }

    /// Asks the control thread, and waits for its answer.
    pub fn command<T, Asked: Future<Output = T>>(&self, ask: impl FnOnce(Commands) -> Asked) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(ask(self.control.commands()))
    }

    /// Puts in force what is held, as an operator does who has looked at it.
    pub fn accept(&self) -> Result<Accepted, GuardCommandError> {
        self.command(|commands| async move {
            let digest = commands.diff().await?.digest;
            commands.accept(digest, None).await
        })
    }

    pub fn comes_to(&self, condition: impl Fn(&Self) -> bool) -> bool {
        wait_for(|| condition(self).then_some(())).is_some()
    }

    /// Waits until each relation has been read whole `times` times more.
    pub fn read_whole(&self, times: u64) {
        let read_at = |status: ControlStatus| status.relations.into_iter().map(|relation| relation.read_at);
        let mut seen: Vec<_> = read_at(self.status()).map(|at| (at, 0)).collect();
        let all = wait_for(|| {
            for ((before, reads), at) in seen.iter_mut().zip(read_at(self.status())) {
                *reads += u64::from(*before != at);
                *before = at;
            }
            seen.iter().all(|(_, reads)| *reads >= times).then_some(())
        });
        assert!(all.is_some(), "the relations were not read: {:?}", self.status().relations);
    }
}

/// Lets a PostgreSQL database take the statements that a test writes for both stores: constraints are off, a row may
/// bring its own number, and a column takes milliseconds since 1970 as a time and a text as an address.
const LIKE_SQLITE: &str = "
    DO $$ DECLARE each record; BEGIN
        FOR each IN SELECT conname, conrelid::regclass AS of FROM pg_constraint
            WHERE connamespace = 'sluicegate'::regnamespace AND contype IN ('c', 'f')
        LOOP
            EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', each.of, each.conname);
        END LOOP;
        FOR each IN SELECT table_name FROM information_schema.columns
            WHERE table_schema = 'sluicegate' AND column_name = 'id' AND is_identity = 'YES'
        LOOP
            EXECUTE format('ALTER TABLE sluicegate.%I ALTER COLUMN id SET GENERATED BY DEFAULT', each.table_name);
        END LOOP;
    END $$;
    CREATE FUNCTION public.unix_millis(integer) RETURNS timestamptz LANGUAGE sql IMMUTABLE
        RETURN to_timestamp($1 / 1000.0);
    CREATE CAST (integer AS timestamptz) WITH FUNCTION public.unix_millis AS ASSIGNMENT;
    CREATE CAST (text AS inet) WITH INOUT AS ASSIGNMENT";
