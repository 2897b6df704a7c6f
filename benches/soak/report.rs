//! The report of a soak, and whether it was passed.

use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::load::Tallies;
use super::operator::Done;
use super::samples::{Sample, Sampler, Trend};

pub struct Report<'a> {
    pub time: Duration,
    pub tallies: &'a Tallies,
    pub done: &'a Done,
    pub sampler: &'a Sampler<'a>,
}

/// Something that must be true, and whether it is.
struct Verdict {
    what: String,
    is_met: bool,
}

impl Report<'_> {
    pub fn is_met(&self) -> bool {
        self.verdicts().iter().all(|verdict| verdict.is_met)
    }

    pub fn text(&self) -> String {
        let mut text = format!("# A soak of {:.0} min\n\n", self.time.as_secs_f64() / 60.0);
        for Verdict { what, is_met } in self.verdicts() {
            line(&mut text, format!("- {}: {what}", if is_met { "met" } else { "**missed**" }));
        }
        line(&mut text, String::new());
        self.add_work(&mut text);
        self.add_curves(&mut text);
        for fault in self.tallies.faults.lock().iter().take(FAULTS_SHOWN).chain(&self.done.faults) {
            line(&mut text, format!("- fault: {}", fault.replace(['\r', '\n'], " ")));
        }
        text
    }

    fn verdicts(&self) -> Vec<Verdict> {
        let faults = self.tallies.faults.lock().len() + self.done.faults.len();
        let mut verdicts = vec![Verdict {
            what: format!("faults of clients and of the operator: {faults}, wanted 0"),
            is_met: faults == 0,
        }];
        let judged = self.sampler.of_last_process(self.time / 3);
        for (name, unit, value) in CURVES {
            let values: Vec<_> = judged.iter().map(|sample| (sample.at, value(sample))).collect();
            verdicts.push(match Trend::of(&values) {
                Some(trend) => Verdict {
                    what: format!(
                        "{name} of the last process: {:.2} {unit} on average, {:+.3} ± {:.3} {unit} an hour",
                        trend.mean, trend.per_hour, trend.margin
                    ),
                    is_met: trend.is_flat() || trend.per_hour < 0.0,
                },
                None => Verdict { what: format!("{name}: too short to say"), is_met: true },
            });
        }
        let (opened, ended) = (self.opened(), self.done.audit_ends);
        verdicts.push(Verdict {
            what: format!("tunnels that clients opened: {opened}; that have ended by the audit log: {ended}"),
            is_met: opened == ended && opened > 0,
        });
        let state = self.sampler.samples.iter().map(|sample| sample.state_bytes).max().unwrap_or_default();
        verdicts.push(Verdict {
            what: format!("state folder: {} KiB at most, bound {} KiB", state >> 10, STATE_BYTES_MAX >> 10),
            is_met: state <= STATE_BYTES_MAX,
        });
        let left = self.sampler.at_rest.map_or(f64::NAN, |sample| sample.sessions);
        verdicts.push(Verdict { what: format!("sessions left at rest: {left}"), is_met: left == 0.0 });
        verdicts
    }

    /// Tunnels that clients have opened.
    fn opened(&self) -> u64 {
        let Tallies { short, by_tls, streams, long, .. } = self.tallies;
        let of_clients: u64 =
            [short, by_tls, streams, long].iter().map(|tally| tally.load(Ordering::Relaxed)).sum();
        of_clients + self.done.revocations_ms.len() as u64
    }

    fn add_work(&self, text: &mut String) {
        let tally = |tally: &std::sync::atomic::AtomicU64| tally.load(Ordering::Relaxed);
        let Tallies { short, by_tls, streams, stream_bytes, refused, abandoned, pings, long, .. } =
            self.tallies;
        let done = self.done;
        line(text, "| what happened | times |\n|---|--:|".to_owned());
        for (what, times) in [
            ("short tunnels, every tenth ended by a reset", tally(short)),
            ("tunnels by TLS, each with a full handshake or a resumed one", tally(by_tls)),
            ("streams there and back, compared by checksum", tally(streams)),
            ("MiB streamed", tally(stream_bytes) >> 20),
            ("long tunnels", tally(long)),
            ("messages there and back through long tunnels", tally(pings)),
            ("requests refused (407, 403, 405, 502, and 503 while the store is away)", tally(refused)),
            ("clients that left without a request", tally(abandoned)),
            ("tokens revoked under an open tunnel", done.revocations_ms.len() as u64),
            ("times that the store showed no grant, held and mended", done.holds),
            ("reloads", done.reloads + done.rotations),
            ("rotations of the audit log", done.rotations),
            ("lines of the audit log", done.audit_lines),
            ("restarts of the database", done.restarts),
            ("times that the database did not answer", done.cuts),
            ("hand-overs to a new process", done.hand_overs_ms.len() as u64),
        ] {
            line(text, format!("| {what} | {times} |"));
        }
        line(text, format!("\nRevocation, from commit to reset, ms: {}", quantiles(&done.revocations_ms)));
        line(text, format!("Hand-over, from command to answer, ms: {}\n", quantiles(&done.hand_overs_ms)));
    }

    fn add_curves(&self, text: &mut String) {
        line(
            text,
            "| minute | process | RSS, MiB | descriptors | threads | sessions | state, KiB | CPU |"
                .to_owned(),
        );
        line(text, "|--:|--:|--:|--:|--:|--:|--:|--:|".to_owned());
        let step = (self.sampler.samples.len() / ROWS).max(1);
        let mut before: Option<Sample> = None;
        for sample in self.sampler.samples.iter().step_by(step).chain(&self.sampler.at_rest) {
            let same = before.filter(|before| before.pid == sample.pid && sample.at > before.at);
            let cpu = same.map_or_else(String::new, |before| {
                let share = (sample.cpu - before.cpu).as_secs_f64() / (sample.at - before.at).as_secs_f64();
                format!("{:.0} %", share * 100.0)
            });
            line(
                text,
                format!(
                    "| {:.0} | {} | {:.2} | {} | {} | {} | {} | {cpu} |",
                    sample.at.as_secs_f64() / 60.0,
                    sample.pid,
                    sample.rss_bytes as f64 / f64::from(1 << 20),
                    sample.descriptors,
                    sample.threads,
                    sample.sessions,
                    sample.state_bytes >> 10,
                ),
            );
            before = Some(*sample);
        }
        let audit = self.sampler.samples.iter().map(|sample| sample.audit_bytes).max().unwrap_or_default();
        line(text, format!("\nThe audit log had {} KiB at most between two rotations.", audit >> 10));
    }
}

fn line(text: &mut String, line: String) {
    let _never_fails = writeln!(text, "{line}");
}

fn quantiles(values: &[f64]) -> String {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let Some(last) = values.last() else { return "none".to_owned() };
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    format!("p50 {:.1}, p99 {:.1}, most {last:.1}", at(0.5), at(0.99))
}

/// What must not grow: its name, its unit, its value.
type Curve = (&'static str, &'static str, fn(&Sample) -> f64);

const CURVES: [Curve; 3] = [
    ("RSS", "MiB", |sample| sample.rss_bytes as f64 / 1_048_576.0),
    ("descriptors", "", |sample| sample.descriptors as f64),
    ("threads", "", |sample| sample.threads as f64),
];

/// A journal is replaced by a state from 4 MiB on, at its next file of 1 MiB; and the states of this small store.
const STATE_BYTES_MAX: u64 = 8 << 20;

/// Rows of the table of curves, about.
const ROWS: usize = 40;

/// Faults of clients that are shown.
const FAULTS_SHOWN: usize = 20;
