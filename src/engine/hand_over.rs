//! The engine's part in a hand-over, for the thread that runs it: listeners, the accepting of clients, and tunnels that
//! leave and come. These calls wait for the engine threads, for a bounded time.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use ipnet::IpNet;
use nix::sys::stat::fstat;

use super::EngineHandle;
use super::limits::HeldPlace;
use super::moved_tunnel::MovedTunnel;
use super::requests::{Accepting, EngineBusy, SESSION_NUMBER_BITS, Verdict, WorkerRequest, thread_of};
use super::shared::ThreadShared;
use super::token_rate_limit::TokenCounts;
use crate::authz::{DeviceId, PrincipalId, UnixMillis};

/// A copy of a listener, for another process.
#[derive(Debug)]
pub struct PassedListener {
    /// Its address in the configuration; the port may be 0.
    pub configured: SocketAddr,
    pub socket: OwnedFd,
}

impl EngineHandle {
    /// Copies of all listening sockets. One that several threads share is there once.
    pub fn listeners(&self) -> Result<Vec<PassedListener>, EngineBusy> {
        let answers = self.ask_all(|answer| WorkerRequest::Listeners { answer })?;
        let config = self.shared.config();
        let (mut listeners, mut seen) = (Vec::new(), HashSet::new());
        for answer in answers {
            for passed in answer.recv_timeout(ANSWER_TIME_MAX).map_err(|_| EngineBusy)? {
                let is_new = fstat(&passed.socket).is_ok_and(|socket| seen.insert(socket.st_ino));
                let Some(settings) = config.listen.get(passed.place).filter(|_| is_new) else { continue };
                listeners.push(PassedListener { configured: settings.address, socket: passed.socket });
            }
        }
        Ok(listeners)
    }

    /// The places of the listeners in `listen`, by their configured addresses.
    pub fn listener_addresses(&self) -> Vec<SocketAddr> {
        self.shared.config().listen.iter().map(|listen| listen.address).collect()
    }

    /// Begins or stops to accept clients, on all threads. After a stop no accept is in flight: who comes waits in the
    /// listeners' queues.
    pub fn accept_clients(&self, mode: Accepting) -> Result<(), EngineBusy> {
        // A thread that begins anew goes on as the others.
        self.shared.starts_paused.store(mode != Accepting::Yes, Ordering::Relaxed);
        let answers = self.ask_all(|answer| WorkerRequest::Accepting { mode, answer })?;
        answers
            .into_iter()
            .try_for_each(|answer| answer.recv_timeout(ANSWER_TIME_MAX).map_err(|_| EngineBusy))
    }

    pub fn thread_count(&self) -> usize {
        self.shared.threads.len()
    }

    /// Takes up to `tunnels_max` tunnels out of a thread; none where all were seen. Each is at rest.
    pub fn capture(&self, thread: usize, tunnels_max: usize) -> Result<Vec<MovedTunnel>, EngineBusy> {
        let (answer, captured) = bounded(1);
        let request = WorkerRequest::Capture { tunnels_max, answer };
        self.shared.threads[thread].requests.send_patiently(request)?;
        captured.recv_timeout(ANSWER_TIME_MAX).map_err(|_| EngineBusy)
    }

    /// Goes on with tunnels that were captured, here or in another process.
    pub fn adopt(&self, tunnels: Vec<MovedTunnel>) -> Result<(), EngineBusy> {
        let count = self.thread_count();
        let mut by_thread: Vec<Vec<MovedTunnel>> = (0..count).map(|_| Vec::new()).collect();
        for tunnel in tunnels {
            by_thread[thread_of(tunnel.facts.session) % count].push(tunnel);
        }
        let mut adopted = Vec::new();
        for (thread, tunnels) in self.shared.threads.iter().zip(by_thread) {
            if tunnels.is_empty() {
                continue;
            }
            let (answer, done) = bounded(1);
            thread.requests.send_patiently(WorkerRequest::Adopt { tunnels, answer })?;
            adopted.push(done);
        }
        adopted.into_iter().try_for_each(|done| done.recv_timeout(ANSWER_TIME_MAX).map_err(|_| EngineBusy))
    }

    /// Passes on what another process has decided about the rights of sessions.
    pub fn judge(&self, verdicts: impl IntoIterator<Item = (u64, Verdict)>) -> Result<(), EngineBusy> {
        let count = self.thread_count();
        let mut by_thread: Vec<HashMap<u64, Verdict>> = vec![HashMap::new(); count];
        for (session, verdict) in verdicts {
            by_thread[thread_of(session) % count].insert(session, verdict);
        }
        let threads = self.shared.threads.iter().zip(by_thread);
        threads.filter(|(_, verdicts)| !verdicts.is_empty()).try_for_each(|(thread, verdicts)| {
            thread.requests.send_patiently(WorkerRequest::Judge { verdicts })
        })
    }

    /// Counts a session of another process within the limits, as long as the place is held. `network` awaits its head.
    pub fn hold_place(&self, tunnel: Option<(PrincipalId, DeviceId)>, network: Option<IpNet>) -> HeldPlace {
        self.shared.limits.hold(tunnel, network)
    }

    /// The unknown tokens of late, for a process that takes over.
    pub fn unknown_tokens(&self) -> TokenCounts {
        self.shared.token_rate_limit.counts(UnixMillis::now())
    }

    /// Goes on counting where another process has stopped. For an engine that accepts nobody yet.
    pub fn count_unknown_tokens(&self, counts: &TokenCounts) {
        self.shared.token_rate_limit.go_on_from(counts);
    }

    /// A number above those of all sessions so far, without the part for the thread.
    pub fn next_number(&self) -> u64 {
        let begun = |thread: &ThreadShared| thread.counters.sessions.accepted.get();
        let most = self.shared.threads.iter().map(begun).max().unwrap_or(0);
        self.shared.numbers_from.load(Ordering::Relaxed) + most + NUMBERS_SPARE
    }

    /// Gives sessions numbers above `number` from now on.
    pub fn begin_numbers_at(&self, number: u64) {
        let number = number & ((1 << SESSION_NUMBER_BITS) - 1);
        self.shared.numbers_from.store(number, Ordering::Relaxed);
    }

    fn ask_all<T>(
        &self,
        request: impl Fn(crossbeam::channel::Sender<T>) -> WorkerRequest,
    ) -> Result<Vec<Receiver<T>>, EngineBusy> {
        let ask = |thread: &ThreadShared| {
            let (answer, answered) = bounded(1);
            thread.requests.send_patiently(request(answer))?;
            Ok(answered)
        };
        self.shared.threads.iter().map(ask).collect()
    }
}

/// Time in which an engine thread answers. It needs some turns.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);

/// Numbers that are left free for clients that are accepted already and have no session yet.
const NUMBERS_SPARE: u64 = 10_000;
