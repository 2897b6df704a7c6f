//! The table of all outcomes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Attack, Outcome, Target};

/// The head of the table.
pub fn header() -> String {
    let columns = [
        "attack",
        "target",
        "attempts",
        "p99 before",
        "p99 during",
        "tunnels lost",
        "opened",
        "not opened",
        "opening p99",
        "memory before",
        "memory at most",
        "descriptors at most",
        "recovered after",
    ];
    format!("| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len()))
}

/// A line of the table.
pub fn line(attack: &Attack, target: &Target, outcome: &Outcome) -> String {
    let Outcome { before, during, after, .. } = outcome;
    let cells = [
        attack.name.to_owned(),
        target.name().to_owned(),
        outcome.attempts.to_string(),
        millis(before.p99),
        millis(during.p99),
        (during.lost + after.lost).to_string(),
        during.opened.to_string(),
        during.not_opened.to_string(),
        millis(during.opening_p99),
        mebibytes(outcome.rss_bytes_before),
        mebibytes(outcome.rss_bytes_max),
        outcome.descriptors_max.to_string(),
        outcome.recovered_after.map_or_else(|| "not within 20 s".to_owned(), millis),
    ];
    format!("| {} |\n", cells.join(" | "))
}

/// Writes a text below the build's folder, and returns where.
pub fn write(name: &str, text: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&file, text).expect("the build's folder can be written to");
    file
}

fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / 1024.0 / 1024.0)
}
