//! `sluicegate canary`: tests an installation from outside, step by step, as a client would, and stops at the first
//! step that fails.
//!
//! It knows only the address of the relay: no configuration, no store, no admin listener.

mod report;
mod run;
mod step;

use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::output::{CommandError, OutputFormat};
use super::tunnel::{RelayName, TunnelError, TunnelTarget, server_name};
use report::CanaryReport;
use run::{CanaryRun, StepFailure};
use step::CanaryStep;

/// Test a relay from outside, as a client.
///
/// Opens a tunnel, reads the device's first bytes, and then shows a token that nobody holds. Stops with exit status
/// 1 at the first step that fails. The token is read from SLUICEGATE_TOKEN or from --token-file.
#[derive(Debug, clap::Args)]
pub struct CanaryArgs {
    /// Address of the relay's client listener, or of a load balancer in front of several relays. Write an IPv6
    /// address in brackets.
    #[arg(long, value_name = "HOST:PORT")]
    relay: RelayName,
    /// Device and port that the token may reach: UUID:PORT, with or without a suffix.
    #[arg(long, value_name = "UUID:PORT")]
    device: TunnelTarget,
    /// Expected first bytes from the device. Empty if the device waits for the client to speak first.
    #[arg(long, value_name = "PREFIX", default_value = "SSH-")]
    expect: String,
    /// Send an HTTP request for this path to the device. Any HTTP response passes, other bytes fail.
    #[arg(long, value_name = "PATH", conflicts_with = "expect", value_parser = http_path)]
    http: Option<String>,
    /// Device that another node holds, so that the relay has to forward. Its first bytes are checked in the same
    /// way.
    #[arg(long, value_name = "UUID:PORT")]
    forwarded: Option<TunnelTarget>,
    /// Device and port that the token may not reach.
    #[arg(long, value_name = "UUID:PORT")]
    refused: Option<TunnelTarget>,
    /// Connect without TLS.
    #[arg(long)]
    plain: bool,
    /// PEM file with the certificates to trust, instead of those of this machine: of a CA, or of the relay itself.
    #[arg(long, value_name = "FILE", conflicts_with = "plain")]
    ca: Option<PathBuf>,
    /// Name that the relay's certificate must have, if it differs from the host in --relay.
    #[arg(long, value_name = "NAME", conflicts_with = "plain", value_parser = server_name)]
    server_name: Option<ServerName<'static>>,
    /// Read the token from this file instead of SLUICEGATE_TOKEN.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Time limit for each step.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = timeout)]
    timeout: Duration,
    /// Also write the results to this file, for the textfile collector of Prometheus' node_exporter.
    #[arg(long, value_name = "PATH")]
    textfile: Option<PathBuf>,
}

/// Reason why the canary failed. Each text ends in a remedy.
#[derive(Debug, thiserror::Error)]
pub enum CanaryError {
    #[error("{step} failed after {:.1} s: {failure}", took.as_secs_f64())]
    Step { step: CanaryStep, took: Duration, failure: StepFailure },
    #[error("{0}")]
    Setup(#[from] TunnelError),
    #[error("the system gives no random bytes ({0}); try again")]
    Random(getrandom::Error),
    #[error("{} cannot be written: {source}; check that its folder is there and may be written", path.display())]
    Textfile { path: PathBuf, source: std::io::Error },
}

/// Runs all steps and reports each one.
pub fn run(args: CanaryArgs, output: OutputFormat) -> Result<(), CommandError> {
    let textfile = args.textfile.clone();
    let mut report = CanaryReport::new(output);
    let outcome = CanaryRun::new(args).and_then(|run| run.run(&mut report));
    let written = textfile.map_or(Ok(()), |path| report.write_textfile(path, outcome.is_ok()));
    report.close(outcome.as_ref().err())?;
    // The failed step is the main error; a problem with the file is printed before it.
    match (outcome, written) {
        (Err(error), Err(also)) => {
            eprintln!("sluicegate: {also}");
            Err(error.into())
        }
        (Err(error), _) | (_, Err(error)) => Err(error.into()),
        (Ok(()), Ok(())) => Ok(()),
    }
}

impl From<CanaryError> for CommandError {
    fn from(error: CanaryError) -> Self {
        Self::failed(error)
    }
}

/// Parses `--http`.
fn http_path(text: &str) -> Result<String, &'static str> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.starts_with('/') && is_plain {
        Ok(text.to_owned())
    } else {
        Err("a path begins with / and has only visible ASCII characters; write for example /ping")
    }
}

/// Parses `--timeout`.
fn timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(timeout) if timeout.is_zero() => {
            Err("the time limit must not be zero; write for example 10s".to_owned())
        }
        Ok(timeout) => Ok(timeout),
        Err(error) => Err(format!("{error}; write for example 10s")),
    }
}
