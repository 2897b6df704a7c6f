//! `sluicegate status`: the state of a running relay, on one screen.

use std::fmt::Write as _;
use std::time::Duration;

use super::Loaded;
use super::admin_client::AdminClient;
use super::output::{CommandAnswer, CommandError, OutputFormat};
use super::watch::{Rates, StateLine, ago, bytes, micros, rate};
use crate::admin::api::{
    Condition, ListenerCounts, ListenerInfo, ListenerUse, NodeFigures, ProbeResult, StatusReport,
};
use crate::admin::routes;
use crate::authz::UnixMillis;
use crate::sys::confine::{Confinement, ConfinementMode, Part};

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
        screen.conditions(report);
        screen.node(report);
        screen.traffic(report, rates);
        screen.decisions(report, rates);
        screen.refusals(report);
        screen.probes_and_nodes(report);
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

    /// Adds what somebody should act on, each by the name of its alert.
    fn conditions(&mut self, report: &StatusReport) {
        for (place, Condition { alert, text }) in report.conditions.iter().enumerate() {
            self.line(if place == 0 { "alerts" } else { "" }, &format!("{alert}: {text}"));
        }
    }

    fn node(&mut self, report: &StatusReport) {
        let node = &report.node;
        let name = node.name.as_deref().map(|name| format!("{name}, ")).unwrap_or_default();
        self.line("node", &format!("{name}up for {}", ago(report.figures.at, node.started_at)));
        let listener = |listener: &ListenerInfo| {
            let tls = if listener.tls { " with TLS" } else { "" };
            let nodes = if listener.serves == ListenerUse::Nodes { " for nodes" } else { "" };
            let ListenerCounts { sessions, opened, refused } = listener.counts;
            format!(
                "{}{tls}{nodes}: sessions {sessions}, tunnels {opened}, refused {refused}",
                listener.address
            )
        };
        for (place, each) in node.listeners.iter().enumerate() {
            self.line(if place == 0 { "listens" } else { "" }, &listener(each));
        }
        let lines = report.confinement.as_ref().map(confinement_lines).unwrap_or_default();
        for (place, line) in lines.iter().enumerate() {
            self.line(if place == 0 { "confined" } else { "" }, line);
        }
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
        let lines = [StateLine::store(report), StateLine::guard(report)];
        for StateLine { name, text, .. } in
            lines.into_iter().chain(StateLine::state(report)).chain(StateLine::config(report))
        {
            self.line(name, &text);
        }
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
        for (place, (cause, count)) in causes.into_iter().take(CAUSES_SHOWN).enumerate() {
            self.line(if place == 0 { "causes" } else { "" }, &format!("{count} {cause}"));
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

/// What the process has given up; then, in a line each, what it could not.
fn confinement_lines(confinement: &Confinement) -> Vec<String> {
    let Confinement { mode, system_calls, files, ring, no_new_privileges, capabilities } = confinement;
    let parts = [
        ("system calls", *system_calls == Part::InForce),
        ("files", *files == Part::InForce),
        ("ring", *ring == Part::InForce),
        ("no new privileges", *no_new_privileges),
    ];
    let in_force: Vec<&str> = parts.iter().filter(|(_, is_there)| *is_there).map(|(name, _)| *name).collect();
    let in_force = in_force.join(", ");
    let first = match mode {
        ConfinementMode::On if capabilities.is_empty() => format!("{in_force}; no capability"),
        ConfinementMode::On => in_force,
        ConfinementMode::Log => {
            "no: system calls that are not needed are logged (security.confine)".to_owned()
        }
        ConfinementMode::Off => "no: security.confine is \"off\"".to_owned(),
    };
    let capabilities = match mode {
        ConfinementMode::On if !capabilities.is_empty() => {
            let names = capabilities.iter().map(|name| name.trim_start_matches("CAP_").to_lowercase());
            Some(format!("capabilities: {}", names.collect::<Vec<_>>().join(", ")))
        }
        _ => None,
    };
    std::iter::once(first).chain(capabilities).chain(confinement.lacks()).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::watch::tests::report;

    /// The line that begins with `name`, and those below it without a name.
    fn lines(screen: &str, name: &str) -> Vec<String> {
        let from = screen.lines().skip_while(|line| line.split(' ').next() != Some(name));
        let more = |(place, line): &(usize, &str)| *place == 0 || line.starts_with(' ');
        from.enumerate().take_while(more).map(|(_, line)| line[10..].to_owned()).collect()
    }

    fn screen(report: &StatusReport) -> String {
        StatusScreen::of(report, &Rates::default()).finish()
    }

    #[test]
    fn the_node_its_listeners_and_its_store_are_shown() {
        let screen = screen(&report(7_200_000, 0));
        assert_eq!(lines(&screen, "node"), ["relay-1, up for 2h"]);
        let listens = [
            "0.0.0.0:443 with TLS: sessions 2, tunnels 7, refused 1",
            "10.0.0.1:3130 with TLS for nodes: sessions 0, tunnels 0, refused 0",
        ];
        assert_eq!(lines(&screen, "listens"), listens);
        assert_eq!(lines(&screen, "store"), ["sqlite:store.db"]);
    }

    #[test]
    fn what_somebody_should_act_on_comes_first() {
        let mut report = report(1_000, 0);
        assert_eq!(lines(&screen(&report), "alerts"), [""; 0]);
        let condition =
            |alert: &str, text: &str| Condition { alert: alert.to_owned(), text: text.to_owned() };
        report.conditions = vec![
            condition("SluicegateFull", "8 of 8 sessions exist"),
            condition("SluicegateProbe", "the probe fails"),
        ];
        let screen = screen(&report);
        let wanted = ["SluicegateFull: 8 of 8 sessions exist", "SluicegateProbe: the probe fails"];
        assert_eq!(lines(&screen, "alerts"), wanted);
        assert!(screen.find("alerts") < screen.find("\nnode "), "{screen}");
    }

    #[test]
    fn causes_are_under_causes_whatever_the_probe_says() {
        let mut report = report(1_000, 0);
        report.figures.refusals.insert("unknown-token".to_owned(), 5);
        report.probe.local.last = Some(ProbeResult { at: UnixMillis(0), took_us: 400, failure: None });
        let screen = screen(&report);
        assert_eq!(lines(&screen, "causes"), ["5 unknown-token", "1 no-grant"]);
        assert_eq!(lines(&screen, "probe"), ["served in 400 µs, 1s ago"]);
    }

    #[test]
    fn a_store_that_is_away_is_under_store_with_its_deadline_and_the_guard_under_guard() {
        let mut report = report(1_000, 0);
        report.source.last_error = Some("connection refused".to_owned());
        let screen = screen(&report);
        assert_eq!(
            lines(&screen, "store"),
            [
                "CANNOT BE READ: connection refused; what is in force decides until 1970-01-01T01:00:01Z, for 1h; then \
              clients get 503"
            ]
        );
        assert_eq!(lines(&screen, "guard"), ["holds nothing back"]);
    }
}
