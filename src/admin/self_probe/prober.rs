//! The self-probe's thread: sends requests to the node's own listener, and checks the replies.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ProbeHandle;
use super::outcome::{ProbeError, ProbeOutcome};
use super::peers::{PeerProbes, record, record_round};
use super::tls::{ProbeStream, wrap};
use crate::authz::KeyHash;
use crate::config::{self, Listen, SECRET_FILE_BYTES_MAX, read_bounded_text};
use crate::engine::{EngineHandle, ServicePhase};
use crate::sys::service_thread::StopSignal;
use crate::wire::Reply;

pub(super) struct SelfProber {
    config: config::SelfProbeConfig,
    address: SocketAddr,
    /// The listener expects a PROXY header.
    is_proxied: bool,
    speaks_tls: bool,
    /// A token that nobody holds.
    unknown_token: String,
    engine: EngineHandle,
}

impl SelfProber {
    pub fn new(
        config: &config::SelfProbeConfig,
        listen: &Listen,
        address: SocketAddr,
        engine: &EngineHandle,
    ) -> Self {
        let unknown_token = format!("sg_probe_{:016x}{:016x}", random(), random());
        engine.expect_self_probe(KeyHash::of_token(unknown_token.as_bytes()));
        Self {
            config: config.clone(),
            address: reachable(address),
            is_proxied: listen.is_proxied(),
            speaks_tls: listen.tls.is_some(),
            unknown_token,
            engine: engine.clone(),
        }
    }

    pub fn run(&self, stop: &StopSignal, status: &ProbeHandle) {
        let mut peers = PeerProbes::default();
        while !stop.is_stopped_within(self.config.interval) {
            // A draining node is right to refuse its own probe.
            if self.engine.phase() >= ServicePhase::Draining {
                continue;
            }
            let probed = self.probe();
            record(&mut status.0.lock().local, probed);
            let names = self.engine.reachable_peers();
            let forwarded = peers.probe_next(&names, |node| self.probe_by(node), stop);
            let mut status = status.0.lock();
            match forwarded {
                Some(forwarded) => record_round(&mut status.forwarded, forwarded),
                None => status.forwarded.last = None,
            }
        }
    }

    fn probe(&self) -> ProbeOutcome {
        self.engine.forward_self_probe_through(None);
        let began = Instant::now();
        let result = self.target_and_token().and_then(|(target, token)| {
            let status_line = self.request(&target, &token)?;
            self.judge(status_line)
        });
        ProbeOutcome { took: began.elapsed(), result }
    }

    /// Sends a request through another node, which must refuse it. A reply that the node cannot decide also passes,
    /// since its store may be away: the connection between the nodes works, and the node's own probe finds the
    /// rest.
    fn probe_by(&self, node: &Arc<str>) -> ProbeOutcome {
        self.engine.forward_self_probe_through(Some(Arc::clone(node)));
        let began = Instant::now();
        let result = self.request(&self.unused_target(), &self.unknown_token).and_then(|status_line| {
            match code_of(&status_line) {
                REFUSED => Ok(()),
                _ if status_line.ends_with(Reply::Undecided.reason()) => Ok(()),
                _ => Err(self.refused(status_line, EXPECTED_FROM_NODE)),
            }
        });
        ProbeOutcome { took: began.elapsed(), result }
    }

    fn target_and_token(&self) -> Result<(String, String), ProbeError> {
        let (Some(device), Some(path)) = (&self.config.device, &self.config.token_file) else {
            return Ok((self.unused_target(), self.unknown_token.clone()));
        };
        // The file is read for each probe, since a token can be replaced in place.
        let token = read_bounded_text(path, SECRET_FILE_BYTES_MAX)
            .map_err(|error| ProbeError::Token { path: path.display().to_string(), error })?;
        Ok((format!("{}:{}", device.0, self.config.port), token.trim().to_owned()))
    }

    /// Sends one request, and returns the status line of the reply.
    fn request(&self, target: &str, token: &str) -> Result<String, ProbeError> {
        let address = self.address;
        let stream = TcpStream::connect_timeout(&address, STEP_TIMEOUT)
            .map_err(|error| ProbeError::Listener { address, error })?;
        let exchange = |mut stream: TcpStream| {
            stream.set_read_timeout(Some(STEP_TIMEOUT))?;
            stream.set_write_timeout(Some(STEP_TIMEOUT))?;
            if self.is_proxied {
                stream.write_all(PROXY_HEADER)?;
            }
            let mut stream: Box<dyn ProbeStream> =
                if self.speaks_tls { wrap(stream)? } else { Box::new(stream) };
            let head = format!("CONNECT {target} HTTP/1.1\r\nProxy-Authorization: Bearer {token}\r\n\r\n");
            stream.write_all(head.as_bytes())?;
            read_line(&mut *stream)
        };
        exchange(stream).map_err(|error| ProbeError::Reply { address, error })
    }

    fn judge(&self, status_line: String) -> Result<(), ProbeError> {
        let wanted = match (self.config.device.is_some(), code_of(&status_line)) {
            (true, "200") | (false, REFUSED) => return Ok(()),
            // The store cannot be read, so it is unknown whether it has the made-up token.
            (false, "503") if self.engine.trouble().is_none() => return Ok(()),
            (true, _) => "200",
            (false, _) => "407, since nobody holds the probe's token",
        };
        Err(self.refused(status_line, wanted))
    }

    fn refused(&self, found: String, wanted: &'static str) -> ProbeError {
        let why = self.engine.take_self_probe_refusal();
        let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
        ProbeError::Refused { found, why, wanted }
    }

    fn unused_target(&self) -> String {
        format!("{UNUSED_UUID}:{}", self.config.port)
    }
}

fn code_of(status_line: &str) -> &str {
    status_line.split(' ').nth(1).unwrap_or_default()
}

/// Reads up to the first line end, and drops the line end.
fn read_line(stream: &mut dyn ProbeStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        match byte[0] {
            b'\r' | b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
            _ if line.len() == LINE_BYTES_MAX => break,
            byte => line.push(byte),
        }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends before its first line does"))
}

/// Replaces an unspecified address by loopback, where this process reaches the listener.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// A random number that makes a token unique. It need not be secret.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(Instant::now())
}

/// Status code of the refusal of an unknown token.
const REFUSED: &str = "407";

const EXPECTED_FROM_NODE: &str = "407 by that node, since nobody holds the probe's token";

/// PROXY header of a load balancer's health check.
const PROXY_HEADER: &[u8] = b"PROXY UNKNOWN\r\n";

/// A uuid without a device. The relay checks the credential first, so no device is needed.
const UNUSED_UUID: &str = "00000000000000000000000000000000";

/// Time that each step of a probe may take. It is longer than the default timeouts of a session.
const STEP_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest status line that is read.
const LINE_BYTES_MAX: usize = 256;
