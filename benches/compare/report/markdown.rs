//! `report.md`: the figures first, then where and how it was measured, then each work.

use std::fmt::{self, Write};

use super::figures::{Bound, Figure, Peer, Verdict};
use super::plots::{Plot, Section};
use super::tables::{Cells, NOTHING, Table};
use super::{Machine, Measure, Part, Report, Settings, number};
use crate::works::Work;

/// The whole text; `plots` lie beside it.
pub(super) fn write(report: &Report, plots: &[Plot]) -> String {
    let mut text = String::from("# sluicegate beside its peers\n\n");
    if !report.settings.complete {
        text.push_str("**Ended before the plan was done: what follows is what there was by then.**\n\n");
    }
    let parts = [
        format!("## Figures to hold\n\n{}\n", figures_table(report)),
        format!("## Machine\n\n{}\n", machine_table(&report.machine)),
        format!("## How it was measured\n\n{}\n", Method(&report.settings)),
        format!("## Contenders\n\n{}\n", contenders(report)),
        works(report, plots),
    ];
    text.extend(parts);
    text
}

/// Each figure with what was measured, and whether it is met.
pub fn figures_table(report: &Report) -> String {
    let mut table =
        Table::new(Cells::Text, &["work", "figure", "measured", "by round", "medians", "verdict"]);
    for figure in report.figures() {
        let reference = figure.measured.as_ref().and_then(|measured| measured.reference.as_ref());
        let by_round = reference.and_then(|reference| reference.by_round);
        table.row([
            figure.work.to_string(),
            asked(&figure),
            figure.value().map_or(NOTHING.to_owned(), number),
            by_round.map_or(NOTHING.to_owned(), |by_round| {
                format!("{} – {}", number(by_round.min), number(by_round.max))
            }),
            medians(&figure),
            match figure.verdict() {
                Verdict::Met => "met".to_owned(),
                Verdict::Missed => "**missed**".to_owned(),
                Verdict::NotMeasured => "not measured".to_owned(),
            },
        ]);
    }
    table.to_string()
}

/// Such as `GB/s ≥ 1.6 × HAProxy`.
fn asked(figure: &Figure) -> String {
    let (sign, value) = match figure.bound {
        Bound::AtLeast(value) => ("≥", value),
        Bound::AtMost(value) => ("≤", value),
        Bound::Below(value) => ("<", value),
    };
    let peer = match figure.peer {
        Peer::Nobody => "",
        Peer::HaProxy => " × HAProxy",
        Peer::HaProxyBusyPolling => " × HAProxy with busy-polling",
    };
    format!("{} {sign} {value}{peer}", figure.measure.unit())
}

fn medians(figure: &Figure) -> String {
    match &figure.measured {
        None => NOTHING.to_owned(),
        Some(measured) => match &measured.reference {
            None => number(measured.ours),
            Some(reference) => {
                format!(
                    "{} to {} of {}",
                    number(measured.ours),
                    number(reference.theirs),
                    reference.contender
                )
            }
        },
    }
}

fn machine_table(machine: &Machine) -> Table {
    let mut table = Table::new(Cells::Text, &["", ""]);
    let gibibytes = machine.memory_kib as f64 / (1024.0 * 1024.0);
    let rows = [
        ("CPU", format!("{}, {} cores", machine.cpu, machine.cores)),
        ("memory", format!("{} GiB", number(gibibytes))),
        ("kernel", machine.kernel.clone()),
        ("distribution", machine.distribution.clone()),
        ("congestion control", machine.congestion_control.clone()),
    ];
    for (name, value) in rows {
        table.row([name.to_owned(), value]);
    }
    for (weakness, state) in &machine.mitigations {
        table.row([format!("mitigation: {weakness}"), state.clone()]);
    }
    table
}

/// The text under "How it was measured".
struct Method<'a>(&'a Settings);

impl fmt::Display for Method<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { rounds, warm_up_seconds, measure_seconds, relay_cpu, generator_cpu, .. } = self.0;
        let quoted = |word: &String| if word.contains(' ') { format!("'{word}'") } else { word.clone() };
        for Part { arguments, started_at } in &self.0.parts {
            let arguments = arguments.iter().map(quoted).collect::<Vec<_>>().join(" ");
            writeln!(f, "`make compare ARGS=\"{arguments}\"`, started at {started_at}.\n")?;
        }
        writeln!(
            f,
            "Each contender runs each work {rounds} times, {measure_seconds} s after {warm_up_seconds} s of \
             warm-up, the contenders taking turns in every round and a different one beginning each. A relay \
             is started anew for every run, on CPU {relay_cpu}; clients and backend share CPU \
             {generator_cpu}. All traffic is on loopback. sluicegate is asked by CONNECT and decides about \
             each tunnel; the peers forward plain TCP to one backend.\n\n\
             Tables show medians of the runs. Latencies are medians of each run's percentile; in an open loop \
             they count from when a request was due. CPU seconds, RSS and switches are the relay's, child \
             processes included."
        )
    }
}

fn contenders(report: &Report) -> String {
    let mut table = Table::new(Cells::Text, &["contender", "version", "settings"]);
    for entrant in &report.contenders {
        table.row([entrant.name.clone(), entrant.version.clone(), entrant.settings.clone()]);
    }
    let mut text = table.to_string();
    if !report.left_out.is_empty() {
        text.push_str("\nLeft out:\n\n");
        for left_out in &report.left_out {
            let _cannot_fail = writeln!(text, "- {}: {}", left_out.contender, left_out.reason);
        }
    }
    text
}

fn works(report: &Report, plots: &[Plot]) -> String {
    let mut text = String::new();
    let works = report.works();
    for section in Section::ALL {
        let mut works = works.iter().filter(|&&work| Section::of(work) == section).peekable();
        if works.peek().is_none() {
            continue;
        }
        let _cannot_fail = writeln!(text, "## {}\n", section.title());
        for plot in plots.iter().filter(|plot| plot.section == section) {
            let _cannot_fail = writeln!(text, "![{}]({})\n", plot.title, plot.file);
        }
        for &work in works {
            let table = Table::of_work(report, work);
            let _cannot_fail = writeln!(text, "### {work}\n\n{table}\n{}", failures(report, work));
        }
    }
    text
}

/// Whatever went wrong in `work`, each reason once.
fn failures(report: &Report, work: Work) -> String {
    let mut text = String::new();
    for name in report.entrants_of(work) {
        let failed = report.failures_of(work, name);
        let failed =
            failed.map(|failure| format!("failed in round {}: {}", failure.round + 1, failure.reason));
        let erred = report.runs_of(work, name).filter_map(|run| {
            let errors = Measure::Errors.of(run).filter(|&errors| errors > 0.0)?;
            let first = run.load.first_error.as_deref().unwrap_or("without words");
            Some(format!("{errors} errors in round {}, the first: {first}", run.round + 1))
        });
        for line in failed.chain(erred) {
            let _cannot_fail = writeln!(text, "- {name} {}", line.replace('\n', "; "));
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}
