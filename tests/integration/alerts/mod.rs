//! Each alert is fired by its fault on a running relay, and none by an ordinary day.
//!
//! A test scrapes real relays. Each scrape stands for one minute, so that a day takes a minute; Prometheus's own rule
//! engine (`promtool test rules`) then evaluates the shipped rules over the recording.

mod day;
mod faults;
mod recording;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use recording::{Recording, Scrape};

/// Calm minutes before a fault: longer than the longest range of a rule without `offset`, so that a count from before
/// the recording is no change.
const CALM_MINUTES: usize = 12;

/// The minutes until an alert fires, from the table of the runbook.
fn fires_after() -> BTreeMap<String, usize> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring/OPERATIONS.md");
    let page = std::fs::read_to_string(page).unwrap();
    let row = |line: &str| {
        let cells: Vec<&str> = line.strip_prefix("| [Sluicegate")?.split(" | ").collect();
        let [name, _, _, after, ..] = cells[..] else { panic!("{line}") };
        let after = match after {
            "the next scrape" => 0,
            minutes => minutes.strip_suffix(" min").and_then(|count| count.parse().ok()).expect(line),
        };
        Some((format!("Sluicegate{}", name.split(']').next().unwrap()), after))
    };
    page.lines().filter_map(row).collect()
}

/// Shows that the fault which began at [`CALM_MINUTES`] fires `alert` when the runbook says so, and beside it no alert
/// but `others`, which the same fault may fire.
#[track_caller]
fn prove(alert: &str, others: &[&str], recording: &Recording) {
    let after = fires_after()[alert];
    let firing = format!("ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}}");
    let began = format!("min(min_over_time(timestamp({firing})[1d:1m])) / 60 - {CALM_MINUTES}");
    let expected = [alert].iter().chain(others).copied().collect::<Vec<_>>().join("|");
    let strangers = format!("ALERTS{{alertname!~\"{expected}\",alertstate=\"firing\"}}");
    recording.evaluate(&[
        (&began, Some(after as f64)),
        (&format!("count by (alertname) (count_over_time({strangers}[1d]))"), None),
    ]);
}

#[test]
fn the_runbook_has_a_row_for_each_alert_and_each_is_proved_here() {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring/alerts.yml");
    let rules = std::fs::read_to_string(rules).unwrap();
    let alerts: BTreeSet<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let table = fires_after();
    assert_eq!(table.keys().map(String::as_str).collect::<BTreeSet<_>>(), alerts);
    let faults = include_str!("faults.rs");
    for alert in alerts {
        assert!(faults.contains(&format!("prove(\"{alert}\"")), "no fault of {alert} is tried");
    }
}
