//! A whole comparison as plain values, and what is written of it: `report.json`, `report.md` and plots.

mod chart;
pub mod figures;
mod json;
mod markdown;
mod number;
mod plots;
pub mod standing;
mod tables;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use json::JsonError;
pub use markdown::figures_table;
pub use number::number;
pub use standing::Measure;

use crate::record::Run;
use crate::works::Work;

/// The result of one call of the comparison.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    pub machine: Machine,
    pub settings: Settings,
    /// The contenders, in the order of the tables.
    pub contenders: Vec<Entrant>,
    pub left_out: Vec<LeftOut>,
    pub runs: Vec<Run>,
    pub failures: Vec<Failure>,
}

/// The machine of the measurement.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    pub kernel: String,
    pub distribution: String,
    pub cpu: String,
    pub cores: usize,
    pub memory_kib: u64,
    pub congestion_control: String,
    /// The kernel's line on each weakness of this CPU, mitigated or not.
    pub mitigations: BTreeMap<String, String>,
}

/// The settings of the measurement.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Settings {
    /// More than one where reports were put together.
    pub parts: Vec<Part>,
    pub rounds: usize,
    pub warm_up_seconds: f64,
    pub measure_seconds: f64,
    pub relay_cpu: usize,
    pub generator_cpu: usize,
    /// False when somebody ended it before the plan was done.
    pub complete: bool,
}

/// One call of the program.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Part {
    /// The arguments of the program.
    pub arguments: Vec<String>,
    pub started_at: String,
}

/// A contender that took part, with its set-up.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Entrant {
    pub name: String,
    pub version: String,
    pub settings: String,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LeftOut {
    pub contender: String,
    pub reason: String,
}

/// One contender did not get through one work once.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Failure {
    pub contender: String,
    pub work: Work,
    pub round: usize,
    pub reason: String,
}

/// A report could not be written, or read back.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("{path} cannot be written: {source}; `--out DIR` puts the report elsewhere")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} cannot be drawn: {detail}")]
    Draw { path: PathBuf, detail: String },
    #[error("{path} cannot be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} cannot be put together with the reports before it: {what} differ")]
    Differs { path: PathBuf, what: &'static str },
    #[error("{path} has `{work}`, which a report before it has too; a work is measured in one piece")]
    Twice { path: PathBuf, work: Work },
    #[error(transparent)]
    Json(#[from] JsonError),
}

impl Report {
    /// Reads a `report.json`.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ReportError::Read { path: path.to_owned(), source })?;
        Ok(Self::from_json(&text)?)
    }

    /// The reports at `paths` as one: of the same machine, settings and contenders, each with works of its own.
    pub fn read_together(paths: &[PathBuf]) -> Result<Option<Self>, ReportError> {
        let Some((first, others)) = paths.split_first() else { return Ok(None) };
        let mut whole = Self::read(first)?;
        for path in others {
            whole.add(Self::read(path)?, path)?;
        }
        Ok(Some(whole))
    }

    fn add(&mut self, part: Self, path: &Path) -> Result<(), ReportError> {
        let Self { machine, settings, contenders, left_out, runs, failures } = part;
        let as_ours = Settings { parts: self.settings.parts.clone(), ..settings.clone() };
        let differing = [
            (machine != self.machine, "machines"),
            (as_ours != self.settings, "settings"),
            (contenders != self.contenders || left_out != self.left_out, "contenders"),
        ];
        if let Some((_, what)) = differing.into_iter().find(|(differs, _)| *differs) {
            return Err(ReportError::Differs { path: path.to_owned(), what });
        }
        if let Some(run) = runs.iter().find(|run| self.runs.iter().any(|ours| ours.work == run.work)) {
            return Err(ReportError::Twice { path: path.to_owned(), work: run.work });
        }
        self.settings.parts.extend(settings.parts);
        self.runs.extend(runs);
        self.failures.extend(failures);
        Ok(())
    }

    /// Writes everything into `folder`, which is made where it is missing.
    pub fn write(&self, folder: &Path) -> Result<(), ReportError> {
        std::fs::create_dir_all(folder)
            .map_err(|source| ReportError::Write { path: folder.to_owned(), source })?;
        let plots = plots::draw(self, folder)?;
        put(folder.join("report.json"), &self.to_json()?)?;
        put(folder.join("report.md"), &markdown::write(self, &plots))
    }

    /// True if sluicegate failed anywhere, by any way of forwarding.
    pub fn sluicegate_failed(&self) -> bool {
        let is_ours = |contender: &str| contender.starts_with(OURS);
        self.failures.iter().any(|failure| is_ours(&failure.contender))
            || self.runs.iter().any(|run| is_ours(&run.contender) && run.load.errors > 0)
    }
}

/// The contender that everything is set in relation to. Its variants' names begin with it.
pub const OURS: &str = "sluicegate";

fn put(path: PathBuf, text: &str) -> Result<(), ReportError> {
    std::fs::write(&path, text).map_err(|source| ReportError::Write { path, source })
}
