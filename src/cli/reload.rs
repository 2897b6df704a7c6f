//! `sluicegate reload`: has a running relay read its configuration again, and waits for what comes of it.
//!
//! The unit's `ExecReload=` is this command. It must reach the relay where the configuration is broken too: certificates
//! are renewed all the same.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::Global;
use super::admin_client::AdminClient;
use super::output::{CommandAnswer, CommandError};
use crate::admin::api::{ReloadAnswer, ReloadRequested};
use crate::admin::routes;
use crate::config::{self, Admin, ConfigErrors, ConfigInspection};

pub(super) fn run(global: &Global) -> Result<(), CommandError> {
    let file = global.file()?;
    let (relay, number) = begin(file.as_deref()).map_err(signal_instead)?;
    wait(&relay, number)?;
    let facts = json!({ "outcome": "reloaded", "number": number });
    CommandAnswer::done("reloaded", facts).print(global.output())
}

/// Requests a reload. Returns its number.
fn begin(file: Option<&Path>) -> Result<(AdminClient, u64), CommandError> {
    let admin = admin_section(file).map_err(CommandError::failed)?;
    let relay = AdminClient::of(&admin)?;
    let ReloadRequested { number } = relay.post(routes::RELOAD)?.read()?;
    Ok((relay, number))
}

/// The section `[admin]`, of a configuration that may be wrong elsewhere.
fn admin_section(file: Option<&Path>) -> Result<Admin, ConfigErrors> {
    let environment = config::environment().map_err(ConfigErrors::from)?;
    let inspection = ConfigInspection::of(file, environment)?;
    match inspection.is_right(&["admin.socket"]) {
        true => Ok(inspection.config.admin),
        false => inspection.finish().map(|config| config.admin),
    }
}

/// Waits for the outcome of a reload, however long the store takes.
fn wait(relay: &AdminClient, number: u64) -> Result<(), CommandError> {
    let path = routes::reload_outcome(&number.to_string());
    loop {
        let ReloadAnswer { outcome } = relay.get(&path)?.read()?;
        match outcome.map(|outcome| outcome.error) {
            Some(None) => return Ok(()),
            Some(Some(error)) => return Err(CommandError::failed(error)),
            None => std::thread::sleep(POLL_EVERY),
        }
    }
}

/// The relay cannot be asked: sends SIGHUP to the process that systemd names, so that it renews its certificates and logs
/// what is wrong. The command fails in any case.
fn signal_instead(error: CommandError) -> CommandError {
    let relay = std::env::var("MAINPID").ok().and_then(|pid| pid.parse().ok()).filter(|pid| *pid > 1);
    let Some(relay) = relay else { return error };
    match kill(Pid::from_raw(relay), Signal::SIGHUP) {
        Ok(()) => {
            CommandError::failed(format!("{error}\nSIGHUP was sent instead; the relay's log has the outcome"))
        }
        Err(_) => error,
    }
}

/// Time between two questions for the outcome.
const POLL_EVERY: Duration = Duration::from_millis(50);
