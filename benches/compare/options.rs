//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::plan::{Extent, Plan};

/// Measures sluicegate beside its peers, and writes a report.
#[derive(Debug, Parser)]
#[command(name = "make compare", version)]
pub struct Options {
    /// Runs six works, for the main figures to hold, in under three minutes
    #[arg(long)]
    pub quick: bool,
    /// Measures each run for this long
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub seconds: Option<Duration>,
    /// Runs each work for this long before it is measured
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub warm_up: Option<Duration>,
    /// Rounds in which each contender runs each work
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: Option<u16>,
    /// Runs only works whose names contain this; may be given again
    #[arg(long, value_name = "TEXT")]
    pub only: Vec<String>,
    /// Runs only these contenders
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub contenders: Vec<String>,
    /// A file that names further peers; benches/README.md describes it
    #[arg(long, value_name = "FILE")]
    pub peers: Option<PathBuf>,
    /// Folder for the report
    #[arg(long, value_name = "DIR", default_value = "target/compare")]
    pub out: PathBuf,
    /// Measure nothing, and write the report again from a report.json; several become one
    #[arg(long, value_name = "FILE")]
    pub from: Vec<PathBuf>,
    /// Name works and contenders, and run nothing
    #[arg(long)]
    pub list: bool,
    /// Cargo says this to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// The plan that they ask for; without works where `--only` leaves none.
    pub fn plan(&self) -> Plan {
        let mut plan = Plan::new(if self.quick { Extent::Quick } else { Extent::Full });
        if !self.only.is_empty() {
            plan.keep(&self.only);
        }
        plan.rounds = self.rounds.map_or(plan.rounds, usize::from);
        plan.warm_up = self.warm_up.unwrap_or(plan.warm_up);
        plan.measure = self.seconds.unwrap_or(plan.measure);
        plan
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let duration = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "give a number above 0, such as 0.7".to_owned())
}
