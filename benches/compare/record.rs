//! What was measured: plain values, as `report.json` keeps them.

use serde::{Deserialize, Serialize};

use crate::works::Work;

/// One contender put to one work once.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Run {
    pub contender: String,
    pub work: Work,
    /// The round, counted from 0; each round takes every contender once.
    pub round: usize,
    pub load: Load,
    /// The relay's cost over the same time; `None` where there is no relay ("direct").
    pub cost: Option<Cost>,
}

/// The load as the generator saw it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Load {
    pub seconds: f64,
    /// Payload that arrived, both directions together; bulk's where bulk is beside exchanges.
    pub bytes: u64,
    /// Answers, or new tunnels, that came whole.
    pub exchanges: u64,
    /// Latency of those; `None` where there were none.
    pub latency_us: Option<Latency>,
    pub errors: u64,
    /// The first error in words.
    pub first_error: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Taken from `/proc` before and after, all threads and child processes of the relay together.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Cost {
    pub cpu_user_seconds: f64,
    pub cpu_system_seconds: f64,
    pub switches_voluntary: u64,
    pub switches_involuntary: u64,
    /// At the end, under load.
    pub rss_kib: u64,
    /// RSS that came with the idle sessions, each, and what was there for them before; only of [`Work::Idle`].
    pub rss_kib_per_session: Option<f64>,
    /// CPU that the relay took while nothing moved, as a share of one core; only of [`Work::Idle`].
    pub idle_cpu_share: Option<f64>,
}
