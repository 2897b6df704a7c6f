//! The log of a running relay, on stderr or in the system's journal.

use std::io::{self, IsTerminal};

use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

use super::output::CommandError;
use crate::config::{Log, LogFormat, LogLevel};

/// Changes the level of the running log.
pub struct LevelSwitch(Handle<EnvFilter, Registry>);

impl LevelSwitch {
    /// Sets the level. Has no effect where `RUST_LOG` sets it.
    pub fn set(&self, level: LogLevel) {
        let set = filter(level).map(|filter| self.0.reload(filter));
        if !matches!(set, Ok(Ok(()))) {
            tracing::error!("the log's level cannot be set; it stays as it was");
        }
    }
}

/// Starts the log. `RUST_LOG` overrides the configuration.
pub fn start(log: &Log) -> Result<LevelSwitch, CommandError> {
    let (filter, handle) = reload::Layer::new(filter(log.level)?);
    let registry = tracing_subscriber::registry().with(filter);
    let to_stderr = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    match log.format {
        _ if log.journald => registry.with(journal()?).init(),
        LogFormat::Text => registry.with(to_stderr.with_ansi(has_colours())).init(),
        LogFormat::Json => registry.with(to_stderr.json()).init(),
    }
    Ok(LevelSwitch(handle))
}

/// Returns the reasons why [`start`] would fail, in one line each.
pub fn check(log: &Log) -> Vec<String> {
    let journal = if log.journald { journal().err() } else { None };
    filter(log.level).err().into_iter().chain(journal).map(|error| error.to_string()).collect()
}

fn journal() -> Result<tracing_journald::Layer, CommandError> {
    let journal = tracing_journald::layer().map_err(|error| {
        CommandError::failed(format!(
            "log.journald is on, but journald cannot be reached: {error}; turn it off to log to stderr"
        ))
    })?;
    // An info line must not appear in `journalctl -p notice`, which shows what needs attention.
    let priorities = PriorityMappings { info: Priority::Informational, ..PriorityMappings::new() };
    Ok(journal
        .with_syslog_identifier("sluicegate".to_owned())
        .with_field_prefix(Some("SLUICEGATE".to_owned()))
        .with_priority_mappings(priorities))
}

/// True where colours are of use: on a terminal, unless NO_COLOR is set (<https://no-color.org>).
fn has_colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn filter(level: LogLevel) -> Result<EnvFilter, CommandError> {
    let level = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(directives) if !directives.is_empty() => EnvFilter::try_new(directives)
            .map_err(|error| CommandError::failed(format!("RUST_LOG is not understood: {error}"))),
        _ => Ok(EnvFilter::new(level)),
    }
}
