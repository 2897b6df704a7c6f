//! `sluicegate status`: the state of a running relay, on one screen.

use std::fmt::Write as _;
use std::time::Duration;

use super::Loaded;
use super::admin_client::AdminClient;
use super::output::{CommandAnswer, CommandError, OutputFormat};
use super::watch::{GuardLine, Rates, ago, bytes, micros, rate};
use crate::admin::api::{NodeFigures, ProbeResult, StatusReport};
use crate::admin::routes;
use crate::authz::UnixMillis;

pub fn run(loaded: &Loaded, output: OutputFormat) -> Result<(), CommandError> {
    let relay = AdminClient::of(&loaded.config.admin)?;
    let document = relay.get(routes::STATUS)?;
    let text = match output {
        // A program reads twice and computes the rates itself.
        OutputFormat::Json => String::new(),
        OutputFormat::Text => {
            let before = document.read()?;
            std::thread::sleep(RATE_PERIOD);
            let now = relay.status()?;
            StatusScreen::of(&now, &Rates::between(&before, &now)).finish()
        }
    };
    CommandAnswer::done(text, document.json).print(output)
}

/// Lines of a name and a value.
struct StatusScreen {
    text: String,
}

impl StatusScreen {
    fn of(report: &StatusReport, rates: &Rates) -> Self {
        let NodeFigures { version, readiness, why, .. } = &report.figures;
        let why = why.as_ref().map(|why| format!(", {why}")).unwrap_or_default();
        let mut screen = Self { text: format!("sluicegate {version}: {readiness}{why}\n\n") };
        screen.traffic(report, rates);
        screen.decisions(report, rates);
        screen.probes_and_nodes(report);
        screen.refusals(report);
        screen.slowest(report);
        screen.threads(report, rates);
        screen
    }

    fn finish(self) -> String {
        self.text.trim_end().to_owned()
    }

    /// Adds a line. Lines that continue the one above have no name.
    fn line(&mut self, name: &str, words: &str) {
        // Writing to a string does not fail.
        let _written = writeln!(self.text, "{name:<10}{words}");
    }

    fn traffic(&mut self, report: &StatusReport, rates: &Rates) {
        let (sessions, moved) = (report.figures.sessions, report.figures.bytes);
        self.line("sessions", &format!("{} of at most {}", sessions.active, sessions.max));
        self.line("tunnels", &format!("{} opened, {:.1} per second now", sessions.opened, rates.opened));
        self.line("up", &format!("{}, {} now", bytes(moved.up()), rate(Some(rates.bytes_up))));
        self.line("down", &format!("{}, {} now", bytes(moved.down()), rate(Some(rates.bytes_down))));
    }

    fn decisions(&mut self, report: &StatusReport, rates: &Rates) {
        let (at, sessions, source) = (report.figures.at, report.figures.sessions, &report.source.figures);
        let generation = match source.generation {
            Some(generation) => {
                format!("generation {}, confirmed {} ago", generation.0, ago(at, source.confirmed_at))
            }
            None => "no snapshot is in force, so nothing can be decided".to_owned(),
        };
        self.line("decides", &generation);
        let rows = source.rows;
        let rows =
            format!("{} credentials, {} grants, {} devices", rows.credentials, rows.grants, rows.devices);
        self.line("", &rows);
        self.line("guard", &GuardLine::of(report).text);
        let refused = format!(
            "{} of {} clients, {:.1} per second now; {} could not be decided",
            sessions.refused, sessions.accepted, rates.refused, sessions.undecided
        );
        self.line("refused", &refused);
    }

    fn probes_and_nodes(&mut self, report: &StatusReport) {
        let at = report.figures.at;
        if let Some(result) = &report.probe.local.last {
            self.line("probe", &probe_text(result, "served", at));
        }
        let nodes = report.figures.nodes;
        if nodes.fresh + nodes.stale > 0 {
            self.line("nodes", &format!("{} alive, {} silent", nodes.fresh, nodes.stale));
        }
        if let Some(result) = &report.probe.forwarded.last {
            self.line("", &format!("probe: {}", probe_text(result, "each answers", at)));
        }
    }

    fn refusals(&mut self, report: &StatusReport) {
        let mut causes: Vec<_> = report.figures.refusals.iter().collect();
        causes.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (cause, count) in causes.into_iter().take(CAUSES_SHOWN) {
            self.line("", &format!("{count} {cause}"));
        }
    }

    fn slowest(&mut self, report: &StatusReport) {
        for (place, slow) in report.slowest.iter().take(SLOWEST_SHOWN).enumerate() {
            let target = match (&slow.uuid, slow.port) {
                (Some(uuid), Some(port)) => format!(" {uuid}:{port}"),
                _ => String::new(),
            };
            let age = ago(report.figures.at, slow.at);
            let words = format!("{} {}{target}, {age} ago", micros(slow.us), slow.outcome);
            self.line(if place == 0 { "slowest" } else { "" }, &words);
        }
    }

    fn threads(&mut self, report: &StatusReport, rates: &Rates) {
        for (place, thread) in report.figures.threads.iter().enumerate() {
            let load = rates.loads.get(place).copied().flatten();
            let load = load.map_or_else(|| "-".to_owned(), |load| format!("{:.0} % of a CPU", load * 100.0));
            let words = format!("{}: {load}, {} sessions", thread.number, thread.sessions);
            self.line(if place == 0 { "threads" } else { "" }, &words);
        }
    }
}

fn probe_text(result: &ProbeResult, success: &str, now: UnixMillis) -> String {
    let outcome = match &result.failure {
        Some(failure) => format!("FAILS: {failure}"),
        None => format!("{success} in {}", micros(result.took_us)),
    };
    format!("{outcome}, {} ago", ago(now, result.at))
}

/// Time between the two reports that rates are computed from.
const RATE_PERIOD: Duration = Duration::from_millis(500);

const CAUSES_SHOWN: usize = 5;

const SLOWEST_SHOWN: usize = 3;
