//! The store commands do the same on SQLite and on PostgreSQL: the same results, the same listings, the same errors, and
//! the same changes and rows for a relay to read.

use sluicegate::authz::{Change, DeviceUuid, GrantId, PortRange, UnixMillis};
use sluicegate::config::Authz;
use sluicegate::store::admin::{Admin, DevicePatch, GrantTarget, NewDevice, Revoked};

use crate::support::{Changes, Cluster, Rows, StoreView, store_at};

const UUID: &str = "00112233445566778899aabbccddeeff";
const OTHER: &str = "ffeeddccbbaa99887766554433221100";

/// The outcome of each command, in words that are the same for both stores.
struct Story {
    admin: Admin,
    /// Has read everything that was there before the last command.
    source: StoreView,
    lines: Vec<String>,
    /// Ids of the credentials in the order of their issue.
    credentials: Vec<String>,
}

impl Story {
    fn new(url: &str) -> Self {
        Admin::init(&store_at(url)).unwrap();
        let mut source = StoreView::new(&store_at(url), &Authz::default());
        source.read_all().unwrap();
        let admin = Admin::open(&store_at(url)).unwrap();
        Self { admin, source, lines: Vec::new(), credentials: Vec::new() }
    }

    fn add<T: std::fmt::Debug, E: std::fmt::Display>(&mut self, result: Result<T, E>) {
        self.lines.push(match result {
            Ok(value) => format!("{value:?}"),
            Err(error) => format!("error: {error}"),
        });
        self.lines.push(changes(&self.source.read_changes().unwrap()));
    }

    fn issue(&mut self, principal: &str, label: Option<&str>, expires_at: Option<UnixMillis>) {
        let issued = self.admin.issue_token(principal, label, expires_at);
        let issued = issued.map(|issued| self.credentials.push(issued.credential.to_string()));
        self.add(issued);
    }

    fn add_device(&mut self, device: &NewDevice) {
        let added = self.admin.add_device(device);
        self.add(added);
    }

    fn grant(&mut self, principal: &str, target: &GrantTarget) {
        let ports = PortRange::new(22, 80).unwrap();
        let added =
            self.admin.add_grant(principal, target, ports, Some(UnixMillis(i64::from(i32::MAX) * 1_000)));
        self.add(added);
    }

    fn list(&mut self) {
        let principals = self.admin.principals().unwrap();
        let credentials = self.admin.credentials().unwrap();
        let devices = self.admin.devices().unwrap();
        let grants = self.admin.grants().unwrap();
        let principals = principals
            .iter()
            .map(|row| format!("{} {} {:?}", row.id.0, row.name, (row.live_credentials, row.live_grants)));
        let credentials = credentials.iter().map(|row| {
            let number = self.credentials.iter().position(|id| *id == row.credential.to_string());
            let is_revoked = row.revoked_at.map(is_now);
            format!("{number:?} {} {:?} {:?} {is_revoked:?}", row.principal, row.label, row.expires_at)
        });
        let devices = devices.iter().map(|row| {
            let place = (&row.fleet, &row.address, &row.node, row.online);
            format!("{} {} {:?} {place:?} {}", row.id.0, row.uuid, row.name, is_now(row.created_at))
        });
        let grants = grants.iter().map(|row| {
            let is_revoked = row.revoked_at.map(is_now);
            let what = (&row.scope, &row.target, row.port_min, row.port_max, row.expires_at);
            format!("{} {} {what:?} {is_revoked:?}", row.id.0, row.principal)
        });
        let lines: Vec<String> = principals.chain(credentials).chain(devices).chain(grants).collect();
        self.lines.extend(lines);
    }
}

/// What a relay reads after a command, without the keys of tokens, which differ each time.
fn changes(changes: &Changes) -> String {
    let line = |change: &Change| match change {
        Change::Credential(row) => format!("{:?} {:?} {}", row.principal, row.expires_at, row.revoked),
        Change::CredentialGone(_) => "credential gone".to_owned(),
        other => format!("{other:?}"),
    };
    match changes {
        Changes::Some { changes, quarantined } => {
            assert_eq!(quarantined, &[]);
            changes.iter().map(line).collect::<Vec<_>>().join("; ")
        }
        Changes::Nothing => "nothing".to_owned(),
        other => panic!("{other:?}"),
    }
}

fn is_now(time: UnixMillis) -> bool {
    (UnixMillis::now().0 - time.0).abs() < 60_000
}

fn device(uuid: &str) -> NewDevice {
    NewDevice {
        uuid: DeviceUuid::parse(uuid).unwrap(),
        name: Some("door".to_owned()),
        fleet: Some("berlin".to_owned()),
        address: Some("10.8.0.2".parse().unwrap()),
        node: Some("node-a".to_owned()),
        online: true,
    }
}

/// Runs every command, most of them also in vain.
fn run_story(url: &str) -> Vec<String> {
    let mut story = Story::new(url);
    for name in ["alice", "Zoe", "bob", " bad", "élan"] {
        let added = story.admin.add_principal(name);
        story.add(added);
    }
    story.issue("alice", Some("laptop"), None);
    story.issue("alice", None, Some(UnixMillis(1_000)));
    story.issue("bob", Some("a\nb"), None);
    story.issue("alicia", None, None);
    story.issue("nobody at all", None, None);

    story.add_device(&device(UUID));
    story.add_device(&NewDevice {
        name: None,
        fleet: None,
        address: None,
        node: None,
        online: false,
        ..device(OTHER)
    });
    story.add_device(&NewDevice { fleet: Some(String::new()), ..device(OTHER) });
    let uuid = DeviceUuid::parse(UUID).unwrap();
    let unknown = DeviceUuid::parse(&"ab".repeat(16)).unwrap();
    for (uuid, patch) in [
        (uuid, DevicePatch { address: Some("fd00::2".parse().unwrap()), ..DevicePatch::default() }),
        (
            uuid,
            DevicePatch { node: Some("node-b".to_owned()), online: Some(false), ..DevicePatch::default() },
        ),
        (unknown, DevicePatch::default()),
    ] {
        let set = story.admin.set_device(uuid, &patch);
        story.add(set);
    }
    for target in [
        GrantTarget::Any,
        GrantTarget::Fleet("berlin".to_owned()),
        GrantTarget::Fleet("berln".to_owned()),
        GrantTarget::Device(uuid),
        GrantTarget::Device(unknown),
    ] {
        story.grant("alice", &target);
    }
    story.grant("bob", &GrantTarget::Any);
    story.list();

    for id in [story.credentials[0].clone(), story.credentials[0].clone(), "00".repeat(8), "x".to_owned()] {
        let revoked = story.admin.revoke_credential(&id).map(without_time);
        story.add(revoked);
    }
    for id in [1, 1, 99] {
        let revoked = story.admin.revoke_grant(GrantId(id)).map(without_time);
        story.add(revoked);
    }
    for uuid in [uuid, uuid] {
        let removed = story.admin.remove_device(uuid);
        story.add(removed);
    }
    for name in ["bob", "bob"] {
        let removed = story.admin.remove_principal(name);
        story.add(removed);
    }
    let again = story.admin.add_principal("bob");
    story.add(again);
    // These come last, since PostgreSQL uses up a number for a row that is not added.
    let again = story.admin.add_principal("alice");
    story.add(again);
    story.add_device(&device(OTHER));
    story.list();
    let rows = StoreView::new(&store_at(url), &Authz::default()).read_all().unwrap();
    story.lines.extend(read(&rows));
    story.lines
}

fn without_time(revoked: Revoked) -> Option<bool> {
    match revoked {
        Revoked::Now => None,
        Revoked::Before(time) => Some(is_now(time)),
    }
}

/// The rows in the order of their keys, which is the same everywhere but for those of tokens.
fn read(rows: &Rows) -> Vec<String> {
    assert!(rows.quarantined.is_empty() && rows.ended.is_empty());
    let credentials = rows
        .credentials
        .iter()
        .map(|row| format!("{:?} {:?} {}", row.principal, row.expires_at, row.revoked));
    let grants = rows.grants.iter().map(|row| format!("{row:?}"));
    let devices = rows.devices.iter().map(|row| format!("{row:?}"));
    let mut lines: Vec<String> = credentials.chain(grants).chain(devices).collect();
    lines.sort();
    lines
}

#[test]
fn every_command_does_the_same_on_both_stores() {
    let Some(cluster) = Cluster::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let sqlite = run_story(&format!("sqlite:{}", folder.path().join("store.db").display()));
    let database = cluster.database();
    let postgres = run_story(&database.owner_url());
    let differences: Vec<_> = sqlite.iter().zip(&postgres).filter(|(one, other)| one != other).collect();
    assert!(differences.is_empty(), "SQLite, PostgreSQL: {differences:#?}");
    assert_eq!(sqlite.len(), postgres.len());
}
