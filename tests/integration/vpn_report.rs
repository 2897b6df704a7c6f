//! `vpn.report`: nodes tell the store which devices their VPNs hold, so that every node knows who does. Nobody else
//! writes where a device is in these tests.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::support::{
    Authority, Cluster, DEVICE, Device, End, OTHER_DEVICE, Relay, Request, Signal, Silent, Site,
    node_section, receive, replace, wait_for,
};
use serde_json::Value;
use sluicegate::authz::{DeviceUuid, UnixMillis};
use sluicegate::config::{Config, StoreUrl};
use sluicegate::store::{self, NodeHeartbeat, OpenClaim, PresenceReport};
use tempfile::TempDir;

/// Longer than two claims must be apart for the later one to count.
const APART: Duration = Duration::from_millis(1_200);

const NOBODY: &str = "nobody\n";

/// A store with the devices [`DEVICE`] and [`OTHER_DEVICE`], of which no row says where they are, and what makes nodes
/// of relays on it: `node-a` is the site's own.
struct Fleet {
    site: Site,
    authority: Authority,
    device: Device,
    _certificates: TempDir,
}

/// The row of a device in the store.
#[derive(Debug, PartialEq)]
struct Said {
    node: Option<String>,
    is_online: bool,
    address: Option<String>,
}

impl Fleet {
    fn new(fragment: &str) -> Self {
        Self::of(Site::new(fragment))
    }

    fn of(mut site: Site) -> Self {
        let certificates = tempfile::tempdir().unwrap();
        let authority = Authority::new(certificates.path(), "nodes");
        site.cli(&["device", "remove", DEVICE]);
        for uuid in [DEVICE, OTHER_DEVICE] {
            site.cli(&["device", "add", uuid]);
        }
        for name in ["node-a", "node-b"] {
            std::fs::write(site.folder().join(name).with_extension("vpn"), NOBODY).unwrap();
        }
        site.configure(&section(&site, "node-a", &authority));
        Self {
            site,
            authority,
            device: Device::echo("0.0.0.0".parse().unwrap()),
            _certificates: certificates,
        }
    }

    fn start_a(&self) -> Relay {
        self.site.start()
    }

    fn start_b(&self) -> Relay {
        self.site.start_sibling("node-b", &section(&self.site, "node-b", &self.authority)).0
    }

    fn vpn_of(&self, name: &str) -> PathBuf {
        self.site.folder().join(name).with_extension("vpn")
    }

    /// Has the VPN of a node hold these devices, and no other.
    fn hold(&self, name: &str, uuids: &[&str]) {
        let lines: String = uuids.iter().map(|uuid| format!("{uuid} {}\n", address_of(uuid))).collect();
        replace(&self.vpn_of(name), if lines.is_empty() { NOBODY } else { &lines });
    }

    fn said_of(&self, uuid: &str) -> Said {
        let rows = self.site.cli(&["device", "list"]);
        let row = rows.as_array().unwrap().iter().find(|row| row["uuid"] == uuid).unwrap();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Said {
            node: text(&row["node"]),
            is_online: row["online"].as_bool().unwrap(),
            address: text(&row["address"]),
        }
    }

    fn comes_to_say(&self, uuid: &str, node: &str, is_online: bool) -> bool {
        let address = is_online.then(|| address_of(uuid).to_owned());
        let wanted = Said { node: Some(node.to_owned()), is_online, address };
        wait_for(|| (self.said_of(uuid) == wanted).then_some(())).is_some()
    }

    fn status(&self, relay: &Relay, uuid: &str) -> u16 {
        let request = Request::to(uuid, self.device.port()).bearer(&self.site.token);
        request.send(relay.address()).status
    }

    fn becomes(&self, relay: &Relay, uuid: &str, wanted: u16) -> bool {
        wait_for(|| (self.status(relay, uuid) == wanted).then_some(())).is_some()
    }
}

/// A fleet whose devices do not answer their nodes, as those that have left a VPN which has not noticed yet.
fn silent_fleet() -> (Fleet, Silent) {
    let silent = Device::silent();
    (Fleet::new(&format!("authz.guard.probe_port = {}", silent.port)), silent)
}

fn address_of(uuid: &str) -> &'static str {
    if uuid == DEVICE { "127.0.0.1" } else { "127.0.0.2" }
}

/// Configuration that makes a relay a node that writes to the store which devices its VPN holds.
fn section(site: &Site, name: &str, authority: &Authority) -> String {
    let file = site.folder().join(name).with_extension("vpn");
    let node = node_section(name, authority);
    format!("{node}\nvpn.report = true\nvpn.addresses = ['file:{}']", file.display())
}

const FRESH: &str = "sluicegate_nodes{state=\"fresh\"}";
const FORWARDED: &str = "sluicegate_tunnels_total{path=\"forwarded\"}";
const LOCAL: &str = "sluicegate_tunnels_total{path=\"local\"}";

#[test]
fn a_device_is_reached_by_every_node_wherever_it_connects() {
    let (fleet, _silent) = silent_fleet();
    let (a, b) = (fleet.start_a(), fleet.start_b());
    for relay in [&a, &b] {
        assert!(relay.metric_becomes(FRESH, |fresh| fresh == 2.0));
        assert_eq!(fleet.status(relay, DEVICE), 503);
    }

    fleet.hold("node-a", &[DEVICE]);
    assert!(fleet.becomes(&b, DEVICE, 200), "{}", b.log());
    assert_eq!(fleet.status(&a, DEVICE), 200);
    assert!(b.metric(FORWARDED).unwrap() >= 1.0 && b.metric(LOCAL) == Some(0.0));
    assert!(fleet.comes_to_say(DEVICE, "node-a", true), "{:?}", fleet.said_of(DEVICE));

    // It moves, and its old node has not noticed yet.
    std::thread::sleep(APART);
    fleet.hold("node-b", &[DEVICE]);
    assert!(fleet.comes_to_say(DEVICE, "node-b", true), "{:?}", fleet.said_of(DEVICE));
    let forwarded = a.metric(FORWARDED).unwrap();
    assert!(
        wait_for(|| (fleet.status(&a, DEVICE) == 200 && a.metric(FORWARDED)? > forwarded).then_some(()))
            .is_some()
    );
    fleet.hold("node-a", &[]);
    std::thread::sleep(APART);
    assert!(
        fleet.comes_to_say(DEVICE, "node-b", true),
        "its old node has no say: {:?}",
        fleet.said_of(DEVICE)
    );

    fleet.hold("node-b", &[]);
    assert!(fleet.comes_to_say(DEVICE, "node-b", false), "{:?}", fleet.said_of(DEVICE));
    assert!(fleet.becomes(&a, DEVICE, 503) && fleet.becomes(&b, DEVICE, 503));
    assert_eq!(fleet.said_of(OTHER_DEVICE), Said { node: None, is_online: true, address: None });
}

#[test]
fn of_two_nodes_that_hold_a_device_the_later_has_it_and_the_other_once_that_one_lets_go() {
    let (fleet, _silent) = silent_fleet();
    let (_a, _b) = (fleet.start_a(), fleet.start_b());
    fleet.hold("node-a", &[DEVICE]);
    assert!(fleet.comes_to_say(DEVICE, "node-a", true));
    std::thread::sleep(APART);
    fleet.hold("node-b", &[DEVICE]);
    assert!(fleet.comes_to_say(DEVICE, "node-b", true));
    // Some repetitions of what the first one says.
    std::thread::sleep(Duration::from_secs(1));
    assert!(fleet.comes_to_say(DEVICE, "node-b", true));
    fleet.hold("node-b", &[]);
    assert!(fleet.comes_to_say(DEVICE, "node-a", true));
}

#[test]
fn what_a_dead_node_held_goes_to_the_node_that_has_it_by_then() {
    let fleet = Fleet::new("");
    let b = fleet.start_b();
    fleet.hold("node-b", &[DEVICE, OTHER_DEVICE]);
    assert!(fleet.comes_to_say(DEVICE, "node-b", true) && fleet.comes_to_say(OTHER_DEVICE, "node-b", true));
    // Nobody saw it come, so that nobody knows since when.
    fleet.hold("node-a", &[DEVICE]);
    let a = fleet.start_a();
    assert!(
        a.metric_becomes("sluicegate_location_reports_total{result=\"refused\"}", |refused| refused >= 1.0)
    );
    assert_eq!(fleet.said_of(DEVICE).node.as_deref(), Some("node-b"));

    b.signal(Signal::SIGKILL);

    assert!(fleet.comes_to_say(DEVICE, "node-a", true), "{:?}", fleet.said_of(DEVICE));
    assert!(fleet.becomes(&a, DEVICE, 200));
    let answer = Request::to(OTHER_DEVICE, 22).bearer(&fleet.site.token).send(a.address());
    assert_eq!(answer.slug().as_deref(), Some("device-offline"), "nobody has the other one");
}

#[test]
fn what_happened_while_a_relay_was_down_is_told_by_the_next() {
    let fleet = Fleet::new("");
    fleet.hold("node-a", &[DEVICE]);
    let relay = fleet.start_a();
    assert!(fleet.comes_to_say(DEVICE, "node-a", true));
    relay.signal(Signal::SIGKILL);
    drop(relay);
    fleet.hold("node-a", &[OTHER_DEVICE]);
    let relay = fleet.start_a();
    assert!(fleet.comes_to_say(DEVICE, "node-a", false) && fleet.comes_to_say(OTHER_DEVICE, "node-a", true));
    assert_eq!((fleet.status(&relay, DEVICE), fleet.status(&relay, OTHER_DEVICE)), (503, 200));
}

#[test]
fn a_table_that_is_not_there_takes_no_device_away() {
    let fleet = Fleet::new("");
    fleet.hold("node-a", &[DEVICE]);
    let relay = fleet.start_a();
    assert!(fleet.comes_to_say(DEVICE, "node-a", true));
    relay.signal(Signal::SIGKILL);
    drop(relay);
    std::fs::remove_file(fleet.vpn_of("node-a")).unwrap();
    let relay = fleet.start_a();
    assert!(relay.metric_becomes("sluicegate_vpn_addresses_stale_files", |stale| stale == 1.0));
    // As long as it would take.
    std::thread::sleep(Duration::from_secs(1));
    assert!(fleet.said_of(DEVICE).is_online, "{}", relay.log());
    fleet.hold("node-a", &[]);
    assert!(fleet.comes_to_say(DEVICE, "node-a", false), "{}", relay.log());
}

/// A person has written it there, for a device that is in no VPN of ours.
#[test]
fn a_row_that_no_node_has_told_of_is_left_alone() {
    let fleet = Fleet::new("");
    fleet.site.cli(&["device", "set", OTHER_DEVICE, "--node", "node-a", "--address", "127.0.0.9"]);
    let _relay = fleet.start_a();
    fleet.hold("node-a", &[DEVICE]);
    assert!(fleet.comes_to_say(DEVICE, "node-a", true));
    fleet.hold("node-a", &[]);
    assert!(fleet.comes_to_say(DEVICE, "node-a", false));
    let by_hand =
        Said { node: Some("node-a".to_owned()), is_online: true, address: Some("127.0.0.9".to_owned()) };
    assert_eq!(fleet.said_of(OTHER_DEVICE), by_hand);
}

#[test]
fn what_the_guard_holds_is_not_told() {
    let devices: Vec<String> = (0..10).map(|number| format!("{number:032x}")).collect();
    let all: Vec<&str> = devices.iter().map(String::as_str).collect();
    let line = |number: usize| format!("{} 127.0.0.{}\n", devices[number], number + 1);
    let answers = Device::listening("0.0.0.0".parse().unwrap());
    let fleet = Fleet::new(&format!("authz.guard.probe_port = {}", answers.port()));
    for uuid in &all {
        fleet.site.cli(&["device", "add", uuid]);
    }
    let whole: String = (0..10).map(line).collect();
    replace(&fleet.vpn_of("node-a"), &whole);
    let relay = fleet.start_a();
    let online = || {
        all.iter().filter(|uuid| fleet.said_of(uuid).node.is_some() && fleet.said_of(uuid).is_online).count()
    };
    assert!(wait_for(|| (online() == 10).then_some(())).is_some());

    replace(&fleet.vpn_of("node-a"), &line(9));

    assert!(relay.logs("9 of 10 devices have lost their location, but 9 of 9"), "{}", relay.log());
    assert!(relay.metric_becomes("sluicegate_location_reports_waiting", |waiting| waiting == 9.0));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(online(), 10);
    // An operator knows better.
    let digest = fleet.site.cli(&["authz", "diff"])["digest"].clone();
    fleet.site.cli(&["authz", "accept", digest.as_str().unwrap()]);
    assert!(wait_for(|| (online() == 1).then_some(())).is_some(), "{}", relay.log());
}

#[test]
fn a_device_that_comes_while_the_store_is_away_is_reached_where_it_came() {
    let Some(mut cluster) = Cluster::start() else { return };
    let silent = Device::silent();
    let site = {
        let database = cluster.database();
        let role = database.nodes_role();
        // Even one that another node has lost is a matter for the guard, which nobody can tell anything now.
        let guard = "authz.guard.budgets.unlocated = { share = 0.0, rows = 0 }";
        let mut site = Site::on_postgres(&database, guard);
        site.configure(&format!("authz.guard.probe_port = {}", silent.port));
        site.configure(&format!("forward.directory_url = '{}'", cluster.url(&role, &database.name)));
        site
    };
    let fleet = Fleet::of(site);
    let (a, _b) = (fleet.start_a(), fleet.start_b());
    fleet.hold("node-b", &[DEVICE]);
    assert!(fleet.comes_to_say(DEVICE, "node-b", true));
    assert!(fleet.becomes(&a, DEVICE, 200));
    std::thread::sleep(APART);

    cluster.stop();
    assert!(a.metric_becomes("sluicegate_store_reachable", |reachable| reachable == 0.0));
    fleet.hold("node-b", &[]);
    fleet.hold("node-a", &[DEVICE]);
    let local = a.metric(LOCAL).unwrap();
    let is_reached = || (fleet.status(&a, DEVICE) == 200 && a.metric(LOCAL)? > local).then_some(());
    assert!(wait_for(is_reached).is_some(), "{}", a.log());
    assert!(a.metric_becomes("sluicegate_location_errors_total", |errors| errors >= 1.0));
    assert!(a.logs("the store cannot be told where devices are"));

    cluster.run();
    assert!(fleet.comes_to_say(DEVICE, "node-a", true), "{:?}", fleet.said_of(DEVICE));
    assert!(a.logs("the store can be told where devices are again"));
}

#[test]
fn two_thousand_devices_that_connect_at_once_are_written_together_and_delay_no_revocation() {
    const DEVICES: usize = 2_000;
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    let mut site = Site::on_postgres(&database, "");
    let directory = cluster.url(&database.nodes_role(), &database.name);
    site.configure(&format!("forward.directory_url = '{directory}'"));
    database.by_hand(&format!(
        "INSERT INTO sluicegate.devices (uuid) SELECT lpad(to_hex(n), 32, '0') FROM generate_series(1, {DEVICES}) n"
    ));
    let fleet = Fleet::of(site);
    fleet.hold("node-a", &[DEVICE]);
    let relay = fleet.start_a();
    assert!(fleet.comes_to_say(DEVICE, "node-a", true));
    let mut tunnel = fleet.site.ask(&relay, fleet.device.port()).opened();
    tunnel.write_all(b"alive").unwrap();
    tunnel.read_exact(&mut [0; 5]).unwrap();
    let count = |sql: &str| database.client().query_one(sql, &[]).unwrap().get::<_, i64>(0);
    let transactions = "SELECT count(DISTINCT xid) FROM sluicegate.changes WHERE relation = 'devices'";
    let before = count(transactions);

    let line = |number: usize| format!("{number:032x} 127.1.{}.{}\n", number / 250, number % 250 + 1);
    let storm: String = (1..=DEVICES).map(line).collect();
    replace(&fleet.vpn_of("node-a"), &format!("{DEVICE} 127.0.0.1\n{storm}"));
    let began = Instant::now();
    fleet.site.cli(&["token", "revoke", &fleet.site.credential]);
    let (_, end) = receive(&mut tunnel);
    assert_eq!(end, End::Reset, "{}", relay.log());
    let revoked_after = began.elapsed();

    let here = "SELECT count(*) FROM sluicegate.devices WHERE node = 'node-a' AND online";
    let are_written = || (count(here) == DEVICES as i64 + 1).then_some(());
    assert!(wait_for(are_written).is_some(), "{} of {DEVICES}: {}", count(here), relay.log());
    let (written, batches) = (began.elapsed(), count(transactions) - before);
    eprintln!("revoked after {revoked_after:?}, all written after {written:?} by {batches} transactions");
    assert!(batches <= 20, "{batches} transactions");
}

#[test]
fn a_node_that_may_not_write_is_told_before_it_starts() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    let role = database.nodes_role();
    let mut site = Site::on_postgres(&database, "");
    site.configure(&format!("forward.directory_url = '{}'", cluster.url(&role, &database.name)));
    let fleet = Fleet::of(site);
    let check = || {
        let output = fleet.site.command(&["check"]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check(), (Some(0), String::new()));
    database.by_hand(&format!("REVOKE UPDATE (node) ON sluicegate.devices FROM {role}"));
    let (code, reported) = check();
    assert_eq!(code, Some(1));
    assert!(reported.contains("permission denied for table devices"), "{reported}");
}

#[test]
fn where_the_database_looks_after_it_a_node_claims_devices_for_itself_alone() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    let group = database.nodes_role();
    let role = format!("{group}_node-a");
    database.by_hand(&database.own_rows_only(&group));
    database.by_hand(&format!("CREATE ROLE \"{role}\" LOGIN IN ROLE {group}"));
    let mut site = Site::on_postgres(&database, "");
    site.configure(&format!("forward.directory_url = '{}'", cluster.url(&role, &database.name)));
    let fleet = Fleet::of(site);
    let relay = fleet.start_a();
    fleet.hold("node-a", &[DEVICE]);
    assert!(fleet.comes_to_say(DEVICE, "node-a", true), "{}", relay.log());
    assert!(fleet.becomes(&relay, DEVICE, 200), "the role that reads sees all rows");
    let mut other = cluster.try_client(&role, &database.name).unwrap();
    let claim = "UPDATE sluicegate.devices SET node = 'node-b' WHERE node = 'node-a'";
    assert_eq!(other.execute(claim, &[]).unwrap(), 0, "it lives, and has not let it go");
    let claim = "UPDATE sluicegate.devices SET node = 'node-b' WHERE node IS NULL";
    let error = other.execute(claim, &[]).unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("row-level security"), "{error}");
    let error = other.execute("UPDATE sluicegate.devices SET fleet = NULL", &[]).unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("permission denied"), "{error}");
    let error = other.execute("DELETE FROM sluicegate.devices", &[]).unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("permission denied"), "{error}");
}

#[test]
fn reports_that_nobody_could_make_use_of_are_refused_with_their_key() {
    for (fragment, reported) in [
        ("vpn.report = true", "vpn.report: a node that reports its devices must also report itself"),
        (
            "vpn.report = true\nstore.profile = 'openbalena'\nstore.url = 'postgres://relay@127.0.0.1/x'",
            "vpn.report: openBalena's own VPN reports where devices are",
        ),
    ] {
        let mut site = Site::new("");
        site.configure(fragment);
        let (code, said) = site.start_in_vain().unwrap();
        assert_eq!(code, Some(1));
        assert!(said.contains(reported) && said.contains("sluicegate.toml:"), "{said}");
    }
    let mut fleet = Fleet::new("");
    fleet.site.configure("vpn.addresses = ['store']");
    let (_, said) = fleet.site.start_in_vain().unwrap();
    assert!(
        said.contains("vpn.addresses: with vpn.report, the store has only the addresses that nodes report"),
        "{said}"
    );
}

/// Claims of a node for [`DEVICE`], as so many seconds old, in a store that has it since 100 s at another node, which
/// lives or not; the last value says if that node loses it.
const CLAIMS: [(Option<i64>, bool, bool); 7] = [
    (Some(50), true, true),
    (Some(98), true, true),
    // Too close to tell who was later.
    (Some(100), true, false),
    (Some(150), true, false),
    (None, true, false),
    (Some(150), false, true),
    (None, false, true),
];

#[track_caller]
fn the_later_claim_counts(config: &Config, holder: &dyn Fn() -> Option<String>) {
    let (mut table, mut nodes) = (store::claim_table(config), store::node_table(config));
    let uuid = DeviceUuid::parse(DEVICE).unwrap();
    let unknown = DeviceUuid::parse("dddddddddddddddddddddddddddddddd").unwrap();
    let here = |ago_s: Option<i64>| PresenceReport::Here {
        address: "127.0.0.1".parse().unwrap(),
        since: ago_s.map(|ago_s| UnixMillis(UnixMillis::now().0 - ago_s * 1_000)),
    };
    let max_age = Duration::from_secs(60);
    for (place, (ago_s, lives, is_taken)) in CLAIMS.into_iter().enumerate() {
        let (before, after) = (format!("before-{place}"), format!("after-{place}"));
        if lives {
            nodes.write(&heartbeat(&before, None), None).unwrap();
        }
        assert_eq!(table.write(&before, max_age, &[(uuid, here(Some(100)))]).unwrap().here, [uuid]);
        let others = [(uuid, here(ago_s)), (unknown, here(ago_s))];
        let taken = table.write(&after, max_age, &others).unwrap().here;
        assert_eq!(taken, if is_taken { vec![uuid] } else { vec![] }, "{ago_s:?} {lives}");
        assert_eq!(
            holder(),
            Some(if is_taken { after.clone() } else { before.clone() }),
            "{ago_s:?} {lives}"
        );
        // Said again, it is so already.
        assert_eq!(table.write(&after, max_age, &others).unwrap().here, taken);

        let (keeps, loses) = if is_taken { (after, before) } else { (before, after) };
        table.write(&loses, max_age, &[(uuid, PresenceReport::Gone)]).unwrap();
        assert_eq!(holder().as_ref(), Some(&keeps), "it is another's");
        table.write(&keeps, max_age, &[(uuid, PresenceReport::Gone)]).unwrap();
        assert_eq!(holder(), None);
    }
}

#[test]
fn of_two_claims_the_later_counts_on_sqlite() {
    let fleet = Fleet::new("");
    let config = Config {
        store: crate::support::store_at(&format!("sqlite:{}", fleet.site.store_path().display())),
        ..Config::default()
    };
    let holder = || Some(fleet.said_of(DEVICE)).filter(|said| said.is_online).and_then(|said| said.node);
    the_later_claim_counts(&config, &holder);
}

#[test]
fn of_two_claims_the_later_counts_on_postgresql() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    let mut config = Config::default();
    let url = cluster.url(&database.nodes_role(), &database.name);
    config.forward.directory_url = Some(StoreUrl::try_from(url).unwrap());
    let fleet = Fleet::of(Site::on_postgres(&database, ""));
    let holder = || Some(fleet.said_of(DEVICE)).filter(|said| said.is_online).and_then(|said| said.node);
    the_later_claim_counts(&config, &holder);
}

fn heartbeat<'a>(name: &'a str, process: Option<&'a str>) -> NodeHeartbeat<'a> {
    let forward = "192.0.2.1:3130".parse().unwrap();
    NodeHeartbeat { name, forward, devices: None, process, max_age: Duration::from_secs(60) }
}

#[track_caller]
fn a_claim_is_a_question_to_the_holder(config: &Config, holder: &dyn Fn() -> Option<String>) {
    let (mut table, mut nodes) = (store::claim_table(config), store::node_table(config));
    let uuid = DeviceUuid::parse(DEVICE).unwrap();
    let max_age = Duration::from_secs(60);
    let here = |ago_s: i64| PresenceReport::Here {
        address: "127.0.0.1".parse().unwrap(),
        since: Some(UnixMillis(UnixMillis::now().0 - ago_s * 1_000)),
    };
    let mut lives = |name: &str| nodes.write(&heartbeat(name, Some("a process")), None).unwrap();
    lives("holder");
    assert_eq!(table.write("holder", max_age, &[(uuid, here(100))]).unwrap().here, [uuid]);

    let mut claim = |node: &str, ago_s: i64| {
        let written = table.write(node, max_age, &[(uuid, here(ago_s))]).unwrap();
        (!written.here.is_empty(), !written.asked.is_empty())
    };
    assert_eq!(claim("other", 150), (false, false), "an earlier one troubles nobody");
    assert_eq!(claim("other", 50), (false, true));
    assert_eq!(holder().as_deref(), Some("holder"));
    let mut answers = store::claim_table(config);
    let asked = [OpenClaim { uuid, claimant: "other".into() }];
    assert_eq!(answers.open_claims("holder").unwrap(), asked);
    assert_eq!(answers.open_claims("other").unwrap(), []);

    answers.answer("holder", &[(uuid, "holder")]).unwrap();
    assert_eq!(answers.open_claims("holder").unwrap(), [], "it is answered");
    assert_eq!(claim("other", 50), (false, false), "the holder keeps it");
    answers.answer("other", &[(uuid, "other")]).unwrap();
    assert_eq!(claim("other", 50), (false, false), "nobody answers for another node");

    answers.answer("holder", &[(uuid, "other")]).unwrap();
    assert!(!claim("third", 10).0, "it goes to the other one");
    assert_eq!(claim("other", 50), (true, false));
    assert_eq!(holder().as_deref(), Some("other"));
    assert_eq!(answers.open_claims("other").unwrap(), [], "a new holder, new claims");

    lives("other");
    let began = Instant::now();
    let takes = || claim("third", 10).0.then_some(());
    assert!(wait_for(takes).is_some() && began.elapsed() > Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(holder().as_deref(), Some("third"), "the holder lives and does not answer");
}

#[test]
fn a_claim_is_a_question_to_the_holder_on_sqlite() {
    let fleet = Fleet::new("");
    let url = format!("sqlite:{}", fleet.site.store_path().display());
    let config = Config { store: crate::support::store_at(&url), ..Config::default() };
    let holder = || Some(fleet.said_of(DEVICE)).filter(|said| said.is_online).and_then(|said| said.node);
    a_claim_is_a_question_to_the_holder(&config, &holder);
    let store = rusqlite::Connection::open(fleet.site.store_path()).unwrap();
    let early = "UPDATE devices SET node = 'node-b', located_at = unixepoch() * 1000 + 60000";
    assert_eq!(store.execute(early, []).unwrap(), 0, "nobody is where it is tomorrow");
    assert_eq!(holder().as_deref(), Some("third"));
}

#[test]
fn a_claim_is_a_question_to_the_holder_on_postgresql() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    let mut config = Config::default();
    let url = cluster.url(&database.nodes_role(), &database.name);
    config.forward.directory_url = Some(StoreUrl::try_from(url).unwrap());
    let fleet = Fleet::of(Site::on_postgres(&database, ""));
    let holder = || Some(fleet.said_of(DEVICE)).filter(|said| said.is_online).and_then(|said| said.node);
    a_claim_is_a_question_to_the_holder(&config, &holder);
}

const KEPT: &str = "sluicegate_location_claims_total{result=\"kept\"}";
const YIELDED: &str = "sluicegate_location_claims_total{result=\"yielded\"}";

#[test]
fn a_device_that_answers_stays_with_its_node_whoever_claims_it() {
    let fleet = Fleet::new("");
    let (a, b) = (fleet.start_a(), fleet.start_b());
    fleet.hold("node-a", &[DEVICE]);
    assert!(fleet.comes_to_say(DEVICE, "node-a", true));
    std::thread::sleep(APART);
    // The port that it is asked at refuses, and that is an answer too.
    fleet.hold("node-b", &[DEVICE]);
    assert!(a.metric_becomes(KEPT, |kept| kept >= 1.0), "{}", a.log());
    assert!(a.logs("node-b claims devices that answer in this node's VPN"));
    assert!(
        b.metric_becomes("sluicegate_location_reports_total{result=\"refused\"}", |refused| refused >= 1.0)
    );
    assert_eq!(fleet.said_of(DEVICE).node.as_deref(), Some("node-a"));
    assert_eq!(a.metric(YIELDED), Some(0.0));
    let local = a.metric(LOCAL).unwrap();
    assert_eq!(fleet.status(&a, DEVICE), 200);
    assert_eq!(a.metric(LOCAL), Some(local + 1.0));
}

/// What somebody does who has the role of `node-b` in the database, with the row-level security of the documentation.
#[test]
fn who_has_the_role_of_a_node_gets_no_device_of_one_that_lives() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = cluster.database();
    let group = database.nodes_role();
    database.by_hand(&database.own_rows_only(&group));
    for node in ["node-a", "node-b"] {
        database.by_hand(&format!("CREATE ROLE \"{group}_{node}\" LOGIN IN ROLE {group}"));
    }
    let mut site = Site::on_postgres(&database, "");
    let directory = cluster.url(&format!("{group}_node-a"), &database.name);
    site.configure(&format!("forward.directory_url = '{directory}'"));
    let fleet = Fleet::of(site);
    let a = fleet.start_a();
    fleet.hold("node-a", &[DEVICE]);
    assert!(fleet.comes_to_say(DEVICE, "node-a", true), "{}", a.log());

    let mut thief = cluster.try_client(&format!("{group}_node-b"), &database.name).unwrap();
    let alive = "INSERT INTO sluicegate.nodes (name, forward_address, heartbeat_at, process)
        VALUES ('node-b', '127.0.0.1:9', now() + interval '1 year', 'mine')";
    assert_eq!(thief.execute(alive, &[]).unwrap(), 1, "its own row is its own");
    let of_a = format!("WHERE uuid = '{DEVICE}'");
    let claim = |at: &str| {
        format!("UPDATE sluicegate.devices SET node = 'node-b', online = true, located_at = {at} {of_a}")
    };
    for at in ["now() + interval '1 year'", "now()", "located_at"] {
        assert_eq!(thief.execute(&claim(at), &[]).unwrap(), 0, "{at}");
    }
    // Nor by way of the holder's rows.
    for statement in [
        format!("UPDATE sluicegate.devices SET online = false {of_a}"),
        format!("UPDATE sluicegate.devices SET yields_to = 'node-b', yields_at = now() {of_a}"),
        "INSERT INTO sluicegate.claims (device, node) SELECT id, 'node-b' FROM sluicegate.devices".to_owned(),
        "DELETE FROM sluicegate.claims".to_owned(),
        "INSERT INTO sluicegate.nodes (name, process) VALUES ('node-a', NULL)
            ON CONFLICT (name) DO UPDATE SET process = NULL, heartbeat_at = NULL"
            .to_owned(),
    ] {
        thief.execute(&statement, &[]).unwrap_err();
    }
    let silence = "UPDATE sluicegate.nodes SET heartbeat_at = NULL WHERE name = 'node-a'";
    assert_eq!(thief.execute(silence, &[]).unwrap(), 0);

    // Claimed again and again, longer than a dead node's devices would be.
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        assert_eq!(thief.execute(&claim("now()"), &[]).unwrap(), 0);
        std::thread::sleep(Duration::from_millis(250));
    }
    assert!(a.metric_becomes(KEPT, |kept| kept >= 1.0), "{}", a.log());
    assert!(a.logs("node-b claims devices that answer in this node's VPN"));
    assert_eq!(fleet.said_of(DEVICE).node.as_deref(), Some("node-a"));
    assert_eq!(fleet.status(&a, DEVICE), 200);

    // What it does get: a device that no node holds.
    let offline = format!(
        "UPDATE sluicegate.devices SET node = 'node-b', located_at = now() WHERE uuid = '{OTHER_DEVICE}'"
    );
    assert_eq!(thief.execute(&offline, &[]).unwrap(), 1);
}
