//! `sluicegate status`: how a running relay is doing, on one screen.

use std::time::Duration;

use super::Loaded;
use super::admin_client::AdminClient;
use super::output::{CommandAnswer, CommandError, OutputFormat};
use super::watch::{ProbeResult, Rates, Report, ago, bytes, micros, rate};
use crate::admin::routes;

pub fn run(loaded: &Loaded, output: OutputFormat) -> Result<(), CommandError> {
    let relay = AdminClient::of(&loaded.config.admin)?;
    let facts = relay.get(routes::STATUS)?;
    let text = match output {
        // Whoever reads figures asks twice and subtracts.
        OutputFormat::Json => String::new(),
        OutputFormat::Text => {
            let before = Report::from_json(facts.clone())?;
            std::thread::sleep(BETWEEN);
            let now = Report::read(&relay)?;
            text(&now, &Rates::between(&before, &now))
        }
    };
    CommandAnswer::done(text, facts).print(output)
}

fn text(report: &Report, rates: &Rates) -> String {
    let Report { version, at, readiness, why, sessions, source, .. } = report;
    let why = why.as_ref().map(|why| format!(", {why}")).unwrap_or_default();
    let generation = match source.generation {
        Some(generation) => {
            format!("generation {generation}, confirmed {} ago", ago(*at, source.confirmed_at))
        }
        None => "nothing is in force, so that nothing is decided".to_owned(),
    };
    let rows = source.rows;
    let mut lines = vec![
        format!("sluicegate {version}: {readiness}{why}"),
        String::new(),
        line("sessions", &format!("{} of at most {}", sessions.active, sessions.max)),
        line("tunnels", &format!("{} opened, {:.1} per second now", sessions.opened, rates.opened)),
        line("up", &format!("{}, {} now", bytes(report.bytes.up()), rate(Some(rates.bytes_up)))),
        line("down", &format!("{}, {} now", bytes(report.bytes.down()), rate(Some(rates.bytes_down)))),
        line("decides", &generation),
        line(
            "",
            &format!("{} credentials, {} grants, {} devices", rows.credentials, rows.grants, rows.devices),
        ),
        line("guard", &report.guard_words().0),
        line(
            "refused",
            &format!(
                "{} of {} clients, {:.1} per second now; {} could not be decided",
                sessions.refused, sessions.accepted, rates.refused, sessions.undecided
            ),
        ),
    ];
    let told = |result: &ProbeResult, success: &str| {
        let outcome = match &result.failure {
            Some(why) => format!("FAILS: {why}"),
            None => format!("{success} in {}", micros(result.took_us)),
        };
        format!("{outcome}, {} ago", ago(*at, result.at))
    };
    if let Some(result) = &report.probe.local.last {
        lines.push(line("probe", &told(result, "served")));
    }
    let nodes = report.nodes;
    if nodes.fresh + nodes.stale > 0 {
        let words = format!("{} that live, {} that have gone silent", nodes.fresh, nodes.stale);
        lines.push(line("nodes", &words));
    }
    if let Some(result) = &report.probe.forwarded.last {
        lines.push(line("", &format!("probe: {}", told(result, "each answers"))));
    }
    let mut causes: Vec<_> = report.refusals.iter().collect();
    causes.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (cause, count) in causes.into_iter().take(CAUSES_SHOWN) {
        lines.push(line("", &format!("{count} {cause}")));
    }
    for (place, handshake) in report.slowest.iter().take(SLOWEST_SHOWN).enumerate() {
        let target = match (&handshake.uuid, handshake.port) {
            (Some(uuid), Some(port)) => format!(" {uuid}:{port}"),
            _ => String::new(),
        };
        let words =
            format!("{} {}{target}, {} ago", micros(handshake.us), handshake.outcome, ago(*at, handshake.at));
        lines.push(line(if place == 0 { "slowest" } else { "" }, &words));
    }
    for (place, thread) in report.threads.iter().enumerate() {
        let load = rates.loads.get(place).copied().flatten();
        let load = load.map_or_else(|| "-".to_owned(), |load| format!("{:.0} % of a CPU", load * 100.0));
        let words = format!("{}: {load}, {} sessions", thread.number, thread.sessions);
        lines.push(line(if place == 0 { "threads" } else { "" }, &words));
    }
    lines.join("\n")
}

fn line(name: &str, words: &str) -> String {
    format!("{name:<10}{words}")
}

/// Over which rates are taken.
const BETWEEN: Duration = Duration::from_millis(500);

const CAUSES_SHOWN: usize = 5;

const SLOWEST_SHOWN: usize = 3;
