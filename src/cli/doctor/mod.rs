//! `sluicegate doctor`: what of this machine stands in the way of this configuration, or of a profile of
//! `tuning/`. Reads, and tries out io_uring on a ring of its own; changes nothing.

mod cgroup;
mod finding;
mod hardware;
mod kernel;
mod limits;
mod machine;
mod profile;

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::output::{CommandError, OutputFormat, print};
use crate::config::Config;
use finding::{FindingVerdict, MachineFinding};
use machine::Machine;
use profile::TuningProfile;

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Compare with all of this profile; without, only with what every node wants.
    #[arg(long, value_enum)]
    profile: Option<TuningProfile>,
    /// Look at the limits and the control group of this process, such as a relay that runs as a service,
    /// instead of one's own.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Read /proc and /sys below this folder, and try nothing out. For tests, and for copies of another
    /// machine's files.
    #[arg(long, value_name = "FOLDER", hide = true)]
    root: Option<PathBuf>,
}

/// Fails where something limits `config`.
pub fn run(args: DoctorArgs, config: &Config, output: OutputFormat) -> Result<(), CommandError> {
    let machine = Machine::new(args.root, args.pid);
    let findings = examine(&machine, config, args.profile);
    match output {
        OutputFormat::Text => print(&finding::text(&findings))?,
        OutputFormat::Json => print(&format!("{:#}\n", json!(findings)))?,
    }
    match findings.iter().filter(|finding| finding.verdict == FindingVerdict::Limit).count() {
        0 => Ok(()),
        1 => Err(CommandError::failed("one thing above limits this configuration")),
        limits => Err(CommandError::failed(format!("{limits} things above limit this configuration"))),
    }
}

/// Warns, in the log, of what limits `config`. Too few descriptors are left to the engine, which says so
/// itself and adapts.
pub fn warn_of_the_worst(config: &Config) {
    let machine = Machine::new(None, None);
    let findings = examine(&machine, config, None);
    let limits = findings.iter().filter(|finding| finding.verdict == FindingVerdict::Limit);
    for MachineFinding { item, found, wanted, why, .. } in
        limits.filter(|finding| finding.item != limits::OPEN_FILES).take(WARNINGS_MAX)
    {
        tracing::warn!("{item}: found {found}, want {wanted}: {why}; `sluicegate doctor` says more");
    }
}

/// All findings, the worst first.
fn examine(machine: &Machine, config: &Config, profile: Option<TuningProfile>) -> Vec<MachineFinding> {
    let settings = profile.map_or_else(profile::common, TuningProfile::settings);
    let mut findings = kernel::findings(machine);
    findings.extend(limits::findings(machine, config));
    findings.extend(cgroup::findings(machine, config));
    findings.extend(hardware::findings(machine, config));
    findings.extend(settings.iter().filter_map(|setting| setting.look(machine)));
    findings.sort_by_key(|finding| finding.verdict);
    findings
}

/// What one start may say about its machine.
const WARNINGS_MAX: usize = 3;
