//! What the control thread costs, on a store in memory: of `SLUICEGATE_BENCH_GRANTS` grants (1,000,000 if unset), the
//! memory of a node and the thread's CPU time for a publication of one changed row, alone and while masses are held; and
//! whether 1,000,000 rights that have ended cost memory once nothing can revive them.
//!
//! Each part runs in a process of its own, whose memory is its alone.

mod made_store;
#[path = "../support/mod.rs"]
mod support;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use made_store::{MadeStore, Node, Slip, moved};
use sluicegate::authz::{Change, Credential, Device, Grant, GrantId, KeyHash, PortRange, PrincipalId, Scope};
use sluicegate::config::{Allowance, Config};
use sluicegate::store::Word;
use support::{Population, resident_bytes};

/// The relay's own, since building, changing and freeing allocate.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Publications of one changed row that are measured in each state of the node.
const PUBLICATIONS: usize = 500;

fn main() -> ExitCode {
    let grants = match std::env::var("SLUICEGATE_BENCH_GRANTS") {
        Ok(text) => text.parse().expect("SLUICEGATE_BENCH_GRANTS is a number of grants"),
        Err(_) => 1_000_000,
    };
    match std::env::var(PART).as_deref() {
        Ok("publish") => publish(grants),
        Ok("fresh") => println!("{}", fresh()),
        Ok("ended") => println!("{}", after_ends()),
        _ => {
            let is_met = run("publish").is_some() & ended_rights_are_free();
            return if is_met { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    }
    ExitCode::SUCCESS
}

/// Runs a part in a process of its own, which shows its errors; `None` where it misses a figure.
fn run(part: &str) -> Option<String> {
    let program = std::env::current_exe().expect("this program has a path");
    let output = Command::new(program).env(PART, part).stderr(std::process::Stdio::inherit()).output();
    let output = output.expect("this program can be started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if part == "publish" {
        print!("{text}");
    }
    output.status.success().then_some(text)
}

fn publish(grants: usize) {
    let before = resident_bytes();
    let began = Instant::now();
    let config: Config = toml::from_str("authz.refresh = '1h'\nauthz.reconcile = '1s'").expect("it is valid");
    let node = Node::start(MadeStore::new(grants), &config);
    println!("{grants} grants in force after {:.1} s", began.elapsed().as_secs_f64());
    node.wait_for("a second read", |node| node.control.status().get().reads_of_everything >= 2);
    let bytes = resident_bytes_at_rest().saturating_sub(before);
    let per_grant = bytes as f64 / grants as f64;
    println!(
        "{per_grant:.1} bytes of memory per grant, with the guard's baseline and the owners of addresses"
    );
    println!("one changed row: {:<26} {:>12} {:>10} {:>10}", "", "CPU, us", "p50, us", "p99, us");
    let rows = Rows { grants: Population::grants_of(grants), devices: Population::devices_of(grants) };
    let mut is_met = true;
    is_met &= rows.measure_all(&node, "nothing held", 0);
    // Within the budget: they are in the ledger for ten minutes.
    let missing = (grants as f64).sqrt() as usize / 4;
    node.store.change(Slip { absent_grants: missing, ..Slip::default() });
    node.wait_for("the absences", |node| node.control.status().get().absences_honoured >= missing as u64);
    is_met &= rows.measure_all(&node, &format!("{missing} in the ledger"), 1);
    let held = (grants / 10).min(HELD);
    node.store.change(Slip { absent_grants: missing + held, moved_devices: held });
    node.wait_for("the holds", |node| node.control.status().get().held.len() >= 2);
    is_met &= rows.measure_all(&node, &format!("{held} + {held} held"), 2);
    assert!(node.control.status().get().held.len() >= 2, "the masses are still held");
    node.store.change(Slip::default());
    node.wait_for("the mend", |node| node.control.status().get().held.is_empty());
    rows.measure_beside_a_whole_read(&node);
    if grants >= 10_000_000 && per_grant > BYTES_PER_GRANT {
        is_met = false;
    }
    if !is_met {
        std::process::exit(1);
    }
}

/// Rows of the store, as they are before a bench changes them.
struct Rows {
    grants: Vec<Grant>,
    devices: Vec<Device>,
}

impl Rows {
    /// Measures every kind of word, on rows that no other round has had.
    fn measure_all(&self, node: &Node, state: &str, round: usize) -> bool {
        let rows = |count: usize| {
            let part = count / 4;
            let begin = part * (round + 1);
            let step = (part / PUBLICATIONS / 2).max(1);
            (0..PUBLICATIONS).map(move |number| begin + number * step)
        };
        let grant = |place: usize| self.grants[place];
        let revoked =
            rows(self.grants.len()).map(|place| Change::Grant(Grant { revoked: true, ..grant(place) }));
        let deleted = rows(self.grants.len()).map(|place| Change::GrantGone(grant(place + 1).id));
        let moves = rows(self.devices.len()).map(|place| Change::Device(moved(&self.devices[place])));
        measure(node, &format!("revoked grant, {state}"), revoked)
            & measure(node, &format!("deleted grant, {state}"), deleted)
            & measure(node, &format!("moved device, {state}"), moves)
    }
}

impl Rows {
    /// Prints how long single words wait while all rows are read anew.
    fn measure_beside_a_whole_read(&self, node: &Node) {
        let reads = || node.control.status().get().reads_of_everything;
        let until = reads() + 2;
        node.store.change(Slip::default());
        let (mut longest, mut count) = (Duration::ZERO, 0);
        for grant in &self.grants[self.grants.len() / 8..] {
            if reads() >= until {
                break;
            }
            let began = Instant::now();
            node.store.say(vec![Word::Row(Change::Grant(Grant { revoked: true, ..*grant }))]);
            node.published.recv_timeout(PATIENCE).expect("it is published");
            (longest, count) = (longest.max(began.elapsed()), count + 1);
            std::thread::sleep(BETWEEN);
        }
        println!(
            "{count} grants revoked while all is read anew: the longest wait is {:.0} ms",
            longest.as_secs_f64() * 1e3
        );
    }
}

/// Prints one line of figures; false where they are too high.
fn measure(node: &Node, name: &str, changes: impl Iterator<Item = Change>) -> bool {
    while node.published.try_recv().is_ok() {}
    let mut latency = Histogram::<u64>::new(3).expect("three digits are within bounds");
    let (cpu_before, mut count) = (control_cpu(), 0);
    for change in changes {
        let began = Instant::now();
        node.store.say(vec![Word::Row(change)]);
        node.published.recv_timeout(PATIENCE).expect("it is published");
        latency.record(began.elapsed().as_nanos() as u64).expect("the histogram grows by itself");
        count += 1;
        // What follows a publication is a part of it.
        std::thread::sleep(BETWEEN);
    }
    let cpu = (control_cpu() - cpu_before) / count;
    let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
    println!("{name:<43} {:>12.0} {:>10.0} {:>10.0}", cpu.as_secs_f64() * 1e6, at(0.5), at(0.99));
    cpu < PROMISE
}

/// CPU time of the control thread so far.
fn control_cpu() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").expect("Linux lists threads").flatten();
    let mut paths = threads.map(|thread| thread.path());
    let is_control = |path: &std::path::PathBuf| {
        std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "control")
    };
    let thread = paths.find(is_control).expect("the control thread runs");
    let times = std::fs::read_to_string(thread.join("schedstat")).expect("Linux counts its time");
    let ns = times.split_whitespace().next().and_then(|ns| ns.parse().ok());
    Duration::from_nanos(ns.expect("a number of nanoseconds"))
}

/// Compares a node on which rights have ended with one of which they never were.
fn ended_rights_are_free() -> bool {
    let bytes = |part| run(part).and_then(|text| text.trim().parse::<u64>().ok()).expect("a number of bytes");
    let (fresh, ended) = (bytes("fresh"), bytes("ended"));
    let ratio = ended as f64 / fresh as f64;
    println!(
        "memory of {MEMORY_GRANTS} grants: {} MB; after {ENDED} more were given and have ended: {} MB, {ratio:.2} times",
        fresh >> 20,
        ended >> 20
    );
    ratio <= MEMORY_RATIO
}

/// A node on which no right has ended, and that has read the store as often; its memory then.
fn fresh() -> u64 {
    let node = Node::start(MadeStore::new(MEMORY_GRANTS), &quick());
    for _ in (0..ENDED).step_by(AT_ONCE) {
        let reads = node.control.status().get().reads_of_everything;
        node.store.change(Slip::default());
        node.wait_for("another read", |node| node.control.status().get().reads_of_everything > reads);
    }
    settled_bytes(&node)
}

/// A node on which rights are given and end by the store's word, [`AT_ONCE`] in each window, until they are forgotten; its
/// memory then.
fn after_ends() -> u64 {
    let node = Node::start(MadeStore::new(MEMORY_GRANTS), &quick());
    for first in (0..ENDED).step_by(AT_ONCE) {
        while node.published.try_recv().is_ok() {}
        let mut known = 0;
        for first in (first..first + AT_ONCE).step_by(BATCH) {
            let batch = first..first + BATCH;
            node.store.say(batch.clone().map(|number| Word::Row(given(number))).collect());
            node.store.say(batch.map(|number| Word::Row(ended(number))).collect());
            for _ in 0..2 {
                node.published.recv_timeout(PATIENCE).expect("it is published");
            }
            known = known.max(ends(&node));
        }
        assert!(known > 0, "the ends from {first} on are known: {:?}", node.control.status().get());
        node.wait_for("the last of the ends to be forgotten", |node| {
            // As a store does whose whole answers come again and again.
            node.store.change(Slip::default());
            std::thread::sleep(REST / 4);
            ends(node) == 0
        });
    }
    settled_bytes(&node)
}

fn ends(node: &Node) -> usize {
    node.authority.pin().get().map_or(0, |view| view.revocations.len())
}

/// One in four of the rights that end is a credential.
fn given(number: usize) -> Change {
    let principal = PrincipalId(number as i64 % 1_000);
    if number.is_multiple_of(4) {
        let key = key(number);
        Change::Credential(Credential { key, principal, expires_at: None, revoked: false })
    } else {
        let (id, ports) = (grant_id(number), PortRange::ANY);
        Change::Grant(Grant { id, principal, scope: Scope::Any, ports, expires_at: None, revoked: false })
    }
}

fn ended(number: usize) -> Change {
    if number.is_multiple_of(4) {
        Change::CredentialGone(key(number))
    } else {
        Change::GrantGone(grant_id(number))
    }
}

fn key(number: usize) -> KeyHash {
    KeyHash::of_token(format!("ended {number}").as_bytes())
}

fn grant_id(number: usize) -> GrantId {
    GrantId((MEMORY_GRANTS + number) as i64)
}

/// Settings by which time passes quickly, and no number of explicit ends is a mass.
fn quick() -> Config {
    let mut config: Config =
        toml::from_str("authz.refresh = '1h'\nauthz.reconcile = '1s'").expect("it is valid");
    config.authz.guard.window = Duration::from_secs(2);
    config.authz.guard.budgets.explicit = Some(Allowance { share: 1.0, rows: 10 * ENDED });
    config
}

fn settled_bytes(node: &Node) -> u64 {
    let reads = node.control.status().get().reads_of_everything;
    node.wait_for("two more reads", |node| node.control.status().get().reads_of_everything >= reads + 2);
    resident_bytes_at_rest()
}

/// The allocator returns free memory after a while.
fn resident_bytes_at_rest() -> u64 {
    std::thread::sleep(REST);
    resident_bytes()
}

/// Names the part that a process runs.
const PART: &str = "SLUICEGATE_BENCH_PART";

/// CPU time of the control thread that a publication of one changed row may take.
const PROMISE: Duration = Duration::from_millis(1);

/// Bytes that a grant may take at 10,000,000, with its share of credentials and devices.
const BYTES_PER_GRANT: f64 = 72.0;

/// Memory of a node after rights have ended, by that of a fresh one.
const MEMORY_RATIO: f64 = 1.05;

const MEMORY_GRANTS: usize = 1_000_000;

const ENDED: usize = 1_000_000;

/// Rights that are given and end together.
const BATCH: usize = 5_000;

/// Rights that end before the node may forget them.
const AT_ONCE: usize = 50_000;

/// Rows of each mass that is held, close to what the guard keeps one by one.
const HELD: usize = 90_000;

const PATIENCE: Duration = Duration::from_secs(60);

const BETWEEN: Duration = Duration::from_millis(2);

const REST: Duration = Duration::from_secs(3);
