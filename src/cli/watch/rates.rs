//! Rates between two status reports, and the lines about what decides.

use super::ago;
use crate::admin::api::{EngineThread, HoldStatus, StatusReport};
use crate::cli::output::rfc3339;

/// Rates per second between two reports.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub opened: f64,
    pub refused: f64,
    /// Share of a CPU that each thread used, in the order of the report. `None` where the kernel keeps no count.
    pub loads: Vec<Option<f64>>,
}

impl Rates {
    /// Computes the rates. Where the relay restarted in between, its counts began again at 0, and the rate is 0.
    pub fn between(before: &StatusReport, after: &StatusReport) -> Self {
        let (before, after) = (&before.figures, &after.figures);
        let seconds = (after.at.0.saturating_sub(before.at.0).max(1)) as f64 / 1000.0;
        let per_second = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
        let load = |(before, after): (&EngineThread, &EngineThread)| {
            Some(per_second(before.cpu_ns?, after.cpu_ns?) / 1e9)
        };
        Self {
            bytes_up: per_second(before.bytes.up(), after.bytes.up()) as u64,
            bytes_down: per_second(before.bytes.down(), after.bytes.down()) as u64,
            opened: per_second(before.sessions.opened, after.sessions.opened),
            refused: per_second(before.sessions.refused, after.sessions.refused),
            loads: before.threads.iter().zip(&after.threads).map(load).collect(),
        }
    }
}

/// One line for people about what decides: the store, the guard, or the state on disk.
#[derive(Debug, PartialEq, Eq)]
pub struct StateLine {
    pub name: &'static str,
    pub text: String,
    /// An operator should act.
    pub is_alarm: bool,
}

impl StateLine {
    /// The line that matters most, for a screen with room for one.
    pub fn most_urgent(report: &StatusReport) -> Self {
        let urgent = [Self::guard(report), Self::store(report)]
            .into_iter()
            .chain(Self::state(report))
            .chain(Self::config(report));
        urgent.into_iter().find(|line| line.is_alarm).unwrap_or_else(|| Self::guard(report))
    }

    /// The store, and what becomes of decisions while it cannot be read.
    pub fn store(report: &StatusReport) -> Self {
        let Some(error) = &report.source.last_error else {
            return Self { name: "store", text: report.source.store.clone(), is_alarm: false };
        };
        let deadline = match report.figures.decides_until {
            None => "nothing is in force, so nothing can be decided".to_owned(),
            Some(until) if until <= report.figures.at => {
                "authz.max_stale is over, so nothing is decided any more".to_owned()
            }
            Some(until) => {
                let left = ago(until, report.figures.at);
                format!("what is in force decides until {}, for {left}; then clients get 503", rfc3339(until))
            }
        };
        Self { name: "store", text: format!("CANNOT BE READ: {error}; {deadline}"), is_alarm: true }
    }

    /// What the guard holds.
    pub fn guard(report: &StatusReport) -> Self {
        let (at, source) = (report.figures.at, &report.source);
        let line = |text, is_alarm| Self { name: "guard", text, is_alarm };
        let Some(first) = source.holds.iter().min_by_key(|held| held.since) else {
            return match source.figures.disputed_devices {
                0 => line("holds nothing back".to_owned(), false),
                disputed => line(format!("{disputed} devices are disputed"), true),
            };
        };
        let since = ago(at, first.since);
        if let [held] = source.holds.as_slice() {
            let HoldStatus { rule, figures, .. } = held;
            return line(format!("HOLDS {} by rule {rule} for {since}: {figures}", held.subject()), true);
        }
        let subjects: Vec<String> = source.holds.iter().map(HoldStatus::subject).collect();
        let count = subjects.len();
        line(format!("HOLDS {count} groups, the first for {since}: {}", subjects.join(", ")), true)
    }

    /// The last reload of the configuration, where there was one.
    pub fn config(report: &StatusReport) -> Option<Self> {
        let last = report.config.last.as_ref()?;
        let since = ago(report.figures.at, last.at);
        Some(match &last.error {
            None => Self { name: "config", text: format!("reloaded {since} ago"), is_alarm: false },
            Some(error) => {
                let text = format!("RELOAD REFUSED {since} ago: {}", error.replace('\n', "; "));
                Self { name: "config", text, is_alarm: true }
            }
        })
    }

    /// The state on disk, where it is older than what is in force.
    pub fn state(report: &StatusReport) -> Option<Self> {
        let reason = report.source.state_unsaved.as_ref()?;
        Some(Self { name: "state", text: format!("CANNOT BE SAVED: {reason}"), is_alarm: true })
    }
}

#[cfg(test)]
pub mod tests {
    use serde_json::json;

    use super::*;
    use crate::control::api::Rule;

    /// A report at `at` with `bytes` moved up, of a relay with one thread.
    pub fn report(at: i64, bytes: u64) -> StatusReport {
        let holds: serde_json::Map<_, _> =
            Rule::ALL.iter().map(|rule| (rule.name().to_owned(), 0.into())).collect();
        let probe_path = json!({ "last": null, "succeeded": 0, "failed": 0 });
        let document = json!({
            "version": "0.1.0", "at": at, "readiness": "ready", "why": null,
            "sessions": { "active": 2, "max": 8000, "accepted": 3, "refused": at / 1000, "undecided": 0,
                          "opened": at / 500, "closed": 0 },
            "bytes": { "up_copied": bytes, "up_spliced": 0, "up_tls": 0, "down_copied": 1, "down_spliced": 2, "down_tls": 0 },
            "probe": { "local": probe_path, "forwarded": probe_path },
            "refusals": { "no-grant": 1 },
            "source": { "store": "sqlite:store.db", "generation": 7,
                        "rows": { "credentials": 1, "grants": 2, "devices": 3 },
                        "confirmed_at": at, "last_error": null, "holds": [], "expectations": [], "relations": [],
                        "state_unsaved": null, "holds_by_rule": holds, "budgets": [], "disputed_devices": 0,
                        "quarantined": 0,
                        "absences_waiting": 0, "absences_honoured": 0, "on_probation": false, "regressions": 0,
                        "rollbacks": 0, "rights_not_understood": 0, "warnings": [] },
            "nodes": { "fresh": 0, "stale": 0 },
            "node": { "name": "relay-1", "started_at": 0, "listeners": [
                { "address": "0.0.0.0:443", "serves": "clients", "tls": true,
                  "sessions": 2, "opened": 7, "refused": 1 },
                { "address": "10.0.0.1:3130", "serves": "nodes", "tls": true },
            ] },
            "config": { "last": null, "in_force_since": 0 },
            "conditions": [],
            "decides_until": at + 3_600_000,
            "threads": [{ "number": 0, "cpu_ns": at * 250_000, "turns": 0, "spins_hit": 0, "spins_missed": 0,
                          "sessions": 2 }],
            "slowest": [{ "at": at, "us": 1500, "outcome": "open", "session": "7", "uuid": null, "port": null }],
            "top": null,
            "may": { "see_sessions": true, "end_with_token": false },
        });
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn two_reports_make_rates() {
        let rates = Rates::between(&report(10_000, 0), &report(12_000, 3000));
        assert_eq!((rates.bytes_up, rates.bytes_down), (1500, 0));
        assert_eq!((rates.opened, rates.refused, rates.loads), (2.0, 1.0, vec![Some(0.25)]));
    }

    #[test]
    fn a_relay_that_was_started_anew_has_no_negative_rates() {
        let rates = Rates::between(&report(10_000, 5000), &report(11_000, 3));
        assert_eq!(rates.bytes_up, 0);
    }

    #[test]
    fn a_hold_is_shown_before_all_else() {
        let mut report = report(0, 0);
        report.source.last_error = Some("no such file".to_owned());
        let line = StateLine::most_urgent(&report);
        assert_eq!(
            (line.name, line.text.as_str(), line.is_alarm),
            (
                "store",
                "CANNOT BE READ: no such file; what is in force decides until 1970-01-01T01:00:00Z, for 1h; then \
                 clients get 503",
                true
            )
        );
        assert!(!StateLine::guard(&report).is_alarm, "the guard has nothing to do with it");
        report.figures.decides_until = Some(report.figures.at);
        assert!(StateLine::store(&report).text.ends_with("nothing is decided any more"));
        let hold = json!({ "rule": "budget", "group": "grants.absent", "rows": 2, "figures": "2 of 3 rows",
                           "examples": [], "since": 0, "advice": "" });
        report.source.holds = vec![serde_json::from_value(hold).unwrap()];
        let line = StateLine::most_urgent(&report);
        let expected = "HOLDS grants.absent by rule budget for 0s: 2 of 3 rows";
        assert_eq!((line.text.as_str(), line.is_alarm), (expected, true));
        let second = HoldStatus { group: None, ..report.source.holds[0].clone() };
        report.source.holds.push(second);
        let line = StateLine::most_urgent(&report);
        let expected = "HOLDS 2 groups, the first for 0s: grants.absent, everything";
        assert_eq!((line.text.as_str(), line.is_alarm), (expected, true));
    }
}
