//! Every system call of a relay with every error that it may give, at the start, in the first second, and later: the
//! long run of tests/integration/faults.rs, which `make faults` starts. Arguments are words; then every case that has
//! all of them runs, and no page is written.

mod harness;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use harness::{
    Case, Moment, Outcome, census, census_misses, of_outcomes, put_into_page, run_all, supervisor_or_skip,
};

fn main() -> ExitCode {
    if !supervisor_or_skip("faults") {
        return ExitCode::from(2);
    }
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let cases: Vec<Case> = Case::all().into_iter().filter(|case| case.matches(&words)).collect();
    let began = Instant::now();
    let mut broken = 0;
    if words.is_empty() {
        let counts = census();
        println!("census: {} kinds of calls", counts.len());
        for number in census_misses(&counts) {
            println!("call {number} is made and is not in the table");
            broken += 1;
        }
    }
    let report = |outcome: &Outcome| {
        for failure in &outcome.broken {
            println!("{}: {failure}", outcome.case);
        }
    };
    // Each moment has a relay of its own, and most of the time is spent on waiting.
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let of_moments: Vec<_> = Moment::ALL
            .into_iter()
            .map(|moment| {
                let cases: Vec<Case> = cases.iter().filter(|case| case.moment == moment).copied().collect();
                scope.spawn(move || if cases.is_empty() { Vec::new() } else { run_all(&cases, report) })
            })
            .collect();
        of_moments.into_iter().flat_map(|moment| moment.join().expect("a moment ends")).collect()
    });
    broken += outcomes.iter().filter(|outcome| !outcome.broken.is_empty()).count();
    let table = of_outcomes(&outcomes);
    println!("{} cases in {} s, {broken} break a promise", cases.len(), began.elapsed().as_secs());
    if words.is_empty() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/faults.md");
        put_into_page(&page, &table).expect("docs/faults.md has a place for the table");
        println!("table: {}", page.display());
    } else {
        println!("{table}");
    }
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
