//! The contract between a store and the relay, on schemas of an operator's own: what keeps it is read, what
//! breaks it is told by relation and column, and what was read before stays in force.

use std::path::PathBuf;
use std::time::Duration;

use sluicegate::authz::{DeviceId, GrantId, KeyHash, PrincipalId, Scope};
use sluicegate::config::{self, Authz, Config, Queries, RelationQuery, StoreUrl};
use sluicegate::store::StoreError;

use crate::support::{
    Changes, Cluster, Database, Device, Relay, Request, Rows, StoreView, UUID, V4, assert_done, wait_for,
};

/// A schema that was there before us, with names and types of its own.
const FOREIGN: &str = r#"
    CREATE TABLE "api key" (id serial PRIMARY KEY, "key hash" bytea, "of user" int, "expiry date" timestamptz);
    CREATE TABLE "permission" (id serial PRIMARY KEY, "user" int, "device" int);
    CREATE TABLE "unit" (id serial PRIMARY KEY, "serial" varchar(64), "vpn address" text, "is up" boolean NOT NULL);
    INSERT INTO "api key" ("key hash", "of user") VALUES (sha256('secret'), 7);
    INSERT INTO "permission" ("user", "device") VALUES (7, 1);
    INSERT INTO "unit" ("serial", "vpn address", "is up") VALUES
        ('00112233445566778899aabbccddeeff', '127.0.0.1', true)
"#;

const CREDENTIALS: &str = r#"
    SELECT "key hash" AS key_sha256, "of user"::int8 AS principal, "expiry date" AS expires_at, false AS revoked
    FROM "api key""#;

const GRANTS: &str = r#"
    SELECT id::int8 AS grant_id, "user"::int8 AS principal, 'device' AS scope, "device"::int8 AS target,
        1 AS port_min, 65535 AS port_max, NULL::timestamptz AS expires_at, false AS revoked
    FROM "permission""#;

const DEVICES: &str = r#"
    SELECT id::int8 AS device, "serial"::text AS uuid, NULL::int8 AS fleet, "vpn address" AS address,
        NULL::text AS node, "is up" AS online
    FROM "unit" -- what it ends at
    ;
"#;

/// Queries in files of their own, as an operator has them.
struct Files(tempfile::TempDir);

impl Files {
    fn new(credentials: &str, grants: &str, devices: &str) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        for (name, sql) in [("credentials", credentials), ("grants", grants), ("devices", devices)] {
            std::fs::write(files.path(name), sql).unwrap();
        }
        files
    }

    fn path(&self, relation: &str) -> PathBuf {
        self.0.path().join(format!("{relation}.sql"))
    }

    fn authz(&self) -> Authz {
        let query = |relation: &str| Some(RelationQuery::try_from(self.path(relation)).unwrap());
        let queries = Queries {
            credentials: query("credentials"),
            grants: query("grants"),
            devices: query("devices"),
            ended: None,
        };
        Authz { queries, reread: Duration::from_millis(20), ..Authz::default() }
    }
}

fn source(url: &str, files: &Files) -> StoreView {
    let store =
        config::Store { url: StoreUrl::try_from(url.to_owned()).unwrap(), ..config::Store::default() };
    StoreView::new(&store, &files.authz())
}

fn foreign(cluster: &Cluster) -> Database<'_> {
    let database = cluster.empty_database();
    database.by_hand(FOREIGN);
    database
}

/// The first thing that a store says that is new.
fn next_rows(source: &mut StoreView) -> Rows {
    wait_for(|| match source.read_changes().unwrap() {
        Changes::All(rows) => Some(rows),
        Changes::Nothing => None,
        other => panic!("{other:?} of a store without an outbox"),
    })
    .unwrap()
}

#[test]
fn a_schema_of_the_operators_own_is_read_through_queries_and_followed() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = foreign(cluster);
    let files = Files::new(CREDENTIALS, GRANTS, DEVICES);
    let mut source = source(&database.owner_url(), &files);

    let rows = source.read_all().unwrap();

    let credential = rows.credentials[0];
    assert_eq!((credential.key, credential.principal), (KeyHash::of_token(b"secret"), PrincipalId(7)));
    assert_eq!((rows.grants[0].id, rows.grants[0].scope), (GrantId(1), Scope::Device(DeviceId(1))));
    assert_eq!((rows.devices[0].uuid.to_string().as_str(), rows.devices[0].online), (UUID, true));

    std::thread::sleep(Duration::from_millis(50));
    assert!(matches!(source.read_changes(), Ok(Changes::Nothing)), "it says what it said before");
    database.by_hand(r#"UPDATE "unit" SET "is up" = false"#);
    assert!(!next_rows(&mut source).devices[0].online);
    database.by_hand(r#"DELETE FROM "permission""#);
    assert_eq!(next_rows(&mut source).grants, []);
}

#[test]
fn each_breach_names_relation_column_what_was_found_and_what_is_wanted() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = foreign(cluster);
    let swapped = DEVICES
        .replace(r#""vpn address" AS address"#, r#""vpn address" AS node"#)
        .replace("NULL::text AS node", "NULL::text AS address");
    for (credentials, grants, devices, relation, message) in [
        (
            CREDENTIALS,
            GRANTS,
            &*DEVICES.replace("id::int8", "id"),
            "devices",
            "devices.device is int4, wanted is int8",
        ),
        (
            CREDENTIALS,
            GRANTS,
            &*DEVICES.replace(r#""vpn address" AS address"#, "17 AS address"),
            "devices",
            "devices.address is int4, wanted is text or inet",
        ),
        (CREDENTIALS, GRANTS, &*swapped, "devices", "column 4 of devices is `node`, wanted is `address`"),
        (
            CREDENTIALS,
            &*GRANTS.replace(", false AS revoked", ""),
            DEVICES,
            "grants",
            "grants.revoked is missing, wanted is bool",
        ),
        (
            &*CREDENTIALS.replace("false AS revoked", "false AS revoked, 1 AS more"),
            GRANTS,
            DEVICES,
            "credentials",
            "column 5 of credentials is `more`, wanted are 4 columns",
        ),
        (
            &*CREDENTIALS.replace(r#""key hash" AS"#, r#"encode("key hash", 'hex') AS"#),
            GRANTS,
            DEVICES,
            "credentials",
            "credentials.key_sha256 is text, wanted is bytea",
        ),
        (
            CREDENTIALS,
            GRANTS,
            &*DEVICES.replace(r#""unit""#, r#""units""#),
            "devices",
            "relation \"units\" does not exist",
        ),
        (
            CREDENTIALS,
            &*format!("{GRANTS} WHERE \"user\" = 'x'::text"),
            DEVICES,
            "grants",
            "operator does not exist: integer = text",
        ),
        (CREDENTIALS, &*format!("{GRANTS} WHERE id = $1"), DEVICES, "grants", "it wants parameters"),
    ] {
        let files = Files::new(credentials, grants, devices);
        let error = source(&database.owner_url(), &files).read_all().unwrap_err();
        assert!(
            matches!(error, StoreError::Contract { relation: found, .. } if found == relation),
            "{error}"
        );
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[test]
fn a_query_that_fails_on_a_value_is_told_with_its_relation() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = foreign(cluster);
    let devices =
        DEVICES.replace(r#""vpn address" AS address"#, r#"("vpn address" || 'x')::inet AS address"#);
    let error =
        source(&database.owner_url(), &Files::new(CREDENTIALS, GRANTS, &devices)).read_all().unwrap_err();
    assert!(matches!(error, StoreError::Contract { relation: "devices", .. }), "{error}");
    assert!(error.to_string().contains("invalid input syntax for type inet"), "{error}");
}

#[test]
fn a_query_cannot_write() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = foreign(cluster);
    database.by_hand(
        r#"CREATE FUNCTION strike() RETURNS boolean LANGUAGE sql AS
            $$ DELETE FROM "permission" RETURNING true $$"#,
    );
    let devices = DEVICES.replace(r#""is up" AS online"#, "strike() AS online");
    let error =
        source(&database.owner_url(), &Files::new(CREDENTIALS, GRANTS, &devices)).read_all().unwrap_err();
    assert!(error.to_string().contains("cannot execute DELETE in a read-only transaction"), "{error}");
}

#[test]
fn a_column_that_changes_its_type_under_a_relay_is_told() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = foreign(cluster);
    let mut source = source(&database.owner_url(), &Files::new(CREDENTIALS, GRANTS, DEVICES));
    source.read_all().unwrap();
    database.by_hand(r#"ALTER TABLE "unit" ALTER "vpn address" TYPE varchar(39)"#);
    let error = wait_for(|| match source.read_changes() {
        Err(error) if error.to_string().contains("varchar") => Some(error),
        _ => None,
    });
    assert!(error.unwrap().to_string().contains("devices.address is varchar, wanted is text or inet"));
    database.by_hand(r#"ALTER TABLE "unit" ALTER "vpn address" TYPE text"#);
    source.read_all().unwrap();
}

#[test]
fn a_type_of_our_own_schema_that_somebody_changed_is_told() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    database.by_hand(
        "ALTER TABLE sluicegate.devices DROP CONSTRAINT devices_address_check, ALTER address TYPE cidr",
    );
    let error = crate::support::postgres_source(&database.relay_url()).read_all().unwrap_err();
    assert!(error.to_string().contains("devices.address is cidr, wanted is text or inet"), "{error}");
}

#[test]
fn rows_of_a_foreign_schema_that_do_not_decode_are_quarantined() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = foreign(cluster);
    database.by_hand(r#"UPDATE "unit" SET "is up" = true, "vpn address" = 'nowhere'; UPDATE "api key" SET "of user" = NULL"#);
    let rows = source(&database.owner_url(), &Files::new(CREDENTIALS, GRANTS, DEVICES)).read_all().unwrap();
    let quarantined: Vec<_> = rows.quarantined.iter().map(|row| row.reason.as_str()).collect();
    assert_eq!(
        quarantined,
        ["principal is null, which is no integer", "address is `nowhere`, which is no IP address"]
    );
    assert_eq!(rows.grants.len(), 1);
}

#[test]
fn a_relay_serves_tunnels_on_a_schema_of_the_operators_own() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = foreign(cluster);
    let files = Files::new(CREDENTIALS, GRANTS, DEVICES);
    let config = files.0.path().join("sluicegate.toml");
    let text = format!(
        r#"
        listen = [{{ address = "127.0.0.1:0" }}]
        store.url = "{}"
        admin.address = "127.0.0.1:0"
        vpn.allow = ["127.0.0.0/8"]
        authz.reread = "20ms"
        [authz.queries]
        credentials = {:?}
        grants = {:?}
        devices = {:?}
        "#,
        database.owner_url(),
        files.path("credentials"),
        files.path("grants"),
        files.path("devices"),
    );
    std::fs::write(&config, text).unwrap();
    let command = |name: &str| {
        let mut command = std::process::Command::new(crate::support::BINARY);
        command.arg(name).arg("--config").arg(&config);
        command
    };

    let checked = command("check").output().unwrap();
    assert_done(&checked);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(said.contains("1 credentials, 1 grants, 1 devices"), "{said}");

    let relay = Relay::start(command("run"));
    let message = "credentials.key_sha256 comes from \"api key\".\"key hash\", which may be null";
    assert!(relay.logs(message), "{}", relay.log());
    assert!(!relay.log().contains("devices.online comes from"), "that one is not null");
    let device = Device::echo(V4);
    let ask = || Request::to(UUID, device.port()).bearer("secret").send(relay.address()).status;
    assert_eq!(ask(), 200);
    database.by_hand(r#"UPDATE "unit" SET "is up" = false"#);
    assert!(wait_for(|| (ask() == 503).then_some(())).is_some());
}

/// A foreign schema in an SQLite file of another program.
fn foreign_sqlite() -> (tempfile::TempDir, String, rusqlite::Connection) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE keys (hash BLOB, owner INTEGER);
            CREATE TABLE units (id INTEGER PRIMARY KEY, serial TEXT, address TEXT, up INTEGER);
            INSERT INTO keys VALUES (zeroblob(32), 7);
            INSERT INTO units VALUES (1, '00112233445566778899aabbccddeeff', '127.0.0.1', 1)",
        )
        .unwrap();
    let url = format!("sqlite:{}", path.display());
    (folder, url, connection)
}

const SQLITE_CREDENTIALS: &str =
    "SELECT hash AS key_sha256, owner AS principal, NULL AS expires_at, 0 AS revoked FROM keys";

const SQLITE_GRANTS: &str = "SELECT owner AS grant_id, owner AS principal, 'any' AS scope, NULL AS target,
    1 AS port_min, 65535 AS port_max, NULL AS expires_at, 0 AS revoked FROM keys";

const SQLITE_DEVICES: &str = "SELECT id AS device, serial AS uuid, NULL AS fleet, address, NULL AS node,
    up AS online FROM units";

#[test]
fn an_sqlite_file_of_another_program_is_read_and_followed() {
    let (_folder, url, connection) = foreign_sqlite();
    let mut source = source(&url, &Files::new(SQLITE_CREDENTIALS, SQLITE_GRANTS, SQLITE_DEVICES));
    let rows = source.read_all().unwrap();
    assert_eq!((rows.credentials.len(), rows.grants.len(), rows.devices.len()), (1, 1, 1));
    connection.execute_batch("UPDATE units SET up = 0").unwrap();
    assert!(!next_rows(&mut source).devices[0].online);
    std::thread::sleep(Duration::from_millis(50));
    assert!(matches!(source.read_changes(), Ok(Changes::Nothing)));
}

#[test]
fn breaches_on_sqlite_are_told_by_relation_and_column() {
    let (_folder, url, _connection) = foreign_sqlite();
    for (devices, message) in [
        (&*SQLITE_DEVICES.replace("up AS online", "up"), "column 6 of devices is `up`, wanted is `online`"),
        (&*SQLITE_DEVICES.replace("up AS online", "down AS online"), "no such column: down"),
        ("SELECT id AS device FROM units", "devices.uuid is missing, wanted is text"),
    ] {
        let files = Files::new(SQLITE_CREDENTIALS, SQLITE_GRANTS, devices);
        let error = source(&url, &files).read_all().unwrap_err();
        assert!(matches!(error, StoreError::Contract { relation: "devices", .. }), "{error}");
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[test]
fn a_secret_in_the_place_of_its_hash_is_not_shown() {
    let (_folder, url, connection) = foreign_sqlite();
    connection.execute_batch("UPDATE keys SET hash = 'sg_plain_token'").unwrap();
    let mut source = source(&url, &Files::new(SQLITE_CREDENTIALS, SQLITE_GRANTS, SQLITE_DEVICES));
    let rows = source.read_all().unwrap();
    let message = format!("{}: {}", rows.quarantined[0].key, rows.quarantined[0].reason);
    assert!(message.contains("key_sha256") && !message.contains("plain"), "{message}");
}

#[test]
fn a_file_without_a_query_is_told_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let (config, query) = (folder.path().join("c.toml"), folder.path().join("devices.sql"));
    let message = |sql: Option<&str>| {
        sql.map_or_else(|| drop(std::fs::remove_file(&query)), |sql| std::fs::write(&query, sql).unwrap());
        let text = format!("[vpn]\nallow = [\"10.0.0.0/8\"]\n[authz.queries]\ndevices = {query:?}\n");
        std::fs::write(&config, text).unwrap();
        Config::load(Some(&config), []).unwrap_err().to_string()
    };
    for (sql, why) in [(None, "No such file"), (Some(" \n;\n"), "there is no query in it")] {
        let message = message(sql);
        assert!(
            message.contains("c.toml:4:11: authz.queries.devices: ") && message.contains(why),
            "{message}"
        );
    }
}
