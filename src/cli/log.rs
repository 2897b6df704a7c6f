//! The log of a running relay, on stderr or in the system's journal.

use std::io;

use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::{Layer, Layered, SubscriberExt};
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

use super::journal_stream::{self, WithPriority};
use crate::config::{KeyProblem, Log, LogFormat, LogLevel};

/// The running log, whose level, format and destination can change.
pub(super) struct RunningLog {
    level: Handle<EnvFilter, Registry>,
    output: Handle<Output, Filtered>,
}

/// Formats events and writes them.
pub(super) type Output = Box<dyn Layer<Filtered> + Send + Sync>;

/// The events that pass the level.
type Filtered = Layered<reload::Layer<EnvFilter, Registry>, Registry>;

/// Reason why a log cannot be written; it says what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    #[error("log.journald is on, but journald cannot be reached: {0}; turn it off to log to stderr")]
    Journal(io::Error),
    #[error("RUST_LOG is not understood: {0}")]
    Directives(#[from] ParseError),
}

impl RunningLog {
    /// Makes the output that `next` wants. `None` where it is the one that `running` has.
    pub fn prepare(&self, running: &Log, next: &Log) -> Result<Option<Output>, LogError> {
        let is_same = (running.format, running.journald) == (next.format, next.journald);
        if is_same { Ok(None) } else { output(next).map(Some) }
    }

    /// Sets the level, and the output where there is a new one. The level has no effect where `RUST_LOG` sets it.
    pub fn apply(&self, level: LogLevel, next: Option<Output>) {
        let level = filter(level).map(|filter| self.level.reload(filter));
        let output = next.map_or(Ok(()), |output| self.output.reload(output));
        if !matches!((level, output), (Ok(Ok(())), Ok(()))) {
            tracing::error!("the log cannot be changed; it stays as it was");
        }
    }
}

/// Starts the log. `RUST_LOG` overrides the configuration.
pub(super) fn start(log: &Log) -> Result<RunningLog, LogError> {
    let (filter, level) = reload::Layer::new(filter(log.level)?);
    let (writer, output) = reload::Layer::new(output(log)?);
    tracing_subscriber::registry().with(filter).with(writer).init();
    Ok(RunningLog { level, output })
}

/// Returns the reasons why [`start`] would fail: of the configuration, and of the environment in one line each.
pub(super) fn check(log: &Log) -> (Option<KeyProblem>, Vec<String>) {
    let problem = |error: LogError| KeyProblem { key: "log.journald".to_owned(), problem: error.to_string() };
    let of_environment = filter(log.level).err().map(|error| error.to_string());
    (output(log).err().map(problem), of_environment.into_iter().collect())
}

fn output(log: &Log) -> Result<Output, LogError> {
    let to_stderr = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    Ok(match log.format {
        _ if log.journald => Box::new(journal()?),
        LogFormat::Json if journal_stream::is_stderr() => {
            Box::new(to_stderr.json().map_event_format(WithPriority))
        }
        LogFormat::Json => Box::new(to_stderr.json()),
        LogFormat::Text if journal_stream::is_stderr() => {
            Box::new(to_stderr.with_ansi(false).map_event_format(WithPriority))
        }
        LogFormat::Text => Box::new(to_stderr.with_ansi(journal_stream::has_colours())),
    })
}

fn journal() -> Result<tracing_journald::Layer, LogError> {
    let journal = tracing_journald::layer().map_err(LogError::Journal)?;
    // An info line must not appear in `journalctl -p notice`, which shows what needs attention.
    let priorities = PriorityMappings { info: Priority::Informational, ..PriorityMappings::new() };
    Ok(journal
        .with_syslog_identifier("sluicegate".to_owned())
        .with_field_prefix(Some("SLUICEGATE".to_owned()))
        .with_priority_mappings(priorities))
}

fn filter(level: LogLevel) -> Result<EnvFilter, LogError> {
    let level = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(directives) if !directives.is_empty() => Ok(EnvFilter::try_new(directives)?),
        _ => Ok(EnvFilter::new(level)),
    }
}
