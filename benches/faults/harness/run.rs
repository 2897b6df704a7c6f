//! Runs cases and judges what comes of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::bed::{Bed, Clients, thread_times};
use super::calls::{Bears, CALLS, census_numbers};
use super::case::{Case, Moment};
use super::outcome::{End, Outcome};
use crate::support::{Relay, Signal};

/// Runs the cases one after the other, and hands each outcome to `on_outcome`.
pub fn run_all(cases: &[Case], mut on_outcome: impl FnMut(&Outcome)) -> Vec<Outcome> {
    let bed = Bed::new();
    let usual = usual_log(&bed);
    let mut serving = None;
    let mut outcomes = Vec::new();
    for &case in cases {
        let mut outcome = match case.moment {
            Moment::Start => at_start(&bed, case),
            Moment::FirstSecond => {
                serving = None;
                in_first_second(&bed, case)
            }
            Moment::Once | Moment::Burst => later(&bed, &mut serving, case),
        };
        outcome.log.retain(|line| !usual.contains(line));
        on_outcome(&outcome);
        outcomes.push(outcome);
    }
    outcomes
}

/// What a relay logs without a fault.
fn usual_log(bed: &Bed) -> Vec<String> {
    let relay = Relay::start(bed.command([]));
    let mut clients = bed.clients(&relay).unwrap();
    bed.work(&relay, &mut clients, BURST);
    told(&relay.log())
}

/// Counts the calls of a relay that starts, does all its work and stops.
pub fn census() -> BTreeMap<i64, u32> {
    let bed = Bed::new();
    let mut relay = Relay::start(bed.command(census_numbers()));
    let mut clients = bed.clients(&relay).unwrap();
    bed.work(&relay, &mut clients, Duration::from_secs(3));
    relay.signal(Signal::SIGTERM);
    assert!(relay.wait().is_some_and(|status| status.success()), "{}", relay.log());
    bed.control.counts()
}

fn numbers() -> impl Iterator<Item = i64> {
    CALLS.iter().map(|call| call.number)
}

fn at_start(bed: &Bed, case: Case) -> Outcome {
    bed.control.fail(case.call.number, case.error, -1);
    let command = bed.command([case.call.number]);
    let control = &bed.control;
    let is_over = AtomicBool::new(false);
    let started = std::thread::scope(|scope| {
        scope.spawn(|| {
            while control.failed() == 0 && !is_over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
            std::thread::sleep(START_FAULT);
            control.pass();
        });
        let started = Relay::try_start(command, START_MAX);
        is_over.store(true, Ordering::Relaxed);
        started
    });
    bed.control.pass();
    let mut outcome = Outcome::of(case);
    outcome.failed_calls = bed.control.failed();
    match started {
        Ok(mut relay) => {
            let recovered = recovers(bed, &mut relay, &mut outcome);
            outcome.log = told(&relay.log());
            if recovered {
                check_threads(&relay, &mut outcome);
            }
        }
        Err((ended, log)) => {
            let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
            outcome.end = End::Ended(plain(last));
            match ended.map(|status| status.code()) {
                Some(Some(code)) if code != 101 && last.contains("sluicegate: ") => {}
                _ if case.call.bears == Bears::MayEnd && ended.is_some() => {}
                Some(_) => outcome.broken.push(format!("it ended ({ended:?}) without a message: {last}")),
                None => outcome.broken.push(format!("it neither served nor ended: {last}")),
            }
        }
    }
    outcome
}

fn in_first_second(bed: &Bed, case: Case) -> Outcome {
    let mut outcome = Outcome::of(case);
    let mut relay = match Relay::try_start(bed.command([case.call.number]), START_MAX) {
        Ok(relay) => relay,
        Err((_, log)) => panic!("a relay without a fault does not start:\n{log}"),
    };
    bed.control.fail(case.call.number, case.error, -1);
    let mut none = Clients::none();
    outcome.replies = bed.work(&relay, &mut none, BURST);
    finish(bed, &mut relay, &mut outcome, "");
    outcome
}

/// A relay that has served for some time, and its clients.
pub struct Serving {
    relay: Relay,
    clients: Clients,
}

fn later(bed: &Bed, serving: &mut Option<Serving>, case: Case) -> Outcome {
    let Serving { mut relay, mut clients } = match serving.take() {
        Some(serving) => serving,
        None => {
            let relay = Relay::start(bed.command(numbers()));
            let mut clients = bed.clients(&relay).unwrap();
            bed.work(&relay, &mut clients, Duration::from_secs(1));
            Serving { relay, clients }
        }
    };
    let mut outcome = Outcome::of(case);
    let log_before = relay.log();
    let calls = if case.moment == Moment::Once { 1 } else { -1 };
    bed.control.fail(case.call.number, case.error, calls);
    outcome.replies = bed.work(&relay, &mut clients, BURST);
    finish(bed, &mut relay, &mut outcome, &log_before);
    if outcome.end == End::Serves {
        outcome.tunnels_ended = clients.drop_ended();
        if case.moment == Moment::Once && outcome.tunnels_ended > 1 {
            outcome.broken.push(format!("one call failed and {} tunnels ended", outcome.tunnels_ended));
        }
        let is_whole = outcome.tunnels_ended == 0 && outcome.broken.is_empty();
        if is_whole {
            *serving = Some(Serving { relay, clients });
        } else if outcome.broken.is_empty()
            && let Ok(clients) = bed.clients(&relay)
        {
            *serving = Some(Serving { relay, clients });
        }
    }
    outcome
}

/// Ends the fault and waits until everything is as before.
fn finish(bed: &Bed, relay: &mut Relay, outcome: &mut Outcome, log_before: &str) {
    bed.control.pass();
    outcome.failed_calls = bed.control.failed();
    let recovered = recovers(bed, relay, outcome);
    let log = relay.log();
    outcome.log = told(log.get(log_before.len()..).unwrap_or_default());
    if recovered {
        check_threads(relay, outcome);
    }
}

fn recovers(bed: &Bed, relay: &mut Relay, outcome: &mut Outcome) -> bool {
    let began = Instant::now();
    loop {
        if let Some(status) = relay.ended() {
            std::thread::sleep(Duration::from_millis(50));
            let log = relay.log();
            let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
            outcome.end = End::Ended(plain(last));
            if outcome.case.call.bears == Bears::All {
                outcome.broken.push(format!("the process ended: {status}: {last}"));
            }
            return false;
        }
        let Some(trouble) = bed.trouble(relay) else { break };
        if began.elapsed() > RECOVERY_MAX {
            outcome.broken.push(format!("it has not recovered within {RECOVERY_MAX:?}: {trouble}"));
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    outcome.recovered_after = began.elapsed();
    true
}

/// No thread spins: while nobody asks for anything, each uses a small part of its time.
fn check_threads(relay: &Relay, outcome: &mut Outcome) {
    // A thread may have some work left.
    for attempt in 0..IDLE_ATTEMPTS {
        let before = thread_times(relay.pid());
        std::thread::sleep(IDLE);
        let after = thread_times(relay.pid());
        let busy: Vec<String> = after
            .iter()
            .filter_map(|(id, name, time)| {
                let (.., earlier) = before.iter().find(|(other, ..)| other == id)?;
                let part = Duration::from_nanos(time - earlier).as_secs_f64() / IDLE.as_secs_f64();
                (part > IDLE_PART_MAX).then(|| format!("{name} {:.0} %", part * 100.0))
            })
            .collect();
        if busy.is_empty() {
            return;
        }
        if attempt + 1 == IDLE_ATTEMPTS {
            outcome.broken.push(format!("threads spin while idle: {}", busy.join(", ")));
        }
    }
}

impl Outcome {
    fn of(case: Case) -> Self {
        Self {
            case,
            failed_calls: 0,
            end: End::Serves,
            tunnels_ended: 0,
            replies: Vec::new(),
            log: Vec::new(),
            recovered_after: Duration::ZERO,
            broken: Vec::new(),
        }
    }
}

/// The lines of a log that warn, each once.
fn told(log: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")) {
        let line = plain(line);
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}

/// A line without its time, its colours, and what differs from run to run.
fn plain(line: &str) -> String {
    let line = line.split_once("WARN ").or(line.split_once("ERROR ")).map_or(line, |(_, rest)| rest);
    let words = line.split_whitespace().map(|word| {
        let is_path = word.contains("/tmp") || word.contains("127.0.0.1:") || word.contains("[::1]:");
        if is_path { "…".to_owned() } else { word.to_owned() }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Time that a call fails at the beginning of a program, from its first failure on.
const START_FAULT: Duration = Duration::from_millis(500);

/// Longest start.
const START_MAX: Duration = Duration::from_secs(12);

const BURST: Duration = Duration::from_millis(500);

/// Longest recovery after the end of a fault. A store is asked again within seconds.
const RECOVERY_MAX: Duration = Duration::from_secs(12);

/// Time for which idle threads are watched, and the part of it that one may use. Nothing is left to do, but other
/// processes have clients.
const IDLE: Duration = Duration::from_millis(300);
const IDLE_PART_MAX: f64 = 0.4;
const IDLE_ATTEMPTS: usize = 4;
