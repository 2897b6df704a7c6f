//! Asks the network whether devices are where they were: one bare TCP connect to each of a few.
//!
//! Connected and refused are both answers. An answer from an address that is another device's, by the own tables, an
//! explicit word or the newest answer of the store, is not the device's, and counts neither when it comes nor later. Nothing
//! waits here: connects are begun, and polled again with the next read.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::network_answer::NetworkAnswer;
use crate::authz::{Device, DeviceId};
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

/// A device, and the address where it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::control) struct ProbeTarget {
    pub device: DeviceId,
    pub address: IpAddr,
}

/// Connects that were begun together.
struct NetworkProbe {
    of: HashSet<DeviceId>,
    waiting: Vec<(Socket, ProbeTarget)>,
    answered: Vec<ProbeTarget>,
    silent: Vec<ProbeTarget>,
    until: Instant,
}

struct NetworkOutcome {
    of: HashSet<DeviceId>,
    answered: Vec<ProbeTarget>,
    silent: Vec<ProbeTarget>,
    at: Instant,
}

/// Asks each of `addresses`, at most [`ASKED_MAX`] of them, and waits for the answers. Returns whether each has
/// answered, in their order. An address that is no device's by `vpn` is not asked, and silent.
pub(in crate::control) fn ask_each(addresses: &[IpAddr], config: &Config) -> Vec<bool> {
    let (guard, vpn) = (&config.authz.guard, &config.vpn);
    let begin = |address: &IpAddr| {
        let address = SocketAddr::new(address.to_canonical(), guard.probe_port);
        vpn.allows(address.ip()).then(|| connect(address, vpn.interface.as_deref()).ok())?
    };
    let begun: Vec<Option<Begun>> = addresses.iter().take(ASKED_MAX).map(begin).collect();
    let until = Instant::now() + guard.probe_time;
    loop {
        let states = begun.iter().map(|begun| match begun {
            Some(Begun::Answered) => State::Answered,
            Some(Begun::Waiting(socket)) => state(socket),
            None => State::Failed,
        });
        let states: Vec<State> = states.collect();
        let is_over = !states.iter().any(|state| matches!(state, State::Waiting)) || Instant::now() >= until;
        if is_over {
            return states.into_iter().map(|state| matches!(state, State::Answered)).collect();
        }
        std::thread::sleep(ASK_LOOK);
    }
}

impl ProbeTarget {
    /// The device's last place; `None` where its row has no address.
    pub(in crate::control) fn of(device: &Device) -> Option<Self> {
        Some(Self { device: device.id, address: device.address? })
    }
}

impl Prober {
    pub(in crate::control) fn new(config: &Config) -> Self {
        let config::GuardConfig { probe_port, probe_time, .. } = config.authz.guard;
        let settings = Settings { port: probe_port, time: probe_time, vpn: config.vpn.clone() };
        Self { settings, running: None, last: None }
    }

    /// Returns the network's answer about `devices`, which were at `targets`; begins to ask where there is none. Use one
    /// prober for each group of changes. `is_its_own` says of a target whether its address is still no other device's.
    pub(in crate::control) fn poll(
        &mut self,
        devices: &HashSet<DeviceId>,
        targets: &[ProbeTarget],
        is_its_own: impl Fn(&ProbeTarget) -> bool,
    ) -> NetworkAnswer {
        self.poll_running(&is_its_own);
        if !self.last.as_ref().is_some_and(|last| last.counts_for(devices)) && self.running.is_none() {
            self.running = Some(NetworkProbe::begin(devices, targets, &self.settings, &is_its_own));
            self.poll_running(&is_its_own);
        }
        match &self.last {
            Some(last) if last.counts_for(devices) => self.use_up(last.answer(is_its_own)),
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

    fn poll_running(&mut self, is_its_own: impl Fn(&ProbeTarget) -> bool) {
        if self.running.as_mut().is_some_and(|probe| probe.is_over(is_its_own))
            && let Some(probe) = self.running.take()
        {
            // Nobody may have polled for long.
            let at = Instant::now().min(probe.until);
            let NetworkProbe { of, waiting, answered, mut silent, .. } = probe;
            silent.extend(waiting.into_iter().map(|(_, target)| target));
            self.last = Some(NetworkOutcome { of, answered, silent, at });
        }
    }
}

impl NetworkOutcome {
    fn counts_for(&self, devices: &HashSet<DeviceId>) -> bool {
        self.at.elapsed() < OUTCOME_COUNTS && devices.is_subset(&self.of)
    }

    /// The answer by what is known of the addresses now.
    fn answer(&self, is_its_own: impl Fn(&ProbeTarget) -> bool) -> NetworkAnswer {
        let [answered, silent] = [&self.answered, &self.silent]
            .map(|targets| targets.iter().filter(|one| is_its_own(one)).count());
        match answered + silent {
            0 => NetworkAnswer::Unasked,
            sampled if answered * 2 > sampled => NetworkAnswer::Answers { answered, sampled },
            _ => NetworkAnswer::Silent,
        }
    }
}

impl NetworkProbe {
    fn begin(
        devices: &HashSet<DeviceId>,
        targets: &[ProbeTarget],
        settings: &Settings,
        is_its_own: impl Fn(&ProbeTarget) -> bool,
    ) -> Self {
        let mut probe = Self {
            of: devices.clone(),
            waiting: Vec::new(),
            answered: Vec::new(),
            silent: Vec::new(),
            until: Instant::now() + settings.time,
        };
        let may_be_asked = |target: &&ProbeTarget| settings.vpn.allows(target.address) && is_its_own(target);
        let allowed: Vec<ProbeTarget> = targets.iter().filter(may_be_asked).copied().collect();
        // Spread over all of them, beginning anywhere.
        let step = allowed.len().div_ceil(SAMPLE_MAX).max(1);
        let start = getrandom::u32().unwrap_or(0) as usize % step;
        for target in allowed.into_iter().skip(start).step_by(step) {
            let address = SocketAddr::new(target.address.to_canonical(), settings.port);
            match connect(address, settings.vpn.interface.as_deref()) {
                Ok(Begun::Waiting(socket)) => probe.waiting.push((socket, target)),
                Ok(Begun::Answered) => probe.answered.push(target),
                // No route, no descriptor: this one says nothing for the store's being wrong.
                Err(_silent) => probe.silent.push(target),
            }
        }
        probe
    }

    /// Polls the connects. True once no more answers are needed, or the time is up.
    fn is_over(&mut self, is_its_own: impl Fn(&ProbeTarget) -> bool) -> bool {
        let (answered, silent) = (&mut self.answered, &mut self.silent);
        self.waiting.retain(|(socket, target)| match state(socket) {
            State::Waiting => true,
            State::Answered => {
                answered.push(*target);
                false
            }
            State::Failed => {
                silent.push(*target);
                false
            }
        });
        let sampled = self.waiting.len() + answered.len() + silent.len();
        let most = answered.iter().filter(|target| is_its_own(target)).count() * 2 > sampled;
        most || self.waiting.is_empty() || Instant::now() >= self.until
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

/// Devices that one call of [`ask_each`] asks. Each takes a descriptor for as long as it does not answer.
pub(in crate::control) const ASKED_MAX: usize = 256;

/// Pause between two looks at the answers of [`ask_each`].
const ASK_LOOK: Duration = Duration::from_millis(5);

/// Time that an answer counts. If the store is wrong for longer, the network is asked again.
const OUTCOME_COUNTS: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A prober, and devices at addresses where everything answers.
    fn answering(devices: u8) -> (Prober, HashSet<DeviceId>, Vec<ProbeTarget>, TcpListener) {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let mut config = Config { vpn: Vpn::loopback(), ..Config::default() };
        config.authz.guard.probe_port = listener.local_addr().unwrap().port();
        let target =
            |id: u8| ProbeTarget { device: DeviceId(id.into()), address: IpAddr::from([127, 0, 0, id]) };
        let targets: Vec<ProbeTarget> = (1..=devices).map(target).collect();
        let ids = targets.iter().map(|target| target.device).collect();
        (Prober::new(&config), ids, targets, listener)
    }

    fn poll(
        prober: &mut Prober,
        devices: &HashSet<DeviceId>,
        targets: &[ProbeTarget],
        is_its_own: impl Fn(&ProbeTarget) -> bool,
    ) -> NetworkAnswer {
        loop {
            match prober.poll(devices, targets, &is_its_own) {
                NetworkAnswer::Asked => std::thread::sleep(Duration::from_millis(1)),
                answer => return answer,
            }
        }
    }

    #[test]
    fn an_answer_counts_only_from_an_address_that_no_other_device_has() {
        let (mut prober, devices, targets, _listener) = answering(4);
        let answer = poll(&mut prober, &devices, &targets, |target| target.device.0 > 1);
        assert!(matches!(answer, NetworkAnswer::Answers { sampled: 3, .. }), "{answer:?}");
        prober.forget();
        assert_eq!(poll(&mut prober, &devices, &targets, |_| false), NetworkAnswer::Unasked);
    }

    #[test]
    fn an_answer_that_has_come_does_not_count_once_another_device_has_the_address() {
        let (mut prober, devices, targets, _listener) = answering(4);
        let answer = poll(&mut prober, &devices, &targets, |_| true);
        assert!(matches!(answer, NetworkAnswer::Answers { .. }), "{answer:?}");
        let answer = poll(&mut prober, &devices, &targets, |_| false);
        assert_eq!(answer, NetworkAnswer::Unasked, "all four are others' now");
    }
}
