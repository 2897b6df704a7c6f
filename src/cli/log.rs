//! The log of a running relay: to stderr, or to the system's journal.

use std::io::{self, IsTerminal};

use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::output::CommandError;
use crate::config::{Log, LogFormat, LogLevel};

/// Starts it; `RUST_LOG` goes before the configuration.
pub fn start(log: &Log) -> Result<(), CommandError> {
    let filter = filter(log.level)?;
    if log.journald {
        return start_journal(filter);
    }
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match log.format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

fn start_journal(filter: EnvFilter) -> Result<(), CommandError> {
    let journal = tracing_journald::layer().map_err(|error| {
        CommandError::failed(format!(
            "log.journald is on, but journald cannot be reached: {error}; turn it off to log to stderr"
        ))
    })?;
    // An ordinary line is no notice: `journalctl -p notice` is to show what somebody should look at.
    let priorities = PriorityMappings { info: Priority::Informational, ..PriorityMappings::new() };
    let journal = journal
        .with_syslog_identifier("sluicegate".to_owned())
        .with_field_prefix(Some("SLUICEGATE".to_owned()))
        .with_priority_mappings(priorities);
    tracing_subscriber::registry().with(filter).with(journal).init();
    Ok(())
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
