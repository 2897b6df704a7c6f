//! The new process after it runs: goes on with tunnels that come, counts the sessions of the old process within the
//! limits, and decides about their rights.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::channel::{Channel, ChannelError, Message, encoded};
use super::message::{NUMBERS_MAX, Traffic, VerdictFields};
use super::other_process::{OtherProcess, Request, Shared, Waiting};
use super::predecessor::{Predecessor, fault};
use super::tunnels::ComingTunnel;
use crate::authz::{Authority, Decision, Query, Refusal, UnixMillis};
use crate::engine::{EngineHandle, HeldPlace, MovedTunnel, SessionRow};
use crate::sys::service_thread::{ServiceThread, StopSignal};

/// The thread; dropping it ends the connection with the old process.
pub struct ArrivalsThread {
    _thread: ServiceThread,
}

impl ArrivalsThread {
    /// Starts to take in what comes from `predecessor`; nothing does where its format of tunnels is another one.
    pub fn start(
        predecessor: Predecessor,
        engine: EngineHandle,
        authority: Arc<Authority>,
        other: &OtherProcess,
    ) -> io::Result<Self> {
        if !predecessor.moves_tunnels {
            tracing::warn!(
                old = predecessor.version,
                "the process before has another format of tunnels: its sessions stay with it, are not on this one's \
                 lists, and do not count here"
            );
            return Ok(Self { _thread: ServiceThread::default() });
        }
        let Some(shared) = other.shared() else { return Ok(Self { _thread: ServiceThread::default() }) };
        let arrivals = Arrivals {
            old_pid: predecessor.pid,
            channel: predecessor.channel,
            listeners: engine.listener_addresses(),
            engine,
            authority,
            shared,
            waiting: Waiting::default(),
            held: HashMap::new(),
            coming: Vec::new(),
            batch: None,
            outgoing: VecDeque::new(),
            tunnels: 0,
            judge_at: Instant::now(),
        };
        let thread = ServiceThread::start("hand-over", move |stop| arrivals.run(&stop))?;
        Ok(Self { _thread: thread })
    }
}

struct Arrivals {
    old_pid: u32,
    channel: Channel,
    listeners: Vec<SocketAddr>,
    engine: EngineHandle,
    authority: Arc<Authority>,
    shared: Arc<Shared>,
    waiting: Waiting,
    /// The sessions of the old process.
    held: HashMap<u64, HeldSession>,
    /// Tunnels of the batch that is coming. Nobody moves their bytes.
    coming: Vec<ComingTunnel>,
    /// A batch that has come whole. It is the old process's until that one has let go of it.
    batch: Option<(u64, Vec<MovedTunnel>)>,
    outgoing: VecDeque<Vec<u8>>,
    /// Tunnels that have come.
    tunnels: u64,
    judge_at: Instant,
}

/// A session of the old process.
struct HeldSession {
    place: HeldPlace,
    has_right: bool,
    /// The client's network, while its head is awaited.
    awaited_from: Option<IpNet>,
    query: Option<Query>,
    /// The decision that the old process knows.
    told: Option<VerdictFields>,
    /// Time from which its right has been refused without a revocation.
    refused_since: Option<Instant>,
}

impl Arrivals {
    fn run(mut self, stop: &StopSignal) {
        let ended = loop {
            if stop.is_stopped() {
                let _gone_already = self.channel.send(&Traffic::Farewell, &[]);
                return;
            }
            if let Err(error) = self.turn() {
                break error;
            }
        };
        self.shared.close();
        match ended {
            ChannelError::Ended if self.held.is_empty() && self.batch.is_none() => {
                tracing::info!(
                    tunnels = self.tunnels,
                    "the process before has ended; all that moved is here"
                );
            }
            error => tracing::warn!(
                sessions = self.held.len(),
                "the process before cannot be reached any more, and its sessions are not known here: {error}"
            ),
        }
        self.finish_last_batch();
    }

    fn turn(&mut self) -> Result<(), ChannelError> {
        let wake = self.shared.wake.as_fd();
        let has_come = self.channel.wait(Some(wake.as_fd()), !self.outgoing.is_empty(), LOOK_EVERY)?;
        self.shared.wake.clear();
        if has_come {
            self.take_next()?;
        }
        self.send_requests()?;
        self.judge()?;
        while let Some(message) = self.outgoing.front() {
            if !self.channel.send_now(message)? {
                break;
            }
            self.outgoing.pop_front();
        }
        Ok(())
    }

    fn take_next(&mut self) -> Result<(), ChannelError> {
        let Message::Traffic(traffic, descriptors) = self.channel.receive()? else {
            return Err(ChannelError::NotUnderstood("a step after its time".to_owned()));
        };
        match traffic {
            Traffic::Tunnel(fields) => {
                self.coming.push(ComingTunnel::new(*fields, descriptors, &self.listeners)?);
            }
            Traffic::Unsent { direction, bytes } => {
                let tunnel = self.coming.last_mut();
                let none = || ChannelError::NotUnderstood("bytes without a tunnel".to_owned());
                tunnel.ok_or_else(none)?.add(direction, &bytes)?;
            }
            Traffic::BatchEnd(batch) => {
                let tunnels = std::mem::take(&mut self.coming);
                let whole = tunnels.into_iter().map(ComingTunnel::finish).collect::<Result<_, _>>()?;
                fault("batch");
                self.batch = Some((batch, whole));
                self.send(&Traffic::Got(batch))?;
            }
            Traffic::Yours(batch) => match self.batch.take() {
                Some((number, tunnels)) if number == batch => self.go_on(tunnels),
                _ => return Err(ChannelError::NotUnderstood("a batch that did not come".to_owned())),
            },
            Traffic::Held(rows) => rows.into_iter().for_each(|row| self.hold(&row)),
            Traffic::Gone(sessions) => {
                for session in sessions {
                    self.held.remove(&session);
                }
                self.count_held();
            }
            Traffic::Rows { request, rows, is_last } => self.waiting.add_rows(request, rows, is_last),
            Traffic::Ended { request, was_found } => self.waiting.finish_end(request, was_found),
            _ => return Err(ChannelError::NotUnderstood("a message of the other side".to_owned())),
        }
        Ok(())
    }

    /// The tunnels are this process's: their bytes move again.
    fn go_on(&mut self, mut tunnels: Vec<MovedTunnel>) {
        for tunnel in &mut tunnels {
            let held = self.held.remove(&tunnel.facts.session).filter(|held| held.has_right);
            tunnel.place = held.map(|held| held.place);
        }
        let count = tunnels.len() as u64;
        if let Err(error) = self.engine.adopt(tunnels) {
            tracing::error!(count, "tunnels that came from the process before are lost: {error}");
        }
        self.tunnels += count;
        self.count_held();
        fault("adopted");
    }

    /// Counts a session of the old process within the limits.
    fn hold(&mut self, row: &SessionRow) {
        let facts = &row.facts;
        let right = facts.principal.zip(facts.device);
        let is_same =
            |held: &HeldSession| held.has_right == right.is_some() && held.awaited_from == row.awaited_from;
        if !self.held.get(&facts.session).is_some_and(is_same) {
            let place = self.engine.hold_place(right, row.awaited_from);
            let held = HeldSession {
                place,
                has_right: right.is_some(),
                awaited_from: row.awaited_from,
                query: row.query,
                told: None,
                refused_since: None,
            };
            self.held.insert(facts.session, held);
        }
        self.count_held();
    }

    fn count_held(&self) {
        self.shared.sessions.store(self.held.len() as u64, Ordering::Relaxed);
    }

    /// Decides about the rights of the old process's sessions, by what is in force here.
    fn judge(&mut self) -> Result<(), ChannelError> {
        let is_due =
            self.shared.is_recheck_due.swap(false, Ordering::AcqRel) || Instant::now() >= self.judge_at;
        if !is_due || !self.shared.decides.load(Ordering::Acquire) {
            return Ok(());
        }
        self.judge_at = Instant::now() + LOOK_EVERY;
        let view = self.authority.pin();
        let now = self.authority.time(UnixMillis::now());
        let mut verdicts = Vec::new();
        for (session, held) in &mut self.held {
            let Some(query) = held.query.filter(|_| held.has_right) else { continue };
            let verdict = match view.decide(&query, now) {
                Decision::Allow(route) => VerdictFields::Stands(route.expires_at),
                // The place of a device says nothing about the right to reach it.
                Decision::Refuse(refusal) if refusal.is_of_location() => match view.right(&query, now) {
                    Some(right) => VerdictFields::Stands(right.expires_at),
                    None => continue,
                },
                Decision::Refuse(refusal) => VerdictFields::Ended(refusal),
                Decision::Undecided(_) => continue,
            };
            let is_due = match verdict {
                VerdictFields::Ended(refusal) => held.is_due(refusal),
                VerdictFields::Stands(_) => {
                    held.refused_since = None;
                    true
                }
            };
            if is_due && held.told != Some(verdict) {
                held.told = Some(verdict);
                verdicts.push((*session, verdict));
            }
        }
        drop(view);
        for part in verdicts.chunks(NUMBERS_MAX) {
            self.send(&Traffic::Judged(part.to_vec()))?;
        }
        Ok(())
    }

    fn send_requests(&mut self) -> Result<(), ChannelError> {
        for request in self.shared.drain() {
            let traffic = match request {
                Request::Judge(mut verdicts) => {
                    verdicts.retain(|(session, _)| self.held.contains_key(session));
                    if verdicts.is_empty() {
                        continue;
                    }
                    Traffic::Judged(verdicts)
                }
                Request::List(answer) => Traffic::List { request: self.waiting.add_list(answer) },
                Request::End(session, answer) => {
                    Traffic::End { request: self.waiting.add_end(answer), session }
                }
            };
            self.send(&traffic)?;
        }
        Ok(())
    }

    fn send(&mut self, traffic: &Traffic) -> Result<(), ChannelError> {
        self.outgoing.push_back(encoded(traffic)?);
        Ok(())
    }

    /// Goes on with a batch that the old process could not let go of in time, once that process is gone. As long as it
    /// is there, the tunnels are its own.
    fn finish_last_batch(&mut self) {
        let Some((_, tunnels)) = self.batch.take() else { return };
        let give_up_at = Instant::now() + PARENT_GONE_MAX;
        while nix::unistd::getppid().as_raw() == self.old_pid as i32 {
            if Instant::now() >= give_up_at {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.go_on(tunnels);
    }
}

impl HeldSession {
    /// Returns whether the end of its right counts by now. One that nothing explains may be a mistake of what is in
    /// force, as for the sessions of this process.
    fn is_due(&mut self, refusal: Refusal) -> bool {
        let since = *self.refused_since.get_or_insert_with(Instant::now);
        refusal.is_revocation() || since.elapsed() >= REPRIEVE
    }
}

/// Time between two looks at whether the thread is to stop, and at rights that end by the clock.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Time that a session outlives its right where no revocation explains the end; as in the engine.
const REPRIEVE: Duration = Duration::from_secs(5);

/// Time in which a process that ends becomes known as gone.
const PARENT_GONE_MAX: Duration = Duration::from_secs(1);
