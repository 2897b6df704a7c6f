//! The probe's thread: asks by the node's own listener, and judges the reply.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ProbeHandle;
use super::outcome::{ProbeError, ProbeOutcome};
use super::peers::PeerProbes;
use super::tls::{Stream, wrap};
use crate::authz::KeyHash;
use crate::config::{self, Listen};
use crate::engine::EngineHandle;
use crate::sys::service_thread::StopSignal;
use crate::wire::Reply;

pub(super) struct SelfProber {
    config: config::SelfProbeConfig,
    address: SocketAddr,
    /// The listener expects load balancers.
    is_proxied: bool,
    speaks_tls: bool,
    /// A token that nobody holds.
    made_up: String,
    engine: EngineHandle,
}

impl SelfProber {
    pub fn new(
        config: &config::SelfProbeConfig,
        listen: &Listen,
        address: SocketAddr,
        engine: &EngineHandle,
    ) -> Self {
        let made_up = format!("sg_probe_{:016x}{:016x}", random(), random());
        engine.expect_own_client(KeyHash::of_token(made_up.as_bytes()));
        Self {
            config: config.clone(),
            address: reachable(address),
            is_proxied: listen.is_proxied(),
            speaks_tls: listen.tls.is_some(),
            made_up,
            engine: engine.clone(),
        }
    }

    pub fn run(&self, stop: &StopSignal, status: &ProbeHandle) {
        let mut peers = PeerProbes::default();
        while !stop.is_stopped_within(self.config.interval) {
            // Refusing its own probe is what a draining node should do.
            if self.engine.is_draining() {
                continue;
            }
            let probed = self.probe();
            status.0.lock().local.note(probed);
            let names = self.engine.nodes_within_reach();
            let forwarded = peers.look(&names, |node| self.probe_by(node), stop);
            let mut status = status.0.lock();
            match forwarded {
                Some(forwarded) => status.forwarded.note_round(forwarded),
                None => status.forwarded.last = None,
            }
        }
    }

    fn probe(&self) -> ProbeOutcome {
        self.engine.send_own_client_by(None);
        let began = Instant::now();
        let result = self.target_and_token().and_then(|(target, token)| {
            let status_line = self.ask(&target, &token)?;
            self.judge(status_line)
        });
        ProbeOutcome { took: began.elapsed(), result }
    }

    /// Asks by another node, which has to be the one that refuses: this one does not. Or it cannot decide, as while
    /// the store is away, which is for its own probe to judge: the way there is as good.
    fn probe_by(&self, node: &Arc<str>) -> ProbeOutcome {
        self.engine.send_own_client_by(Some(Arc::clone(node)));
        let began = Instant::now();
        let result = self.ask(&self.nobodys_target(), &self.made_up).and_then(|status_line| {
            match code_of(&status_line) {
                REFUSED => Ok(()),
                _ if status_line.ends_with(Reply::Undecided.reason()) => Ok(()),
                _ => Err(self.refused(status_line, WANTED_OF_NODE)),
            }
        });
        ProbeOutcome { took: began.elapsed(), result }
    }

    fn target_and_token(&self) -> Result<(String, String), ProbeError> {
        let (Some(device), Some(path)) = (&self.config.device, &self.config.token_file) else {
            return Ok((self.nobodys_target(), self.made_up.clone()));
        };
        // Anew each time: a token is replaced in place.
        let token = fs::read_to_string(path)
            .map_err(|error| ProbeError::Token { path: path.display().to_string(), error })?;
        Ok((format!("{}:{}", device.0, self.config.port), token.trim().to_owned()))
    }

    /// The status line of the reply.
    fn ask(&self, target: &str, token: &str) -> Result<String, ProbeError> {
        let address = self.address;
        let stream = TcpStream::connect_timeout(&address, PATIENCE)
            .map_err(|error| ProbeError::Listener { address, error })?;
        let exchange = |mut stream: TcpStream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            if self.is_proxied {
                stream.write_all(PROXY_HEADER)?;
            }
            let mut stream: Box<dyn Stream> = if self.speaks_tls { wrap(stream)? } else { Box::new(stream) };
            let head = format!("CONNECT {target} HTTP/1.1\r\nProxy-Authorization: Bearer {token}\r\n\r\n");
            stream.write_all(head.as_bytes())?;
            read_line(&mut *stream)
        };
        exchange(stream).map_err(|error| ProbeError::Reply { address, error })
    }

    fn judge(&self, status_line: String) -> Result<(), ProbeError> {
        let wanted = match (self.config.device.is_some(), code_of(&status_line)) {
            (true, "200") | (false, REFUSED) => return Ok(()),
            // Nobody knows the token, nor whether the store does not know it either.
            (false, "503") if self.engine.trouble().is_none() => return Ok(()),
            (true, _) => "200",
            (false, _) => "407, since nobody holds the probe's token",
        };
        Err(self.refused(status_line, wanted))
    }

    fn refused(&self, found: String, wanted: &'static str) -> ProbeError {
        let why = self.engine.refusal_of_own_client();
        let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
        ProbeError::Refused { found, why, wanted }
    }

    fn nobodys_target(&self) -> String {
        format!("{NOBODYS_UUID}:{}", self.config.port)
    }
}

fn code_of(status_line: &str) -> &str {
    status_line.split(' ').nth(1).unwrap_or_default()
}

/// Up to the first line end, which is not part of it.
fn read_line(stream: &mut dyn Stream) -> io::Result<String> {
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

/// Where a listener on every address is reached from here.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// For a token that has to be nobody's, not for one that has to be secret.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(Instant::now())
}

/// Whoever's token nobody holds.
const REFUSED: &str = "407";

const WANTED_OF_NODE: &str = "407 by that node, since nobody holds the probe's token";

/// Of a load balancer that looks whether the node lives.
const PROXY_HEADER: &[u8] = b"PROXY UNKNOWN\r\n";

/// The credential is looked at first, so it does not matter whose this is.
const NOBODYS_UUID: &str = "00000000000000000000000000000000";

/// For each step of a probe; longer than the timeouts of a session are by default.
const PATIENCE: Duration = Duration::from_secs(15);

/// Of a status line.
const LINE_BYTES_MAX: usize = 256;
