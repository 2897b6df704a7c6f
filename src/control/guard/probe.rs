//! Asks the network whether devices are where they were: one bare TCP connect to each of a few.
//!
//! Connected and refused are both answers. Nothing waits here: connects are begun, and looked at again with
//! the next read.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::location::Unlocated;
use super::network_answer::NetworkAnswer;
use crate::authz::DeviceId;
use crate::config::{self, Config, Vpn};

/// Probes, one after the other.
pub(in crate::control) struct Prober {
    settings: Settings,
    running: Option<NetworkProbe>,
    last: Option<NetworkOutcome>,
}

struct Settings {
    port: u16,
    time: Duration,
    vpn: Vpn,
}

/// Connects that were begun together.
struct NetworkProbe {
    of: HashSet<DeviceId>,
    waiting: Vec<Socket>,
    answered: usize,
    sampled: usize,
    until: Instant,
}

struct NetworkOutcome {
    of: HashSet<DeviceId>,
    network: NetworkAnswer,
    at: Instant,
}

impl Prober {
    pub(in crate::control) fn new(config: &Config) -> Self {
        let config::GuardConfig { probe_port, probe_time, .. } = config.authz.guard;
        let settings = Settings { port: probe_port, time: probe_time, vpn: config.vpn.clone() };
        Self { settings, running: None, last: None }
    }

    /// Returns the answer about `unlocated`; begins to ask where there is none.
    pub(in crate::control) fn poll(&mut self, unlocated: &Unlocated) -> NetworkAnswer {
        self.poll_running();
        if !self.last.as_ref().is_some_and(|last| last.counts_for(unlocated)) && self.running.is_none() {
            self.running = Some(NetworkProbe::begin(unlocated, &self.settings));
            self.poll_running();
        }
        match &self.last {
            Some(last) if last.counts_for(unlocated) => self.use_up(last.network),
            _ => NetworkAnswer::Asked,
        }
    }

    /// Nothing is lost now: what is said of devices that came back is not to count when they are lost again.
    pub(in crate::control) fn forget(&mut self) {
        self.running = None;
        self.last = None;
    }

    /// Silence counts once: devices that are published as gone and lost again have been back in between.
    fn use_up(&mut self, network: NetworkAnswer) -> NetworkAnswer {
        if network == NetworkAnswer::Silent {
            self.last = None;
        }
        network
    }

    /// An answer is waited for.
    pub(in crate::control) fn is_asking(&self) -> bool {
        self.running.is_some()
    }

    fn poll_running(&mut self) {
        if let Some(probe) = &mut self.running
            && let Some(network) = probe.outcome()
        {
            let of = std::mem::take(&mut probe.of);
            // Nobody may have looked for long.
            let at = Instant::now().min(probe.until);
            self.last = Some(NetworkOutcome { of, network, at });
            self.running = None;
        }
    }
}

impl NetworkOutcome {
    fn counts_for(&self, unlocated: &Unlocated) -> bool {
        self.at.elapsed() < OUTCOME_COUNTS && unlocated.devices.is_subset(&self.of)
    }
}

impl NetworkProbe {
    fn begin(unlocated: &Unlocated, settings: &Settings) -> Self {
        let mut probe = Self {
            of: unlocated.devices.clone(),
            waiting: Vec::new(),
            answered: 0,
            sampled: 0,
            until: Instant::now() + settings.time,
        };
        let allowed: Vec<IpAddr> =
            unlocated.addresses.iter().copied().filter(|address| settings.vpn.allows(*address)).collect();
        // Spread over all of them, beginning anywhere.
        let step = allowed.len().div_ceil(SAMPLE_MAX).max(1);
        let start = getrandom::u32().unwrap_or(0) as usize % step;
        for address in allowed.into_iter().skip(start).step_by(step) {
            probe.sampled += 1;
            let address = SocketAddr::new(address.to_canonical(), settings.port);
            match connect(address, settings.vpn.interface.as_deref()) {
                Ok(Begun::Waiting(socket)) => probe.waiting.push(socket),
                Ok(Begun::Answered) => probe.answered += 1,
                // No route, no descriptor: this one says nothing for the store's being wrong.
                Err(_silent) => {}
            }
        }
        probe
    }

    /// `None` while it is open.
    fn outcome(&mut self) -> Option<NetworkAnswer> {
        let answered = &mut self.answered;
        self.waiting.retain(|socket| match state(socket) {
            State::Waiting => true,
            State::Answered => {
                *answered += 1;
                false
            }
            State::Failed => false,
        });
        let most = *answered * 2 > self.sampled;
        let is_over = most || self.waiting.is_empty() || Instant::now() >= self.until;
        let (answered, sampled) = (*answered, self.sampled);
        is_over.then_some(if most {
            NetworkAnswer::Answers { answered, sampled }
        } else {
            NetworkAnswer::Silent
        })
    }
}

enum Begun {
    Waiting(Socket),
    Answered,
}

enum State {
    Waiting,
    Answered,
    Failed,
}

fn connect(address: SocketAddr, interface: Option<&str>) -> io::Result<Begun> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if let Some(interface) = interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    match socket.connect(&address.into()) {
        Ok(()) => Ok(Begun::Answered),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(Begun::Waiting(socket)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Begun::Answered),
        Err(error) => Err(error),
    }
}

fn state(socket: &Socket) -> State {
    match socket.take_error() {
        Ok(Some(error)) if error.kind() == io::ErrorKind::ConnectionRefused => State::Answered,
        Ok(None) if socket.peer_addr().is_ok() => State::Answered,
        Ok(None) => State::Waiting,
        Ok(Some(_)) | Err(_) => State::Failed,
    }
}

/// Devices that are asked at once.
const SAMPLE_MAX: usize = 20;

/// Time that an answer counts. If the store is wrong for longer, the network is asked again.
const OUTCOME_COUNTS: Duration = Duration::from_secs(10);
