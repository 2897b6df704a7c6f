//! The production shape: TLS, a load balancer, two VPN nodes with a relay each, one PostgreSQL, devices behind a real
//! VPN, and real clients, of which one is the tunnel code of the `balena` CLI. README.md beside this says how to look
//! around in it.
//!
//! The incident happened where tests did not go: on the path between nodes, with a real client, against live data.

mod balena;
mod devices;
mod haproxy;
mod openvpn;
mod pki;
mod places;
mod relays;
mod steps;
mod store;
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::fmt::Write;
use std::io::stdin;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use balena::Balena;
use steps::STEPS;
use store::Store;
use support::{root_or_skip, skip, tools_or_skip};
use world::{Ground, World};

const TEST: &str = "what_people_do_works_from_end_to_end";

#[test]
fn what_people_do_works_from_end_to_end() {
    if !can_run() {
        return;
    }
    let began = Instant::now();
    let ground = Ground::new();
    let Some(cluster) = Store::cluster(&ground.database) else { return };
    let mut report = Report::default();
    let mut world = report.step("the environment comes up", || World::new(&ground, &cluster));
    let only = std::env::var(ONLY).unwrap_or_default();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        for step in STEPS.iter().filter(|step| only.is_empty() || step.name == only) {
            report.step(&step.name.replace('_', " "), || (step.run)(&mut world));
        }
    }));
    if std::env::var(KEEP).is_ok_and(|keep| !keep.is_empty()) {
        keep_up(&ground);
    }
    outcome.unwrap_or_else(|panic| resume_unwind(panic));
    assert!(report.steps > 1, "{ONLY} is `{only}`, and no step has that name");
    report.write(began.elapsed());
}

fn can_run() -> bool {
    root_or_skip(TEST)
        && tools_or_skip(TEST, &["openvpn", "haproxy", "node", "psql", "setpriv", "nsenter", "ip"])
        && tools_or_skip(TEST, &["curl", "ssh", "sshd", "ssh-keygen", "socat", "openssl"])
        && (Path::new("/dev/net/tun").exists() || skip(TEST, "needs TUN: /dev/net/tun is not there"))
        && (Balena::is_installed()
            || skip(
                TEST,
                "needs the balena CLI's tunnel code, which `make tools` installs from npm's registry",
            ))
}

/// The steps that ran, with the time that each took.
#[derive(Default)]
struct Report {
    lines: String,
    steps: usize,
}

impl Report {
    /// Does it, and says so.
    fn step<T>(&mut self, name: &str, act: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
            println!("{:>8}  {name}: FAILED", seconds(began.elapsed()));
            resume_unwind(panic)
        });
        println!("{:>8}  {name}", seconds(began.elapsed()));
        writeln!(self.lines, "| {name} | {} |", seconds(began.elapsed())).unwrap();
        self.steps += 1;
        done
    }

    /// Leaves it in the build's folder for tests.
    fn write(&self, took: Duration) {
        println!("{:>8}  in all", seconds(took));
        let text = format!("| step | time |\n|---|--:|\n{}| in all | {} |\n", self.lines, seconds(took));
        std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e.md"), text).unwrap();
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// Says how to look around, and waits until somebody has.
fn keep_up(ground: &Ground) {
    println!("\nThe environment stays up. Logs and configurations are in {}.", ground.folder().display());
    println!("To run a command on one of its machines, put this before it:\n");
    for place in ground.places() {
        let file = ground.folder().join(format!("on-{}", place.name));
        place.write_way_in(&file);
        println!("  {:<40} # {}", file.display(), place.address);
    }
    println!("\nEnter takes it down.");
    let _closed_or_done = stdin().read_line(&mut String::new());
}

/// The one step that is to run.
const ONLY: &str = "SLUICEGATE_E2E_STEP";

/// Variable that keeps the environment up after the last step, or after the one that failed.
const KEEP: &str = "SLUICEGATE_E2E_KEEP";
