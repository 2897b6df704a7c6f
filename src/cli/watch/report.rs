//! `/status.json`, and what two of them say of the time between.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::ago;
use crate::admin::routes;
use crate::cli::admin_client::AdminClient;
use crate::cli::output::CommandError;

#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    pub version: String,
    /// Milliseconds since 1970, by the relay's clock.
    pub at: i64,
    pub readiness: String,
    pub why: Option<String>,
    pub sessions: SessionCounts,
    pub bytes: ByteCounts,
    /// So far, by their true cause.
    pub refusals: BTreeMap<String, u64>,
    pub probe: Probe,
    pub source: Source,
    pub nodes: Nodes,
    pub threads: Vec<Thread>,
    pub slowest: Vec<Handshake>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct SessionCounts {
    pub active: u64,
    pub max: u64,
    pub accepted: u64,
    pub refused: u64,
    pub undecided: u64,
    pub opened: u64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct ByteCounts {
    pub up_copied: u64,
    pub up_spliced: u64,
    pub up_tls: u64,
    pub down_copied: u64,
    pub down_spliced: u64,
    pub down_tls: u64,
}

/// In the directory, the relay itself among them; none where it stands alone.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Nodes {
    pub fresh: u64,
    pub stale: u64,
}

/// What decides.
#[derive(Clone, Debug, Deserialize)]
pub struct Source {
    pub generation: Option<u64>,
    pub rows: Rows,
    pub confirmed_at: i64,
    pub last_error: Option<String>,
    pub hold: Option<Hold>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Rows {
    pub credentials: u64,
    pub grants: u64,
    pub devices: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Probe {
    pub local: ProbePath,
    pub forwarded: ProbePath,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ProbePath {
    pub last: Option<ProbeResult>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ProbeResult {
    pub at: i64,
    pub took_us: u64,
    pub failure: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Hold {
    pub rule: String,
    pub figures: String,
    pub since: i64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Thread {
    pub number: usize,
    pub cpu_ns: Option<u64>,
    pub sessions: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Handshake {
    pub at: i64,
    pub us: u64,
    pub outcome: String,
    pub uuid: Option<String>,
    pub port: Option<u16>,
}

/// Per second, between two reports.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub opened: f64,
    pub refused: f64,
    /// The share of a CPU that each thread took, in the order of the report; `None` where nobody counts.
    pub loads: Vec<Option<f64>>,
}

impl Report {
    pub fn read(relay: &AdminClient) -> Result<Self, CommandError> {
        Self::from_json(relay.get(routes::STATUS)?)
    }

    pub fn from_json(json: Value) -> Result<Self, CommandError> {
        serde_json::from_value(json).map_err(|error| {
            CommandError::failed(format!(
                "the relay's status is not understood ({error}); is it of the same version?"
            ))
        })
    }

    /// What there is to say of decisions, in one line, and whether it is bad news.
    pub fn guard_words(&self) -> (String, bool) {
        let source = &self.source;
        match (&source.hold, &source.last_error) {
            (Some(hold), _) => (
                format!("HOLDS by rule {} for {}: {}", hold.rule, ago(self.at, hold.since), hold.figures),
                true,
            ),
            (None, Some(error)) => (format!("the store cannot be read: {error}"), true),
            (None, None) => ("holds nothing back".to_owned(), false),
        }
    }
}

impl ByteCounts {
    pub fn up(self) -> u64 {
        self.up_copied + self.up_spliced + self.up_tls
    }

    pub fn down(self) -> u64 {
        self.down_copied + self.down_spliced + self.down_tls
    }
}

impl Rates {
    /// A relay that was started anew in between counts from 0, which is no negative rate.
    pub fn between(before: &Report, after: &Report) -> Self {
        let seconds = (after.at.saturating_sub(before.at).max(1)) as f64 / 1000.0;
        let per_second = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
        let load =
            |(before, after): (&Thread, &Thread)| Some(per_second(before.cpu_ns?, after.cpu_ns?) / 1e9);
        Self {
            bytes_up: per_second(before.bytes.up(), after.bytes.up()) as u64,
            bytes_down: per_second(before.bytes.down(), after.bytes.down()) as u64,
            opened: per_second(before.sessions.opened, after.sessions.opened),
            refused: per_second(before.sessions.refused, after.sessions.refused),
            loads: before.threads.iter().zip(&after.threads).map(load).collect(),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use serde_json::json;

    use super::*;

    /// A report at `at` with `bytes` moved up, of a relay with one thread.
    pub fn report(at: i64, bytes: u64) -> Report {
        let json = json!({
            "version": "0.1.0", "at": at, "readiness": "ready", "why": null,
            "sessions": { "active": 2, "max": 8000, "accepted": 3, "refused": at / 1000, "undecided": 0,
                          "opened": at / 500 },
            "bytes": { "up_copied": bytes, "up_spliced": 0, "up_tls": 0, "down_copied": 1, "down_spliced": 2, "down_tls": 0 },
            "probe": { "local": { "last": null }, "forwarded": { "last": null } },
            "refusals": { "no-grant": 1 },
            "source": { "generation": 7, "rows": { "credentials": 1, "grants": 2, "devices": 3 },
                        "confirmed_at": at, "last_error": null, "hold": null },
            "nodes": { "fresh": 0, "stale": 0 },
            "threads": [{ "number": 0, "cpu_ns": at * 250_000, "sessions": 2 }],
            "slowest": [{ "at": at, "us": 1500, "outcome": "open", "uuid": null, "port": null }],
        });
        Report::from_json(json).unwrap()
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
    fn a_hold_is_told_before_all_else() {
        let mut report = report(0, 0);
        report.source.last_error = Some("no such file".to_owned());
        assert_eq!(report.guard_words(), ("the store cannot be read: no such file".to_owned(), true));
        report.source.hold = Some(Hold { rule: "loss".into(), figures: "2 of 3 rows".into(), since: 0 });
        assert_eq!(report.guard_words(), ("HOLDS by rule loss for 0s: 2 of 3 rows".to_owned(), true));
    }
}
