//! The new process's side of a hand-over, until it runs.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::channel::{Channel, ChannelError};
use super::message::{Abilities, FORMAT, POINTS_MAX, READY_TIME_MAX, Step, ready_time};
use super::program::VARIABLE;
use super::queries::PassedQueries;
use super::reloads::PassedReloads;
use crate::engine::TokenCounts;
use crate::sys::packets::PacketSocket;

/// The running process that hands over to this one.
pub struct Predecessor {
    pub(super) channel: Channel,
    pub pid: u32,
    pub version: String,
    pub(super) moves_tunnels: bool,
}

/// The sockets of the old process.
#[derive(Default)]
pub struct TakenOver {
    /// With their addresses in the old process's configuration.
    pub listeners: Vec<(SocketAddr, OwnedFd)>,
    pub admin: Option<(SocketAddr, OwnedFd)>,
    pub health: Option<(SocketAddr, OwnedFd)>,
    pub local_socket: Option<(PathBuf, OwnedFd)>,
    /// The old process has rights to decide by.
    pub decides: bool,
    /// What the old process reads the store by, where it is able to say so.
    pub queries: Option<PassedQueries>,
}

/// What a new process gets to know when it may accept clients.
pub struct Terms {
    /// Numbers of sessions from here on are free.
    pub next_number: u64,
    pub reloads: PassedReloads,
    /// Unknown tokens that clients have shown of late.
    pub unknown_tokens: Vec<TokenCounts>,
    /// The status page's last hour; empty from a version that does not pass it.
    pub history: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum PredecessorError {
    #[error("the connection with the process that hands over cannot be used: {0}")]
    Connection(io::Error),
    #[error("the process that hands over does not go on: {0}")]
    Broken(String),
}

impl Predecessor {
    /// The process that has started this one to hand over to it; `None` where nobody has.
    pub fn of_this_process() -> Result<Option<Self>, PredecessorError> {
        if std::env::var_os(VARIABLE).is_none_or(|value| value != "stdin") {
            return Ok(None);
        }
        let failed = PredecessorError::Connection;
        let socket = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
        let nothing = File::open("/dev/null").map_err(failed)?;
        nix::unistd::dup2_stdin(&nothing).map_err(|error| failed(error.into()))?;
        let channel = Channel::new(PacketSocket::new(socket)).map_err(failed)?;
        let mut predecessor = Self { channel, pid: 0, version: String::new(), moves_tunnels: false };
        match predecessor.next()? {
            (Step::Hello { format: theirs, version, pid, .. }, _) => {
                (predecessor.pid, predecessor.version) = (pid, version);
                predecessor.moves_tunnels = theirs == format();
            }
            (other, _) => return Err(unexpected(&other)),
        }
        let (version, pid) = (crate::VERSION.to_owned(), std::process::id());
        let hello = Step::Hello {
            format: format(),
            version,
            pid,
            takes_history: takes_history(),
            abilities: Abilities::ALL,
        };
        predecessor.send(&hello)?;
        Ok(Some(predecessor))
    }

    /// Says why this process cannot take over. The old one then goes on.
    pub fn refuse(&self, why: &str) {
        let why = why.chars().take(WHY_LETTERS_MAX).collect();
        // It may be gone.
        let _gone = self.send(&Step::Refused { why });
    }

    /// Says that the configuration is right, and waits for the sockets. Then this process may write.
    pub fn take_over(&mut self) -> Result<TakenOver, PredecessorError> {
        fault("checking");
        self.send(&Step::Checked)?;
        let mut taken = TakenOver::default();
        loop {
            let (step, mut descriptors) = self.next()?;
            match (step, descriptors.pop()) {
                (Step::Listener { address }, Some(socket)) => taken.listeners.push((address, socket)),
                (Step::Admin { address }, Some(socket)) => taken.admin = Some((address, socket)),
                (Step::Health { address }, Some(socket)) => taken.health = Some((address, socket)),
                (Step::LocalSocket { path }, Some(socket)) => taken.local_socket = Some((path, socket)),
                (Step::Schema { name }, _) => taken.queries = Some(PassedQueries::of_schema(name)),
                (Step::Query { relation, text }, _) => {
                    let queries = taken.queries.as_mut();
                    let is_known = queries.is_some_and(|queries| queries.add(&relation, &text));
                    if !is_known {
                        return Err(PredecessorError::Broken(format!("it sent a query for {relation}")));
                    }
                }
                (Step::Start { decides }, _) => {
                    taken.decides = decides;
                    break;
                }
                (other, _) => return Err(unexpected(&other)),
            }
        }
        fault("restoring");
        Ok(taken)
    }

    /// Says that all threads run, and waits until this process may accept clients.
    pub fn wait_for_commit(&mut self, has_local_socket: bool) -> Result<Terms, PredecessorError> {
        fault("ready");
        self.send(&Step::Ready { has_local_socket })?;
        let (mut history, mut unknown_tokens) = (Vec::new(), Vec::new());
        loop {
            match self.next()? {
                (Step::History { points }, _) => {
                    history.extend(points);
                    history.truncate(POINTS_MAX);
                }
                (Step::UnknownTokens { counts }, _) => unknown_tokens.push(counts),
                (Step::Commit { next_number, reloads }, _) => {
                    fault("committed");
                    return Ok(Terms { next_number, reloads, unknown_tokens, history });
                }
                (other, _) => return Err(unexpected(&other)),
            }
        }
    }

    /// Says that clients are accepted, and waits until the service manager knows this process.
    pub fn wait_for_main(&mut self) {
        let told = self.send(&Step::Running);
        fault("accepting");
        match told.and_then(|()| self.next_within(MAIN_TIME_MAX)) {
            Ok((Step::Main, _)) => {}
            Ok((other, _)) => tracing::warn!("{}", unexpected(&other)),
            Err(error) => tracing::warn!("{error}; this process serves all the same"),
        }
        fault("running");
    }

    /// Time in which this process must have rights to decide by: less than it has to get ready.
    pub fn rights_time() -> Duration {
        ready_time() * 3 / 4
    }

    fn send(&self, step: &Step) -> Result<(), PredecessorError> {
        self.channel.send_step(step, &[]).map_err(|error| broken(&error))
    }

    fn next(&mut self) -> Result<(Step, Vec<OwnedFd>), PredecessorError> {
        self.next_within(READY_TIME_MAX)
    }

    fn next_within(&mut self, time: Duration) -> Result<(Step, Vec<OwnedFd>), PredecessorError> {
        self.channel.next_step(Instant::now() + time, || false).map_err(|error| broken(&error))
    }
}

fn broken(error: &ChannelError) -> PredecessorError {
    PredecessorError::Broken(error.to_string())
}

fn unexpected(step: &Step) -> PredecessorError {
    PredecessorError::Broken(format!("it sent {step:?}"))
}

/// The format of a process that takes over. Tests of a debug build may have it claim another one.
fn format() -> u32 {
    #[cfg(debug_assertions)]
    if let Some(claimed) = std::env::var("SLUICEGATE_TEST_FORMAT").ok().and_then(|text| text.parse().ok()) {
        return claimed;
    }
    FORMAT
}

/// Tests of a debug build may have it be as a version that does not take the last hour.
fn takes_history() -> bool {
    !(cfg!(debug_assertions) && std::env::var_os("SLUICEGATE_TEST_NO_HISTORY").is_some())
}

/// A place where tests have a new process hang or die: `SLUICEGATE_TEST_FAULT=hang:ready`. Compiled for debug builds
/// alone.
pub(super) fn fault(place: &str) {
    #[cfg(debug_assertions)]
    if let Ok(wanted) = std::env::var("SLUICEGATE_TEST_FAULT") {
        match wanted.split_once(':') {
            Some(("hang", at)) if at == place => std::thread::sleep(Duration::from_secs(3600)),
            Some(("die", at)) if at == place => std::process::abort(),
            _ => {}
        }
    }
    #[cfg(not(debug_assertions))]
    let _nothing_to_do = place;
}

/// Time that the old process has to tell the service manager. It needs a moment.
const MAIN_TIME_MAX: Duration = Duration::from_secs(3);

/// Letters of a reason that are sent.
const WHY_LETTERS_MAX: usize = 4 * 1024;
