//! Runs the steps in their order.
//!
//! Each step has its own time limit. The first three share a connection, as they do for every client.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crossbeam::channel::bounded;

use super::report::CanaryReport;
use super::step::CanaryStep;
use super::{CanaryArgs, CanaryError};
use crate::cli::tunnel::{
    ClientTls, RelayConnection, RelayEndpoint, RelayName, TunnelError, TunnelRefusal, TunnelTarget,
    read_token,
};
use crate::wire::{Token, explain_io};

/// Reason why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepFailure {
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    #[error(
        "{target} opened, but its first bytes did not arrive: {}; check the service on the device",
        explain_io(source)
    )]
    Silent { target: TunnelTarget, source: io::Error },
    #[error(
        "{target} opened, but did not accept a request: {}; check the service on the device",
        explain_io(source)
    )]
    Deaf { target: TunnelTarget, source: io::Error },
    #[error("{target} began with \"{}\" instead of \"{expected}\"; check the service there, or --expect and --http",
        came.escape_ascii())]
    FirstBytes { target: TunnelTarget, expected: String, came: Vec<u8> },
    #[error("{what} was let in; take the relay out of service and check its grants and tokens")]
    LetIn { what: &'static str },
    #[error("{what} should get {wanted}, but got {refusal}")]
    OtherRefusal { what: &'static str, wanted: u16, refusal: TunnelRefusal },
}

/// Settings of a run.
pub(super) struct CanaryRun {
    relay: RelayEndpoint,
    device: TunnelTarget,
    /// Path of the HTTP request to the device.
    http: Option<String>,
    expect: String,
    forwarded: Option<TunnelTarget>,
    refused: Option<TunnelTarget>,
    token: Token,
    made_up: Token,
    timeout: Duration,
}

impl CanaryRun {
    pub(super) fn new(args: CanaryArgs) -> Result<Self, CanaryError> {
        let token = read_token(args.token_file.as_deref())?;
        let tls = (!args.plain)
            .then(|| ClientTls::new(&args.relay, args.ca.as_deref(), args.server_name.as_ref()))
            .transpose()
            .map_err(TunnelError::from)?;
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(CanaryError::Random)?;
        let made_up = Token::new(format!("sg_canary_{}", hex::encode(random)).into_bytes());
        Ok(Self {
            relay: RelayEndpoint { name: args.relay, tls },
            device: args.device,
            expect: if args.http.is_some() { HTTP.to_owned() } else { args.expect },
            http: args.http,
            forwarded: args.forwarded,
            refused: args.refused,
            token,
            made_up,
            timeout: args.timeout,
        })
    }

    /// Runs all steps, and reports each one to `report`.
    pub(super) fn run(&self, report: &mut CanaryReport) -> Result<(), CanaryError> {
        let socket = self.step(CanaryStep::Connect, report, |until| self.connect(until))?;
        let link = match self.relay.tls {
            Some(_) => {
                let (link, took) =
                    self.timed(CanaryStep::Tls, |until| Ok(self.relay.secure(socket, until)?))?;
                report.record_tls(took, link.certificate_expires_at());
                link
            }
            None => self.relay.secure(socket, Instant::now())?,
        };
        let link = self.step(CanaryStep::Device, report, |until| self.reach(link, &self.device, until))?;
        link.finish();
        if let Some(target) = &self.forwarded {
            let reach = |until| self.reach(self.link(until)?, target, until);
            self.step(CanaryStep::Forwarded, report, reach)?.finish();
        }
        let unknown =
            |until| self.is_refused("a token that nobody holds", 407, &self.device, &self.made_up, until);
        self.step(CanaryStep::Token, report, unknown)?;
        if let Some(target) = &self.refused {
            let refused =
                |until| self.is_refused("what the token may not reach", 403, target, &self.token, until);
            self.step(CanaryStep::Refused, report, refused)?;
        }
        Ok(())
    }

    fn step<T>(
        &self,
        step: CanaryStep,
        report: &mut CanaryReport,
        work: impl FnOnce(Instant) -> Result<T, StepFailure>,
    ) -> Result<T, CanaryError> {
        let (result, took) = self.timed(step, work)?;
        report.record(step, took);
        Ok(result)
    }

    fn timed<T>(
        &self,
        step: CanaryStep,
        work: impl FnOnce(Instant) -> Result<T, StepFailure>,
    ) -> Result<(T, Duration), CanaryError> {
        let begin = Instant::now();
        let result = work(begin + self.timeout);
        let took = begin.elapsed();
        let result = result.map_err(|failure| CanaryError::Step { step, took, failure })?;
        Ok((result, took))
    }

    fn connect(&self, until: Instant) -> Result<TcpStream, StepFailure> {
        let unresolved = |source| TunnelError::Resolve { relay: self.relay.name.clone(), source };
        let addresses = resolve(&self.relay.name, until).map_err(unresolved)?;
        Ok(self.relay.connect(&addresses, until)?)
    }

    fn link(&self, until: Instant) -> Result<RelayConnection, StepFailure> {
        Ok(self.relay.secure(self.connect(until)?, until)?)
    }

    /// Opens a tunnel to `target` and checks its first bytes.
    fn reach(
        &self,
        mut link: RelayConnection,
        target: &TunnelTarget,
        until: Instant,
    ) -> Result<RelayConnection, StepFailure> {
        link.set_deadline(until);
        if let Some(refusal) = self.relay.request(&mut link, target, &self.token)? {
            return Err(TunnelError::Refused(refusal).into());
        }
        if let Some(path) = &self.http {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
            let deaf = |source| StepFailure::Deaf { target: target.clone(), source };
            link.write_all(request.as_bytes()).and_then(|()| link.flush()).map_err(deaf)?;
        }
        let expected = self.expect.as_bytes();
        let mut came = Vec::new();
        while came.len() < expected.len() {
            let mut chunk = vec![0; expected.len() - came.len()];
            let silent = |source| StepFailure::Silent { target: target.clone(), source };
            let len = match link.read(&mut chunk) {
                Ok(0) => {
                    return Err(silent(io::Error::new(io::ErrorKind::UnexpectedEof, "the tunnel ended")));
                }
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(silent(io::Error::new(error.kind(), "it said nothing in time")));
                }
                Err(error) => return Err(silent(error)),
            };
            came.extend_from_slice(&chunk[..len]);
            if !expected.starts_with(&came) {
                let expected = self.expect.escape_debug().to_string();
                return Err(StepFailure::FirstBytes { target: target.clone(), expected, came });
            }
        }
        Ok(link)
    }

    fn is_refused(
        &self,
        what: &'static str,
        wanted: u16,
        target: &TunnelTarget,
        token: &Token,
        until: Instant,
    ) -> Result<(), StepFailure> {
        let mut link = self.link(until)?;
        match self.relay.request(&mut link, target, token)? {
            None => Err(StepFailure::LetIn { what }),
            Some(refusal) if refusal.status() == wanted => {
                link.finish();
                Ok(())
            }
            Some(refusal) => Err(StepFailure::OtherRefusal { what, wanted, refusal }),
        }
    }
}

/// Resolves a name before `until`. The resolver has no time limit, so a thread waits for it, and may go on until
/// the process ends.
fn resolve(relay: &RelayName, until: Instant) -> io::Result<Vec<SocketAddr>> {
    let (answer, answered) = bounded(1);
    let name = relay.clone();
    std::thread::Builder::new().name("resolver".into()).spawn(move || {
        let _nobody_waits = answer.send(name.resolve());
    })?;
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the resolver did not answer in time");
    answered.recv_deadline(until).map_err(late)?
}

/// First bytes of every HTTP response.
const HTTP: &str = "HTTP/1.";
