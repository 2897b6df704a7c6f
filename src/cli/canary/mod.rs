//! `sluicegate canary`: is an installation of use to somebody outside? Comes as a client does, step by step, and
//! ends at the first that is not as it should be.
//!
//! Knows nothing of the relay but its address: no configuration, no store, no admin listener.

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

/// Check from outside that a relay does what it should, as a client would.
///
/// Opens a tunnel and reads the device's first bytes, shows a token that nobody holds, and ends with exit
/// status 1 at the first step that fails. The token is read from SLUICEGATE_TOKEN or from --token-file.
#[derive(Debug, clap::Args)]
pub struct CanaryArgs {
    /// The client listener of the relay, or of what stands before several. An IPv6 address stands in brackets.
    #[arg(long, value_name = "HOST:PORT")]
    relay: RelayName,
    /// A device and port that the token may reach: UUID:PORT, with or without a suffix.
    #[arg(long, value_name = "UUID:PORT")]
    device: TunnelTarget,
    /// What the device's first bytes have to be; empty where it says nothing before it is spoken to.
    #[arg(long, value_name = "PREFIX", default_value = "SSH-")]
    expect: String,
    /// Ask the device for this path by HTTP; any answer by HTTP will do, and others will not.
    #[arg(long, value_name = "PATH", conflicts_with = "expect", value_parser = http_path)]
    http: Option<String>,
    /// A device that another node holds, so that the relay has to forward; its first bytes are to be the same.
    #[arg(long, value_name = "UUID:PORT")]
    forwarded: Option<TunnelTarget>,
    /// A device or port that the token may not reach.
    #[arg(long, value_name = "UUID:PORT")]
    refused: Option<TunnelTarget>,
    /// Speak to the relay without TLS.
    #[arg(long)]
    plain: bool,
    /// Trust those in this PEM file to sign the relay's certificate, instead of those that this machine trusts.
    #[arg(long, value_name = "FILE", conflicts_with = "plain")]
    ca: Option<PathBuf>,
    /// The name that the relay's certificate has to be for, where it is not the one in --relay.
    #[arg(long, value_name = "NAME", conflicts_with = "plain", value_parser = server_name)]
    server_name: Option<ServerName<'static>>,
    /// Read the token from this file instead of SLUICEGATE_TOKEN.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How long each step may take.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = timeout)]
    timeout: Duration,
    /// Also write what came of it to this file, for the textfile collector of Prometheus' node_exporter.
    #[arg(long, value_name = "PATH")]
    textfile: Option<PathBuf>,
}

/// Why the canary failed; each text ends in the remedy.
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

/// Runs all steps, and tells each as it is done.
pub fn run(args: CanaryArgs, output: OutputFormat) -> Result<(), CommandError> {
    let textfile = args.textfile.clone();
    let mut report = CanaryReport::new(output);
    let outcome = CanaryRun::new(args).and_then(|run| run.run(&mut report));
    let written = textfile.map_or(Ok(()), |path| report.write_textfile(path, outcome.is_ok()));
    report.close(outcome.as_ref().err())?;
    // The step that failed is the news; the file is told of beside it.
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

/// Reads `--http`.
fn http_path(text: &str) -> Result<String, &'static str> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.starts_with('/') && is_plain {
        Ok(text.to_owned())
    } else {
        Err(
            "a path begins with / and has neither blanks nor other letters than ASCII's; write for example /ping",
        )
    }
}

/// Reads `--timeout`.
fn timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(timeout) if timeout.is_zero() => Err("a step takes some time; write for example 10s".to_owned()),
        Ok(timeout) => Ok(timeout),
        Err(error) => Err(format!("{error}; write for example 10s")),
    }
}
