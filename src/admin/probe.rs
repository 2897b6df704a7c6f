//! The probe: from time to time the node is its own client, by its own listener, as a person would come.
//!
//! With `probe.device` it opens a real tunnel to that device, with a token of the operator's: listener, head,
//! decision, dial and reply are all seen to work. Without one it comes with a token that nobody holds, which
//! the decision has to refuse: that proves everything up to the dial, and takes no right that the store
//! would have to give. One thread, one probe at a time; engines know nothing of it but the made-up token,
//! whose refusals they neither count nor audit.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use serde::Serialize;

use super::own_tls::{Stream, wrap};
use crate::authz::{KeyHash, UnixMillis};
use crate::config::{self, Config, Listen, ListenTls};
use crate::engine::EngineHandle;

/// The thread that probes; dropping it ends the thread.
pub struct Probe {
    /// Dropped to end the thread; nothing is ever sent.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    status: ProbeHandle,
}

/// A way to what came of the probes, from any thread. Cheap to clone.
#[derive(Clone, Default, Debug)]
pub struct ProbeHandle(Arc<Mutex<ProbeStatus>>);

/// What came of the probes so far.
#[derive(Clone, Default, Debug, Serialize)]
pub struct ProbeStatus {
    /// Of the last one; `None` before the first.
    pub last: Option<ProbeResult>,
    pub succeeded: u64,
    pub failed: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct ProbeResult {
    pub at: UnixMillis,
    /// From the connect to the reply.
    pub took_us: u64,
    /// Why it failed; `None` where it did not.
    pub failure: Option<String>,
}

impl Probe {
    /// Begins to probe, where `config` wants it, the first listener that lets clients in without a certificate.
    /// Listeners are at `addresses`, in their order.
    pub fn start(config: &Config, addresses: &[SocketAddr], engine: &EngineHandle) -> io::Result<Self> {
        let status = ProbeHandle::default();
        let none = Self { end: None, thread: None, status: status.clone() };
        if config.probe.interval.is_zero() {
            return Ok(none);
        }
        let open = |listen: &Listen| !listen.tls.as_ref().is_some_and(ListenTls::wants_client_certificate);
        let listeners = config.listen.iter().zip(addresses);
        let Some((listen, &address)) = listeners.into_iter().find(|(listen, _)| open(listen)) else {
            tracing::warn!("no probe: every listener wants a certificate of its clients, and it has none");
            return Ok(none);
        };
        let (is_proxied, speaks_tls) = (listen.is_proxied(), listen.tls.is_some());
        let config = &config.probe;
        let made_up = format!("sg_probe_{:016x}{:016x}", random(), random());
        engine.expect_probe(KeyHash::of_token(made_up.as_bytes()));
        let prober = Prober {
            config: config.clone(),
            address: reachable(address),
            is_proxied,
            speaks_tls,
            made_up,
            engine: engine.clone(),
            status: status.clone(),
        };
        let (end, ended) = bounded(0);
        let thread = std::thread::Builder::new().name("probe".to_owned());
        let thread = thread.spawn(move || prober.run(&ended))?;
        Ok(Self { end: Some(end), thread: Some(thread), status })
    }

    pub fn status(&self) -> ProbeHandle {
        self.status.clone()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the probe ended by a panic; please report it");
        }
    }
}

impl ProbeHandle {
    pub fn get(&self) -> ProbeStatus {
        self.0.lock().clone()
    }
}

struct Prober {
    config: config::Probe,
    address: SocketAddr,
    /// The listener expects load balancers.
    is_proxied: bool,
    speaks_tls: bool,
    /// A token that nobody holds.
    made_up: String,
    engine: EngineHandle,
    status: ProbeHandle,
}

#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("probe.token_file {path} cannot be read: {error}")]
    Token { path: String, error: io::Error },
    #[error("its own listener at {address} cannot be reached: {error}")]
    Listener { address: SocketAddr, error: io::Error },
    #[error("no reply came from its own listener at {address}: {error}")]
    Reply { address: SocketAddr, error: io::Error },
    #[error("the reply was `{found}`, and should be {wanted}")]
    Refused { found: String, wanted: &'static str },
}

impl Prober {
    fn run(&self, ended: &Receiver<()>) {
        while ended.recv_timeout(self.config.interval) == Err(RecvTimeoutError::Timeout) {
            // Refusing its own probe is what a draining node should do.
            if !self.engine.is_draining() {
                self.note(self.probe());
            }
        }
    }

    /// How long it took.
    fn probe(&self) -> (Duration, Result<(), ProbeError>) {
        let began = Instant::now();
        let result = self.target_and_token().and_then(|(target, token)| {
            let status_line = self.ask(&target, &token)?;
            self.judge(status_line)
        });
        (began.elapsed(), result)
    }

    fn target_and_token(&self) -> Result<(String, String), ProbeError> {
        let (Some(device), Some(path)) = (&self.config.device, &self.config.token_file) else {
            return Ok((format!("{NOBODYS_UUID}:{}", self.config.port), self.made_up.clone()));
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
        let code = status_line.split(' ').nth(1).unwrap_or_default();
        let wanted = match (self.config.device.is_some(), code) {
            (true, "200") | (false, "407") => return Ok(()),
            // Nobody knows the token, nor whether the store does not know it either.
            (false, "503") if self.engine.trouble().is_none() => return Ok(()),
            (true, _) => "200",
            (false, _) => "407, since nobody holds the probe's token",
        };
        Err(ProbeError::Refused { found: status_line, wanted })
    }

    fn note(&self, (took, result): (Duration, Result<(), ProbeError>)) {
        let failure = result.err().map(|error| error.to_string());
        let mut status = self.status.0.lock();
        let was_failing = status.last.as_ref().is_some_and(|last| last.failure.is_some());
        match &failure {
            Some(why) if !was_failing => tracing::warn!("the probe fails: {why}"),
            None if was_failing => tracing::info!("the probe succeeds again"),
            _ => {}
        }
        status.failed += u64::from(failure.is_some());
        status.succeeded += u64::from(failure.is_none());
        let took_us = took.as_micros() as u64;
        status.last = Some(ProbeResult { at: UnixMillis::now(), took_us, failure });
    }
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

/// Of a load balancer that looks whether the node lives.
const PROXY_HEADER: &[u8] = b"PROXY UNKNOWN\r\n";

/// The credential is looked at first, so it does not matter whose this is.
const NOBODYS_UUID: &str = "00000000000000000000000000000000";

/// For each step of a probe; longer than the timeouts of a session are by default.
const PATIENCE: Duration = Duration::from_secs(15);

/// Of a status line.
const LINE_BYTES_MAX: usize = 256;
