//! The command line: `[--seed N] [--seconds N] [--trace] [--shrink SECONDS]`.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::panics;
use super::run::{Outcome, play};
use super::shrink::shrink;
use super::tape::Tape;

/// What was asked for.
struct Options {
    seed: Option<u64>,
    seconds: Option<u64>,
    shrink_seconds: u64,
    has_trace: bool,
}

/// The histories of a run.
#[derive(Default)]
struct Totals {
    histories: u64,
    clients: usize,
    opened: u64,
    events: u64,
}

/// Plays histories until one fails or the time is over.
pub fn run() -> ExitCode {
    let options = match options(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}; use [--seed N] [--seconds N] [--shrink SECONDS] [--trace]");
            return ExitCode::from(2);
        }
    };
    panics::watch();
    let first = options.seed.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64 >> 10)
    });
    let time = match (options.seed, options.seconds) {
        (Some(_), None) => Duration::ZERO,
        (_, seconds) => Duration::from_secs(seconds.unwrap_or(SECONDS)),
    };
    let (began, mut totals, mut seed) = (Instant::now(), Totals::default(), first);
    loop {
        let outcome = play(Tape::of_seed(seed), options.has_trace);
        if let Some(violation) = &outcome.violation {
            let (seconds, histories) = (began.elapsed().as_secs_f64(), totals.histories + 1);
            let cpu = cpu_seconds();
            println!(
                "seed {seed}: {violation} (after {seconds:.1} s, {cpu:.1} s of CPU, {histories} histories)"
            );
            report(outcome, &options);
            println!("make simulate SEED={seed} plays it again");
            return ExitCode::FAILURE;
        }
        if options.seed.is_some() && time.is_zero() {
            let (hash, events) = outcome.trace.summary();
            println!("seed {seed}: {events} events, trace {hash:016x}");
        }
        totals.histories += 1;
        totals.clients += outcome.tunnels;
        totals.opened += outcome.opened;
        totals.events += outcome.trace.summary().1;
        if options.has_trace {
            outcome.trace.into_lines().iter().for_each(|line| println!("{line}"));
        }
        seed = seed.wrapping_add(1);
        if began.elapsed() >= time {
            break;
        }
    }
    println!(
        "seeds {first} to {}: {} histories, {} clients, {} tunnels, {} events in {:.1} s ({:.1} s of CPU); every \
         promise was kept",
        seed.wrapping_sub(1),
        totals.histories,
        totals.clients,
        totals.opened,
        totals.events,
        began.elapsed().as_secs_f64(),
        cpu_seconds()
    );
    ExitCode::SUCCESS
}

/// CPU time of this process so far.
fn cpu_seconds() -> f64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .map_or(0.0, |time| Duration::from(time).as_secs_f64())
}

/// Prints the shortest history that fails as this one does.
fn report(outcome: Outcome, options: &Options) {
    let violation = outcome.violation.unwrap_or_default();
    if options.has_trace {
        outcome.trace.into_lines().iter().for_each(|line| println!("{line}"));
    }
    if options.shrink_seconds == 0 {
        return;
    }
    let before = outcome.choices.len();
    let shortest = shrink(outcome.choices, &violation, Duration::from_secs(options.shrink_seconds));
    let again = play(Tape::of_choices(shortest.clone()), true);
    let violation = again.violation.unwrap_or_default();
    println!("its shortest history has {} choices of {before}: {violation}", shortest.len());
    let lines = again.trace.into_lines();
    let from = lines.len().saturating_sub(LINES_SHOWN);
    lines.iter().take(1).chain(&lines[from.max(1)..]).for_each(|line| println!("{line}"));
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { seed: None, seconds: None, shrink_seconds: SHRINK_SECONDS, has_trace: false };
    while let Some(name) = arguments.next() {
        let mut number = || {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a number"))?;
            value.parse().map_err(|_| format!("{name} needs a number, and not {value}"))
        };
        match name.as_str() {
            "--seed" => options.seed = Some(number()?),
            "--seconds" => options.seconds = Some(number()?),
            "--shrink" => options.shrink_seconds = number()?,
            "--trace" => options.has_trace = true,
            other => return Err(format!("{other} is no option")),
        }
    }
    Ok(options)
}

/// Time for fresh seeds where nothing says how long, in seconds.
const SECONDS: u64 = 60;

/// Time for making the history of a failure shorter.
const SHRINK_SECONDS: u64 = 30;

/// Last lines of a history that are shown.
const LINES_SHOWN: usize = 200;
