//! Medians, spreads and ratios: how the contenders stand in a work.

use serde::{Deserialize, Serialize};

use super::{Failure, OURS, Report};
use crate::record::{Cost, Load, Run};
use crate::works::Work;

/// One number that can be read off a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Measure {
    GigabytesPerSecond,
    ExchangesPerSecond,
    P50,
    P90,
    P99,
    P999,
    CpuPerGigabyte,
    UserPerGigabyte,
    SystemPerGigabyte,
    /// CPU seconds for 100,000 exchanges.
    CpuPerExchanges,
    UserPerExchanges,
    SystemPerExchanges,
    ExchangesPerCpuSecond,
    /// Percent of its core that the relay used: far below 100, something else was the limit.
    RelayCpuPercent,
    RssMib,
    RssKibPerSession,
    /// Percent of one core.
    IdleCpuPercent,
    VoluntarySwitchesPerSecond,
    InvoluntarySwitchesPerSecond,
    Errors,
}

/// The direction in which a measure is better.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Better {
    More,
    Less,
}

/// The middle of several runs, and how far apart they lie.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Measure {
    /// `None` where this run has no such number, as "direct" has no relay that costs anything.
    pub fn of(self, run: &Run) -> Option<f64> {
        let (load, cost) = (&run.load, run.cost.as_ref());
        match self {
            Self::GigabytesPerSecond => Some(gigabytes(load) / load.seconds),
            Self::ExchangesPerSecond => Some(load.exchanges as f64 / load.seconds),
            Self::P50 => Some(load.latency_us?.p50),
            Self::P90 => Some(load.latency_us?.p90),
            Self::P99 => Some(load.latency_us?.p99),
            Self::P999 => Some(load.latency_us?.p999),
            Self::CpuPerGigabyte => Some(cpu_seconds(cost?) / gigabytes(load)),
            Self::UserPerGigabyte => Some(cost?.cpu_user_seconds / gigabytes(load)),
            Self::SystemPerGigabyte => Some(cost?.cpu_system_seconds / gigabytes(load)),
            Self::CpuPerExchanges => Some(cpu_seconds(cost?) / bundles(load)),
            Self::UserPerExchanges => Some(cost?.cpu_user_seconds / bundles(load)),
            Self::SystemPerExchanges => Some(cost?.cpu_system_seconds / bundles(load)),
            Self::ExchangesPerCpuSecond => Some(load.exchanges as f64 / cpu_seconds(cost?)),
            Self::RelayCpuPercent => Some(cpu_seconds(cost?) / load.seconds * 100.0),
            Self::RssMib => Some(cost?.rss_kib as f64 / 1024.0),
            Self::RssKibPerSession => cost?.rss_kib_per_session,
            Self::IdleCpuPercent => Some(cost?.idle_cpu_share? * 100.0),
            Self::VoluntarySwitchesPerSecond => Some(cost?.switches_voluntary as f64 / load.seconds),
            Self::InvoluntarySwitchesPerSecond => Some(cost?.switches_involuntary as f64 / load.seconds),
            Self::Errors => Some(load.errors as f64),
        }
        .filter(|value| value.is_finite())
    }

    pub fn better(self) -> Better {
        match self {
            Self::GigabytesPerSecond | Self::ExchangesPerSecond | Self::ExchangesPerCpuSecond => Better::More,
            _ => Better::Less,
        }
    }

    /// The main measure of a work.
    pub fn main_of(work: Work) -> Self {
        match work {
            Work::Bulk { .. } => Self::GigabytesPerSecond,
            Work::Exchange { .. } | Work::NewTunnels { .. } | Work::Mixed { .. } => Self::ExchangesPerSecond,
            Work::Idle { .. } => Self::RssKibPerSession,
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::GigabytesPerSecond => "GB/s",
            Self::ExchangesPerSecond => "per s",
            Self::P50 => "p50 µs",
            Self::P90 => "p90 µs",
            Self::P99 => "p99 µs",
            Self::P999 => "p99.9 µs",
            Self::CpuPerGigabyte => "CPU s/GB",
            Self::UserPerGigabyte | Self::UserPerExchanges => "user",
            Self::SystemPerGigabyte | Self::SystemPerExchanges => "system",
            Self::CpuPerExchanges => "CPU s/100 k",
            Self::ExchangesPerCpuSecond => "per CPU s",
            Self::RelayCpuPercent => "relay CPU %",
            Self::RssMib => "RSS MiB",
            Self::RssKibPerSession => "KiB/session",
            Self::IdleCpuPercent => "idle CPU %",
            Self::VoluntarySwitchesPerSecond => "switches/s",
            Self::InvoluntarySwitchesPerSecond => "involuntary/s",
            Self::Errors => "errors",
        }
    }
}

impl Spread {
    /// `None` of no values at all.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            1 => values[middle],
            _ => f64::midpoint(values[middle - 1], values[middle]),
        };
        Some(Self { median, min, max })
    }
}

impl Report {
    /// Every work that was tried, in the order in which they were.
    pub fn works(&self) -> Vec<Work> {
        let mut works = Vec::new();
        let tried = self.runs.iter().map(|run| run.work);
        for work in tried.chain(self.failures.iter().map(|failure| failure.work)) {
            if !works.contains(&work) {
                works.push(work);
            }
        }
        works
    }

    /// Names of the contenders that tried `work`, in the order of the report.
    pub fn entrants_of(&self, work: Work) -> Vec<&str> {
        let tried = |name: &str| {
            self.runs_of(work, name).next().is_some() || self.failures_of(work, name).next().is_some()
        };
        self.contenders.iter().map(|entrant| entrant.name.as_str()).filter(|name| tried(name)).collect()
    }

    pub fn runs_of<'a>(&'a self, work: Work, contender: &'a str) -> impl Iterator<Item = &'a Run> {
        self.runs.iter().filter(move |run| run.work == work && run.contender == contender)
    }

    pub fn failures_of<'a>(&'a self, work: Work, contender: &'a str) -> impl Iterator<Item = &'a Failure> {
        self.failures.iter().filter(move |failure| failure.work == work && failure.contender == contender)
    }

    pub fn spread(&self, work: Work, contender: &str, measure: Measure) -> Option<Spread> {
        Spread::of(self.runs_of(work, contender).filter_map(|run| measure.of(run)))
    }

    /// Our median divided by theirs.
    pub fn ratio(&self, work: Work, measure: Measure, theirs: &str) -> Option<f64> {
        let ours = self.spread(work, OURS, measure)?.median;
        let ratio = ours / self.spread(work, theirs, measure)?.median;
        Some(ratio).filter(|ratio| ratio.is_finite())
    }

    /// Ours divided by theirs in each round that both got through, which the machine's slow and fast
    /// moments touch less than the ratio of medians.
    pub fn ratio_by_round(&self, work: Work, measure: Measure, theirs: &str) -> Option<Spread> {
        let in_round = |contender, round| {
            let run = self.runs_of(work, contender).find(|run| run.round == round)?;
            measure.of(run)
        };
        let rounds = self.runs_of(work, OURS).map(|run| run.round);
        let ratios = rounds.filter_map(|round| Some(in_round(OURS, round)? / in_round(theirs, round)?));
        Spread::of(ratios.filter(|ratio| ratio.is_finite()))
    }
}

fn gigabytes(load: &Load) -> f64 {
    load.bytes as f64 / 1e9
}

/// Exchanges in hundreds of thousands.
fn bundles(load: &Load) -> f64 {
    load.exchanges as f64 / 1e5
}

fn cpu_seconds(cost: &Cost) -> f64 {
    cost.cpu_user_seconds + cost.cpu_system_seconds
}
