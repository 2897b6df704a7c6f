//! `sluicegate doctor`: compares this machine with the needs of this configuration, or with a profile in `tuning/`.
//!
//! It reads files, and tests io_uring with a ring of its own. It changes nothing.

mod certificates;
mod cgroup;
mod confinement;
mod finding;
mod hardware;
mod kernel;
mod limits;
mod machine;
mod profile;

use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;
use serde_json::json;

use super::Loaded;
use super::output::{CommandError, OutputFormat, print};
use crate::config::Config;
use finding::{FindingVerdict, MachineFinding};
use machine::Machine;
use profile::TuningProfile;

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Compare with this profile. Without it, compare only with settings that every node should have.
    #[arg(long, value_enum)]
    profile: Option<TuningProfile>,
    /// Check the limits and the control group of this process, such as a running relay, instead of our own.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Read /proc and /sys below this folder, and run no experiments. For tests, and for copies of another
    /// machine's files.
    #[arg(long, value_name = "FOLDER", hide = true)]
    root: Option<PathBuf>,
}

/// Prints all findings. Fails where one limits the configuration.
pub fn run(args: DoctorArgs, loaded: &Loaded, output: OutputFormat) -> Result<(), CommandError> {
    let machine = Machine::new(args.root, args.pid);
    let mut findings = examine(&machine, &loaded.config, args.profile);
    findings.extend(certificates::findings(loaded.tls.shown(), SystemTime::now()));
    // Not in a relay: what it has given up it cannot ask for.
    findings.extend(confinement::findings(&machine, &loaded.config));
    findings.sort_by_key(|finding| finding.verdict);
    match output {
        OutputFormat::Text => print(&finding::text(&findings))?,
        OutputFormat::Json => print(&format!("{:#}\n", json!(findings)))?,
    }
    match findings.iter().filter(|finding| finding.verdict == FindingVerdict::Limit).count() {
        0 => Ok(()),
        1 => Err(CommandError::failed("one finding above limits this configuration")),
        limits => Err(CommandError::failed(format!("{limits} findings above limit this configuration"))),
    }
}

/// Logs findings that limit `config`. The engine itself logs a lack of descriptors, and adapts to it.
pub fn log_limits(config: &Config) {
    let machine = Machine::new(None, None);
    let findings = examine(&machine, config, None);
    let limits = findings.iter().filter(|finding| finding.verdict == FindingVerdict::Limit);
    for MachineFinding { item, found, wanted, why, .. } in
        limits.filter(|finding| finding.item != limits::OPEN_FILES).take(WARNINGS_MAX)
    {
        tracing::warn!("{item}: found {found}, want {wanted}: {why}; `sluicegate doctor` says more");
    }
}

/// Checks everything. The worst findings come first.
fn examine(machine: &Machine, config: &Config, profile: Option<TuningProfile>) -> Vec<MachineFinding> {
    let settings = profile.map_or_else(profile::common, TuningProfile::settings);
    let mut findings = kernel::findings(machine);
    findings.extend(limits::findings(machine, config));
    findings.extend(cgroup::findings(machine, config));
    findings.extend(hardware::findings(machine, config));
    findings.extend(settings.iter().filter_map(|setting| setting.check(machine)));
    findings.sort_by_key(|finding| finding.verdict);
    findings
}

/// Number of findings that a start logs.
const WARNINGS_MAX: usize = 3;
