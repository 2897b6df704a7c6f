//! Every fault of a query, in all parts and sizes, on both stores: the long run of tests/integration/mutation.rs,
//! which `make mutate` starts. Arguments are words; then every case that has all of them runs, and nothing else.

mod harness;
#[path = "../support/mod.rs"]
mod support;

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use harness::{Case, Guard, Outcome, of_cases, of_faults, run_all, write};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let is_off = std::env::args().any(|argument| argument == "--guard-off");
    let guard = if is_off { Guard::Off } else { Guard::On };
    let cases: Vec<_> = match words.is_empty() {
        true => Case::selected(),
        false => Case::all().into_iter().filter(|case| case.matches(&words)).collect(),
    };
    if cases.is_empty() {
        eprintln!("no case has the words {}; one is `{}`", words.join(" "), Case::selected()[0]);
        return ExitCode::from(2);
    }
    let (began, done) = (Instant::now(), AtomicUsize::new(0));
    let threads = std::thread::available_parallelism().map_or(2, usize::from) * 2;
    let count = cases.len();
    let outcomes = run_all(&cases, guard, threads, |outcome| {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        for failure in &outcome.failures {
            println!("{}: {failure}", outcome.case);
        }
        if done % 50 == 0 {
            eprintln!("{done} of {count} cases, {} s", began.elapsed().as_secs());
        }
        let _nobody_reads = std::io::stdout().flush();
    });
    let of_cases = write("mutation-cases.md", &of_cases(&outcomes));
    let of_faults = write("mutation.md", &of_faults(&outcomes));
    let broken = outcomes.iter().filter(|outcome: &&Outcome| !outcome.failures.is_empty()).count();
    println!("{count} cases in {} s, {broken} break a promise", began.elapsed().as_secs());
    println!("tables: {} and {}", of_faults.display(), of_cases.display());
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
