//! What the node holds, seen from outside every few seconds; and whether it grows.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::support::{Relay, wait_for};

/// Looks at the process that serves.
pub struct Sampler<'a> {
    relay: &'a Relay,
    pid: &'a AtomicU32,
    state: PathBuf,
    audit: PathBuf,
    pub samples: Vec<Sample>,
    /// After all clients have gone.
    pub at_rest: Option<Sample>,
}

#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub at: Duration,
    pub pid: u32,
    pub rss_bytes: u64,
    pub descriptors: u64,
    pub threads: u64,
    pub cpu: Duration,
    pub state_bytes: u64,
    pub audit_bytes: u64,
    /// Sessions by the metric.
    pub sessions: f64,
}

impl<'a> Sampler<'a> {
    pub fn new(relay: &'a Relay, pid: &'a AtomicU32, state: PathBuf, audit: PathBuf) -> Self {
        Self { relay, pid, state, audit, samples: Vec::new(), at_rest: None }
    }

    pub fn sample(&mut self, at: Duration) {
        self.samples.extend(self.look(at));
    }

    /// Waits until the node has no session left, and looks once more.
    pub fn rest(&mut self) {
        let at = self.samples.last().map_or(Duration::ZERO, |last| last.at);
        let _shown_in_the_report = wait_for(|| {
            self.at_rest = self.look(at);
            self.at_rest.is_some_and(|sample| sample.sessions == 0.0).then_some(())
        });
    }

    /// `None` while one process takes over from another.
    fn look(&self, at: Duration) -> Option<Sample> {
        let pid = self.pid.load(Ordering::Relaxed);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(") ")?;
        let ticks: u64 =
            fields.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
        Some(Sample {
            at,
            pid,
            rss_bytes: number("VmRSS:")? * 1024,
            descriptors,
            threads: number("Threads:")?,
            cpu: Duration::from_millis(ticks * 1000 / TICKS_PER_S),
            state_bytes: folder_bytes(&self.state),
            audit_bytes: std::fs::metadata(&self.audit).map_or(0, |file| file.len()),
            sessions: self.relay.metric("sluicegate_sessions")?,
        })
    }

    /// The samples of the last process from `since` on.
    pub fn of_last_process(&self, since: Duration) -> Vec<Sample> {
        let Some(last) = self.samples.last() else { return Vec::new() };
        let is_wanted = |sample: &&Sample| sample.pid == last.pid && sample.at >= since;
        self.samples.iter().filter(is_wanted).copied().collect()
    }
}

fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let files = entries.filter_map(|entry| entry.ok()?.metadata().ok());
    files.filter(|metadata| metadata.is_file()).map(|metadata| metadata.len()).sum()
}

/// A line through samples.
#[derive(Clone, Copy, Debug)]
pub struct Trend {
    /// Growth per hour, in the unit of the values.
    pub per_hour: f64,
    /// Twice its standard error, with the dependence of neighbours taken into account.
    pub margin: f64,
    pub mean: f64,
}

impl Trend {
    /// Through the medians of a minute's values each. `None` for fewer than five minutes.
    pub fn of(values: &[(Duration, f64)]) -> Option<Self> {
        let points = per_minute(values);
        let count = points.len() as f64;
        if points.len() < POINTS_MIN {
            return None;
        }
        let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
        let mean = points.iter().map(|(_, y)| y).sum::<f64>() / count;
        let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
        let slope = points.iter().map(|(x, y)| (x - mean_x) * (y - mean)).sum::<f64>() / spread;
        let left: Vec<f64> = points.iter().map(|(x, y)| y - mean - slope * (x - mean_x)).collect();
        let squares: f64 = left.iter().map(|left| left * left).sum();
        let products: f64 = left.windows(2).map(|pair| pair[0] * pair[1]).sum();
        let correlation = if squares > 0.0 { (products / squares).clamp(0.0, 0.9) } else { 0.0 };
        let independent = (count * (1.0 - correlation) / (1.0 + correlation)).max(3.0);
        let error = (squares / (independent - 2.0).max(1.0) / spread * (count / independent)).sqrt();
        Some(Self { per_hour: slope * 60.0, margin: 2.0 * error * 60.0, mean })
    }

    /// The values may have grown by chance.
    pub fn is_flat(&self) -> bool {
        self.per_hour.abs() <= self.margin
    }
}

/// The median of each minute, beside its number.
fn per_minute(values: &[(Duration, f64)]) -> Vec<(f64, f64)> {
    let mut minutes: Vec<(u64, Vec<f64>)> = Vec::new();
    for (at, value) in values {
        let minute = at.as_secs() / 60;
        match minutes.last_mut() {
            Some((last, values)) if *last == minute => values.push(*value),
            _ => minutes.push((minute, vec![*value])),
        }
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    minutes.into_iter().map(|(minute, values)| (minute as f64, median(values))).collect()
}

/// Minutes below which nothing can be said of a trend.
const POINTS_MIN: usize = 5;

/// Unit of times in `/proc`, the same on every machine.
const TICKS_PER_S: u64 = 100;
