//! Reports a canary run: line by line, as one JSON document, and as a file for node_exporter.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::CanaryError;
use super::step::CanaryStep;
use crate::cli::output::{CommandError, OutputFormat, print};

/// Results of a run so far.
pub(super) struct CanaryReport {
    output: OutputFormat,
    done: Vec<(CanaryStep, Duration)>,
    certificate_expires_at: Option<SystemTime>,
}

impl CanaryReport {
    pub(super) fn new(output: OutputFormat) -> Self {
        Self { output, done: Vec::new(), certificate_expires_at: None }
    }

    pub(super) fn record(&mut self, step: CanaryStep, took: Duration) {
        self.record_step(step, took, "");
    }

    /// Reports the step `tls`, with the expiry of the relay's certificate if it is known.
    pub(super) fn record_tls(&mut self, took: Duration, expires_at: Option<SystemTime>) {
        let until = expires_at.map(|time| format!("   certificate good until {}", in_words(time)));
        self.certificate_expires_at = expires_at;
        self.record_step(CanaryStep::Tls, took, &until.unwrap_or_default());
    }

    fn record_step(&mut self, step: CanaryStep, took: Duration, more: &str) {
        if self.output == OutputFormat::Text {
            // The exit status and the file also report the result, so a closed stdout is ignored.
            let _closed = print(&format!("{step:<9} {:>9.1} ms{more}\n", took.as_secs_f64() * 1e3));
        }
        self.done.push((step, took));
    }

    /// Prints the results as JSON, with the failure if there was one.
    pub(super) fn close(&self, failure: Option<&CanaryError>) -> Result<(), CommandError> {
        if self.output == OutputFormat::Text {
            return Ok(());
        }
        let steps: Vec<Value> = self
            .done
            .iter()
            .map(|(step, took)| json!({ "step": step.name(), "seconds": took.as_secs_f64() }))
            .collect();
        let failed = match failure {
            Some(CanaryError::Step { step, .. }) => Some(step.name()),
            _ => None,
        };
        let error = failure.map(ToString::to_string);
        let document = json!({
            "success": failure.is_none(),
            "steps": steps,
            "certificate_expires_at": self.certificate_expires_at.map(in_words),
            "failed_step": failed,
            "error": error,
        });
        print(&format!("{document:#}\n"))
    }

    /// Writes the metrics and moves them to `path`, so that a reader sees one whole run.
    pub(super) fn write_textfile(&self, path: PathBuf, is_success: bool) -> Result<(), CanaryError> {
        let text = self.metrics(is_success, SystemTime::now());
        replace(&path, &text).map_err(|source| CanaryError::Textfile { path, source })
    }

    /// Formats the metrics. They name no device, token or relay, since many people may read metrics.
    fn metrics(&self, is_success: bool, now: SystemTime) -> String {
        let now = since_1970(now).as_secs_f64();
        let mut steps = String::new();
        for (step, took) in &self.done {
            // Writing to a string does not fail.
            let _written = writeln!(
                steps,
                "sluicegate_canary_step_seconds{{step=\"{step}\"}} {:.6}",
                took.as_secs_f64()
            );
        }
        let certificate = self.certificate_expires_at.map(|expires_at| {
            format!(
                "# HELP sluicegate_canary_certificate_expiry_timestamp_seconds Expiry of the relay's certificate; absent \
                 without TLS.\n\
                 # TYPE sluicegate_canary_certificate_expiry_timestamp_seconds gauge\n\
                 sluicegate_canary_certificate_expiry_timestamp_seconds {}\n",
                since_1970(expires_at).as_secs()
            )
        });
        let certificate = certificate.unwrap_or_default();
        format!(
            "# HELP sluicegate_canary_success 1 if every step of the last run passed.\n\
             # TYPE sluicegate_canary_success gauge\n\
             sluicegate_canary_success {}\n\
             # HELP sluicegate_canary_step_seconds Duration of each step of the last run that passed.\n\
             # TYPE sluicegate_canary_step_seconds gauge\n\
             {steps}\
             {certificate}\
             # HELP sluicegate_canary_last_run_timestamp_seconds Time when the last run ended.\n\
             # TYPE sluicegate_canary_last_run_timestamp_seconds gauge\n\
             sluicegate_canary_last_run_timestamp_seconds {now:.3}\n",
            u8::from(is_success),
        )
    }
}

fn in_words(time: SystemTime) -> String {
    Timestamp::try_from(time)
        .map_or_else(|_| "a time beyond all calendars".to_owned(), |time| time.to_string())
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // The name does not end in .prom, so node_exporter ignores a file that a crash left behind.
    let mut file = tempfile::Builder::new().prefix(".sluicegate-canary-").tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    // node_exporter may run as another user.
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
