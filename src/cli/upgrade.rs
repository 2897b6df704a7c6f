//! `sluicegate upgrade`: has a running relay hand over to the program that is on disk; and the hand-over itself, for the
//! process that runs the node. A reload whose changes need a new process is one too.

use std::time::{Duration, Instant};

use serde_json::json;

use super::Loaded;
use super::admin_client::AdminClient;
use super::output::{CommandAnswer, CommandError, OutputFormat};
use super::systemd::ServiceReporter;
use crate::admin::routes;
use crate::config::Config;
use crate::handover::{PassedReloads, Program, UpgradeOutcome};
use crate::node::{Node, Succession};

pub fn run(loaded: &Loaded, output: OutputFormat) -> Result<(), CommandError> {
    let relay = AdminClient::of(&loaded.config.admin)?;
    let answer = relay.post(routes::UPGRADE)?;
    let outcome: UpgradeOutcome = answer.read()?;
    let UpgradeOutcome { pid, version, old_pid, moved, stayed, remark } = &outcome;
    let mut text =
        format!("process {pid} (sluicegate {version}) has taken over; tunnels that moved: {moved}");
    if *stayed > 0 {
        text += &format!("; sessions that stay with process {old_pid} until they end: {stayed}");
    }
    if let Some(remark) = remark {
        text += &format!("; {remark}");
    }
    CommandAnswer::done(text, json!(outcome)).print(output)
}

/// Hands the node over to `program`, and says how it ended: for a request, and for a change that needs a new process.
/// After `Ok` this process keeps what is left; see [`linger`].
pub fn hand_over(
    node: &mut Node,
    program: &Program,
    reloads: PassedReloads,
    service: &ServiceReporter,
    config: &Config,
    is_interrupted: &dyn Fn() -> bool,
) -> Result<UpgradeOutcome, String> {
    tracing::info!("handing over to a new process");
    let handed = node.hand_over(program, reloads, |pid| service.handed_over(pid), is_interrupted);
    let handed = handed.map_err(|error| {
        tracing::error!("nothing was handed over, and this process goes on: {error}");
        error.to_string()
    })?;
    let moved = handed.wait_until_moved(MOVE_PATIENCE);
    if node.watch_successor(false) == Succession::Failed {
        return Err(take_back(node, service, config));
    }
    // The new process reports it from here on.
    node.record_usage();
    let outcome = UpgradeOutcome {
        pid: handed.pid,
        version: handed.version,
        old_pid: std::process::id(),
        moved,
        stayed: node.sessions(),
        remark: handed.remark,
    };
    tracing::info!(new = outcome.pid, moved, stayed = outcome.stayed, "handed over");
    Ok(outcome)
}

/// Keeps the listeners until the new process has proved itself, or `is_interrupted` returns true. Returns whether the new
/// process has failed, so that this one accepts clients again.
pub fn takes_back(
    node: &mut Node,
    service: &ServiceReporter,
    config: &Config,
    is_interrupted: impl Fn() -> bool,
) -> bool {
    loop {
        match node.watch_successor(is_interrupted()) {
            Succession::Final => return false,
            Succession::Unproven(_) => std::thread::sleep(LOOK_EVERY),
            Succession::Failed => {
                take_back(node, service, config);
                return true;
            }
        }
    }
}

/// Goes on in the place of the new process. Returns what is to be said of that.
fn take_back(node: &mut Node, service: &ServiceReporter, config: &Config) -> String {
    node.take_back(config);
    service.taken_back();
    let told = "the new process ended right after it had taken over; this one accepts clients again, and the log says \
                why the other one ended";
    tracing::error!(left = node.sessions(), "{told}");
    told.to_owned()
}

/// Keeps what could not move until it has ended, `patience` has passed or `is_interrupted` returns true. Returns whether
/// it was interrupted.
pub fn linger(node: &Node, patience: Duration, is_interrupted: impl Fn() -> bool) -> bool {
    let give_up_at = Instant::now() + patience;
    while node.sessions() > 0 && Instant::now() < give_up_at {
        if is_interrupted() {
            return true;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let left = node.sessions();
    if left > 0 {
        tracing::warn!(left, "timeouts.linger has passed; ending the sessions that stayed");
    }
    false
}

/// Time for which the answer to a request waits until the tunnels have moved. With the time that a new process has to
/// get ready, less than an answer of the local socket may take.
const MOVE_PATIENCE: Duration = Duration::from_secs(10);

/// Time between two looks at whether sessions are left.
const LOOK_EVERY: Duration = Duration::from_millis(50);
