//! Whatever a query comes to answer, few decisions are wrong, for a short time, and none of them for ever: a sample of
//! the faults that `make mutate` runs. `tests/mutation/harness` has what a fault is and what must hold.

#[path = "../mutation/harness/mod.rs"]
mod harness;

use harness::{Case, Guard, StoreKind, of_cases, run_all, write};

#[test]
fn no_fault_of_a_query_breaks_a_promise_on_sqlite() {
    let sample: Vec<_> = Case::sample(StoreKind::Sqlite).into_iter().filter(is_certain).collect();
    keep_the_promises("mutation-sqlite.md", &sample);
}

#[test]
fn no_fault_of_a_query_breaks_a_promise_on_postgres() {
    let every_sixth: Vec<_> =
        Case::sample(StoreKind::Postgres).into_iter().filter(is_certain).step_by(6).collect();
    keep_the_promises("mutation-postgres.md", &every_sixth);
}

#[test]
fn no_fault_beside_an_outbox_breaks_a_promise() {
    let beside_an_outbox: Vec<_> = Case::selected()
        .into_iter()
        .filter(|case| case.has_outbox() && case.size == 40 && !reads_words_by_a_view(case))
        .step_by(17)
        .collect();
    keep_the_promises("mutation-outbox.md", &beside_an_outbox);
}

#[test]
fn with_the_guard_off_the_same_faults_break_promises() {
    let cases: Vec<_> = Case::sample(StoreKind::Sqlite)
        .into_iter()
        .filter(Case::is_caught_by_the_guard)
        .filter(is_of_rights)
        .collect();
    assert!(cases.len() >= 4, "{} cases", cases.len());
    let outcomes = run_all(&cases, Guard::Off, THREADS, |_| {});
    let kept: Vec<_> = outcomes.iter().filter(|outcome| outcome.failures.is_empty()).collect();
    let kept: Vec<_> = kept.iter().map(|outcome| outcome.case.to_string()).collect();
    assert_eq!(kept, [""; 0], "break no promise without the guard");
}

/// A device that reads as offline is refused with or without a guard, for a while: the harness counts it apart.
fn is_of_rights(case: &Case) -> bool {
    !case.to_string().starts_with("devices.online")
}

/// A view in the place of one of our tables lies in the words as well, since they are read by it; what it says of a row that
/// changes meanwhile counts as the store's own word. `make mutate` runs these as well.
fn reads_words_by_a_view(case: &Case) -> bool {
    case.to_string().contains(" reference ")
}

/// Where a fault drifts within its budget and no outbox names single ends, probation may give an end back beside the fault.
/// Which of the two comes first depends on the load of the machine. `make mutate` runs these as well.
fn is_certain(case: &Case) -> bool {
    let name = case.to_string();
    !(name.contains("foreign") && name.contains("drifting"))
}

fn keep_the_promises(file: &str, cases: &[Case]) {
    let outcomes = run_all(cases, Guard::On, THREADS, |_| {});
    let table = write(file, &of_cases(&outcomes));
    let broken: Vec<_> = outcomes.iter().filter(|outcome| !outcome.failures.is_empty()).collect();
    let lines: Vec<_> =
        broken.iter().map(|outcome| format!("{}: {}", outcome.case, outcome.failures.join("; "))).collect();
    let (count, of, table) = (broken.len(), outcomes.len(), table.display());
    assert!(broken.is_empty(), "{count} of {of} cases break a promise ({table}):\n{}", lines.join("\n"));
    let requests: usize = outcomes.iter().map(|outcome| outcome.requests).sum();
    assert!(outcomes.is_empty() || requests > outcomes.len(), "clients went on");
}

/// Cases that run side by side. Most of their time they wait for reads.
const THREADS: usize = 6;
