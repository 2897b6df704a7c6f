//! The last good snapshot on disk: it serves a restart without the store, never brings back what has ended,
//! and is not used when it is damaged.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::{DEVICE, Device, Installation, Judged, Request, Signal, Site, V4};
use sluicegate::authz::{Authority, Decision, KeyHash, Query, Refusal, Undecided, UnixMillis};
use sluicegate::control::api::Rule;

/// An installation whose nodes keep what they know.
struct Kept(Installation);

impl Kept {
    fn new() -> Self {
        Self(Installation::new(9))
    }

    fn start(&self) -> Judged {
        self.try_start().unwrap_or_else(|message| panic!("{message}"))
    }

    fn try_start(&self) -> Result<Judged, String> {
        let state = Some(self.0.state_folder());
        self.0.try_start(|config| config.authz.state = state).map_err(|error| error.to_string())
    }

    fn lose_store(&self) {
        fs::rename(self.0.store_path(), self.0.store_path().with_extension("away")).unwrap();
    }

    fn regain_store(&self) {
        fs::rename(self.0.store_path().with_extension("away"), self.0.store_path()).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.state_folder().join(name)
    }
}

fn ask_unknown(authority: &Authority) -> Decision {
    let query = Query { subject: Some(KeyHash::of_token(b"unknown").into()), device: None, port: 22 };
    authority.pin().decide(&query, UnixMillis::now())
}

#[test]
fn a_restart_without_the_store_goes_on_where_the_node_stopped() {
    let kept = Kept::new();
    let judged = kept.start();
    let first = judged.status().generation;
    kept.0.sql("UPDATE grants SET revoked_at = 1 WHERE target = 1");
    assert!(judged.comes_to(|judged| judged.allowed() == 8 && judged.status().generation > first));
    let generation = judged.status().generation;
    drop(judged);
    kept.lose_store();

    let judged = kept.start();

    assert_eq!((judged.allowed(), judged.status().generation), (8, generation));
    assert_eq!(judged.decide(0), Decision::Refuse(Refusal::GrantRevoked));
    let is_missed = |error: String| error.contains("does not exist");
    assert!(judged.comes_to(|judged| judged.status().last_error.is_some_and(is_missed)));
    let unknown = ask_unknown(&judged.authority);
    assert_eq!(unknown, Decision::Undecided(Undecided::StoreUnreachable), "nobody is told no");

    kept.regain_store();
    kept.0.sql("UPDATE grants SET revoked_at = 1 WHERE target = 2");
    assert!(judged.comes_to(|judged| judged.allowed() == 7));
    assert!(judged.comes_to(|judged| judged.status().generation > generation), "generations go on");
    // The relations are read apart, each by a thread of its own.
    let refused = Decision::Refuse(Refusal::CredentialUnknown);
    assert!(judged.comes_to(|judged| ask_unknown(&judged.authority) == refused));
}

#[test]
fn one_restart_after_the_other_without_the_store_goes_on_all_the_same() {
    let kept = Kept::new();
    drop(kept.start());
    kept.lose_store();
    for restart in 1..=3 {
        assert_eq!(kept.start().allowed(), 9, "restart {restart}");
    }
}

#[test]
fn a_hold_outlives_a_restart() {
    let kept = Kept::new();
    drop(kept.start());
    kept.0.replace_query("devices", "SELECT * FROM devices_table WHERE id = 1");
    let judged = kept.start();
    assert_eq!((judged.hold().0, judged.allowed()), (Rule::Budget, 9));
    kept.0.restore_query("devices");
    assert!(judged.heals());
}

#[test]
fn what_was_kept_decides_until_it_is_stale() {
    let kept = Kept::new();
    drop(kept.start());
    kept.lose_store();
    std::thread::sleep(Duration::from_millis(600));
    let start = |max_stale| {
        let state = Some(kept.0.state_folder());
        kept.0.start_with(|config| {
            config.authz.state = state;
            config.authz.max_stale = max_stale;
        })
    };
    assert!(start(Duration::from_secs(3600)).allows(0));
    assert_eq!(start(Duration::from_millis(500)).decide(0), Decision::Undecided(Undecided::Stale));
}

#[test]
fn the_files_are_the_nodes_alone_and_hold_no_token() {
    let kept = Kept::new();
    drop(kept.start());
    for name in ["last-good.snapshot", "last-good.journal.1", "last-good.lock"] {
        let mode = fs::metadata(kept.file(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}: {mode:o}");
    }
    let folder = fs::metadata(kept.0.state_folder()).unwrap().permissions().mode();
    assert_eq!(folder & 0o777, 0o700, "{folder:o}");
    let bytes = fs::read(kept.file("last-good.snapshot")).unwrap();
    assert!(bytes.windows(32).any(|window| window == Installation::key(0).as_bytes()), "the key's hash");
    assert!(!bytes.windows(7).any(|window| window == b"token-0"), "the token");
}

#[test]
fn a_damaged_snapshot_is_refused_wherever_the_damage_is() {
    let kept = Kept::new();
    drop(kept.start());
    kept.lose_store();
    let file = kept.file("last-good.snapshot");
    let whole = fs::read(&file).unwrap();
    let damages = (0..whole.len()).step_by(97).map(|at| {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x20;
        damaged
    });
    let cut = [0, 10, whole.len() / 2, whole.len() - 1].map(|len| whole[..len].to_vec());
    let longer = [whole.iter().copied().chain([0]).collect()];
    for damaged in damages.chain(cut).chain(longer) {
        fs::write(&file, &damaged).unwrap();
        let message = kept.try_start().err().expect("it is not used");
        assert!(message.contains("store init"), "the store's absence is what remains: {message}");
    }
    fs::write(&file, &whole).unwrap();
    assert_eq!(kept.start().allowed(), 9);
}

#[test]
fn damage_is_told_and_a_store_that_is_there_decides_alone() {
    let site = Site::new("");
    let relay = site.start();
    let file = site.folder().join("state/last-good.snapshot");
    assert!(crate::support::wait_for(|| file.exists().then_some(())).is_some());
    drop(relay);
    let mut bytes = fs::read(&file).unwrap();
    bytes[60] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let relay = site.start();
    assert!(relay.logs("is damaged (its checksum is not what it holds) and is not used"));
    assert_eq!(site.ask(&relay, Device::echo(V4).port()).status, 200);
}

#[test]
fn what_another_version_or_another_store_left_is_not_used() {
    let kept = Kept::new();
    drop(kept.start());
    let file = kept.file("last-good.snapshot");
    let mut bytes = fs::read(&file).unwrap();
    let version = bytes.iter().position(|byte| *byte == b'\n').unwrap() - 1;
    bytes[version] = b'9';
    fs::write(&file, &bytes).unwrap();
    kept.lose_store();
    assert!(kept.try_start().is_err());

    let (one, other) = (Kept::new(), Kept::new());
    drop(one.start());
    fs::create_dir_all(other.0.state_folder()).unwrap();
    fs::copy(one.file("last-good.snapshot"), other.file("last-good.snapshot")).unwrap();
    other.lose_store();
    assert!(other.try_start().is_err());
}

#[test]
fn a_journal_that_a_power_cut_tore_counts_up_to_there_and_a_damaged_one_is_refused() {
    let kept = Kept::new();
    let judged = kept.start();
    assert!(judged.comes_to(|_| kept.file("last-good.snapshot").exists()));
    kept.0.sql("UPDATE grants SET revoked_at = 1 WHERE target <= 2");
    assert!(judged.comes_to(|judged| judged.allowed() == 7));
    let (snapshot, journal) = (kept.file("last-good.snapshot"), kept.file("last-good.journal.1"));
    // As they are before the node stops in an orderly way.
    let (old, records) = (fs::read(&snapshot).unwrap(), fs::read(&journal).unwrap());
    drop(judged);
    kept.lose_store();
    let put = |records: &[u8]| {
        fs::write(&snapshot, &old).unwrap();
        fs::write(&journal, records).unwrap();
    };
    put(&records);
    assert_eq!(kept.start().allowed(), 7);
    // Behind the record of the ends there are others, which end nothing.
    let allowed = (1..records.len()).rev().map(|len| {
        put(&records[..len]);
        kept.start().allowed()
    });
    let torn = allowed.take(100).find(|allowed| *allowed != 7);
    assert_eq!(torn, Some(9), "the record that was torn off had not taken effect");
    for at in 0..records.len() {
        let mut damaged = records.clone();
        damaged[at] ^= 0x10;
        put(&damaged);
        assert!(kept.try_start().is_err(), "byte {at}");
    }
}

#[test]
fn a_revocation_outlives_a_crash_and_the_loss_of_the_store() {
    let site = Site::new("");
    site.cli(&["principal", "add", "bob"]);
    site.cli(&["grant", "add", "bob", "--any"]);
    let issued = site.cli(&["token", "issue", "bob"]);
    let text = |key: &str| issued[key].as_str().unwrap().to_owned();
    let (token, credential) = (text("token"), text("credential"));
    let device = Device::echo(V4);
    let bob = || Request::to(DEVICE, device.port()).bearer(&token);
    let mut relay = site.start();
    assert_eq!(bob().send(relay.address()).status, 200);
    let file = site.folder().join("state/last-good.snapshot");
    assert!(crate::support::wait_for(|| file.exists().then_some(())).is_some());

    site.cli(&["token", "revoke", &credential]);
    assert!(crate::support::wait_for(|| (bob().send(relay.address()).status == 407).then_some(())).is_some());
    relay.signal(Signal::SIGKILL);
    assert!(relay.wait().is_some());
    fs::remove_file(site.store_path()).unwrap();

    let relay = site.start();
    assert!(relay.logs("beginning with the snapshot that was kept on disk"));
    assert_eq!(bob().send(relay.address()).status, 407);
    assert_eq!(site.ask(&relay, device.port()).status, 200, "the others go on");
    let unknown = Request::to(DEVICE, device.port()).bearer("unknown").send(relay.address());
    assert_eq!(unknown.status, 503);
}

#[test]
fn a_folder_that_cannot_be_written_is_told_and_costs_nothing_else() {
    let site = Site::new("");
    fs::File::create(site.folder().join("state")).unwrap().write_all(b"no folder").unwrap();
    let relay = site.start();
    assert!(relay.logs("the node's state cannot be kept in"));
    assert_eq!(site.ask(&relay, Device::echo(V4).port()).status, 200);
}
