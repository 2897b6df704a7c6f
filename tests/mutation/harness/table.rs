//! What became of each fault, for people to read.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::bed::Ground;
use super::case::Case;
use super::run::Outcome;

/// One line for each case.
pub fn of_cases(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "| relation and column, operator, part, devices, store, ground, schedule | groups | rows in the answer | wrong | disputed | budget | heals after reads | end to refusal | ends not shown | ends given back | broken promises |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|\n",
    );
    for outcome in outcomes {
        let Outcome { case, touched, wrong, disputed, budget, heal_reads, unseen_ends, given_back, .. } =
            outcome;
        writeln!(
            text,
            "| {case} | {groups} | {touched} | {wrong} | {disputed} | {budget} | {heal_reads} | {latency} ms | {unseen_ends} | {given_back} | {failures} |",
            groups = groups(&outcome.kinds),
            latency = outcome.end_latency.as_millis(),
            failures = outcome.failures.join("; ").replace('|', "/"),
        )
        .expect("a text takes everything");
    }
    text
}

/// One line for each fault, with the worst of its cases: the table of docs/guard.md.
pub fn of_faults(outcomes: &[Outcome]) -> String {
    let mut faults: BTreeMap<String, Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        faults.entry(outcome.case.mutator.to_string()).or_default().push(outcome);
    }
    let mut text = String::from(
        "| the query's fault | cases | groups | most wrong, of the budget | 503 disputed | heals after reads | end to refusal, with outbox | ends given back by probation, without outbox |\n|---|--:|---|---|--:|--:|--:|--:|\n",
    );
    for (fault, outcomes) in faults {
        let mut kinds: Vec<_> = outcomes.iter().flat_map(|outcome| outcome.kinds.iter().copied()).collect();
        kinds.sort();
        kinds.dedup();
        let worst = outcomes
            .iter()
            .max_by_key(|outcome| (outcome.wrong * 1000 / outcome.budget.max(1), outcome.wrong));
        let worst = worst.filter(|worst| worst.wrong > 0).map_or_else(
            || "0".to_owned(),
            |worst| {
                let Case { part, size, .. } = worst.case;
                format!("{} of {} ({part} of {size})", worst.wrong, worst.budget)
            },
        );
        let disputed = outcomes.iter().map(|outcome| outcome.disputed).max().unwrap_or_default();
        let heal_reads = outcomes.iter().map(|outcome| outcome.heal_reads).max().unwrap_or_default();
        let with_outbox = outcomes.iter().filter(|outcome| outcome.case.ground != Ground::Foreign);
        let latency = with_outbox.map(|outcome| outcome.end_latency).max().unwrap_or_default();
        let latency =
            if latency == Duration::ZERO { "–".to_owned() } else { format!("{} ms", latency.as_millis()) };
        writeln!(
            text,
            "| {fault} | {cases} | {groups} | {worst} | {disputed} | {heal_reads} | {latency} | {given_back} |",
            given_back = outcomes.iter().map(|outcome| outcome.given_back).sum::<usize>(),
            cases = outcomes.len(),
            groups = groups(&kinds),
        )
        .expect("a text takes everything");
    }
    text
}

/// Leaves a table in the build's folder for tests.
pub fn write(name: &str, text: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&file, text).expect("the build's folder can be written to");
    file
}

fn groups(kinds: &[sluicegate::control::api::ChangeKind]) -> String {
    if kinds.is_empty() {
        return "–".to_owned();
    }
    kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}
