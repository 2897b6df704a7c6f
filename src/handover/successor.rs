//! The old process's side of a hand-over, until the new process runs.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::channel::{Channel, ChannelError};
use super::message::{
    Abilities, FORMAT, HISTORY_BYTES_MAX, READY_TIME_MAX, Step, TOKEN_CELLS_MAX, ready_time,
};
use super::predecessor::{Terms, fault};
use super::program::Program;
use super::queries::PassedQueries;
use crate::engine::PassedListener;
use crate::sys::launcher::StartedProgram;
use crate::sys::packets::PacketSocket;

/// A new process that is starting. Dropped, it is ended.
pub struct Successor {
    channel: Channel,
    child: Ended,
    ready_by: Instant,
    version: String,
    format: u32,
    abilities: Abilities,
    takes_history: bool,
}

/// A new process that has taken over.
pub struct Committed {
    pub(super) channel: Channel,
    pub pid: u32,
    /// The process, for one that it can be told of whether it has ended.
    pub child: Option<StartedProgram>,
    pub version: String,
    /// Tunnels can move: both processes have the same format.
    pub moves_tunnels: bool,
    pub has_local_socket: bool,
}

/// The sockets that a new process gets copies of.
pub struct Offer {
    pub listeners: Vec<PassedListener>,
    pub admin: Option<(SocketAddr, OwnedFd)>,
    pub health: Option<(SocketAddr, OwnedFd)>,
    pub local_socket: Option<(PathBuf, OwnedFd)>,
    /// This process has rights to decide by, and the new one has to have some too.
    pub decides: bool,
    /// What it reads the store by.
    pub queries: PassedQueries,
}

/// Reason why nothing was handed over. The old process goes on as before.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    #[error("{path} cannot be started: {source}")]
    Start { path: String, source: io::Error },
    #[error("the new process refuses: {0}")]
    Refused(String),
    #[error("the new process ended while it was to {doing}; its log says why")]
    Ended { doing: &'static str },
    #[error("the new process did not {doing} within {} s, and was ended", READY_TIME_MAX.as_secs())]
    Late { doing: &'static str },
    #[error("the new process was to {doing}: {detail}")]
    Broken { doing: &'static str, detail: String },
    #[error("this process cannot hand over: {0}")]
    Here(String),
    #[error("the relay stops, and does not hand over")]
    Interrupted,
}

/// A program that is ended when it is dropped, unless it has taken over.
struct Ended(Option<StartedProgram>);

impl Successor {
    /// Starts `program` and waits until it has checked its configuration. `is_interrupted` ends the wait.
    pub fn start(program: &Program, is_interrupted: &dyn Fn() -> bool) -> Result<Self, HandoverError> {
        let here = |error: io::Error| HandoverError::Here(error.to_string());
        let (ours, theirs) = PacketSocket::pair().map_err(here)?;
        let channel = Channel::new(ours).map_err(here)?;
        let child = program
            .start(theirs)
            .map_err(|source| HandoverError::Start { path: program.path().display().to_string(), source })?;
        let mut successor = Self {
            channel,
            child: Ended(Some(child)),
            ready_by: Instant::now() + ready_time(),
            version: String::new(),
            format: 0,
            takes_history: false,
            abilities: Abilities::default(),
        };
        let (version, pid) = (crate::VERSION.to_owned(), std::process::id());
        let hello =
            Step::Hello { format: FORMAT, version, pid, takes_history: true, abilities: Abilities::ALL };
        successor.send(GREET, &hello)?;
        match successor.next(GREET, is_interrupted)? {
            Step::Hello { format, version, takes_history, abilities, .. } => {
                (successor.format, successor.version) = (format, version);
                (successor.takes_history, successor.abilities) = (takes_history, abilities);
            }
            other => return Err(unexpected(GREET, &other)),
        }
        match successor.next(CHECK, is_interrupted)? {
            Step::Checked => Ok(successor),
            other => Err(unexpected(CHECK, &other)),
        }
    }

    /// Sends copies of the sockets, and waits until the process is ready. Nothing is written here meanwhile. Returns
    /// whether it uses the local socket that was sent.
    pub fn make_ready(
        &mut self,
        offer: &Offer,
        is_interrupted: &dyn Fn() -> bool,
    ) -> Result<bool, HandoverError> {
        for PassedListener { configured, socket } in &offer.listeners {
            self.send_with(&Step::Listener { address: *configured }, socket)?;
        }
        if let Some((address, socket)) = &offer.admin {
            self.send_with(&Step::Admin { address: *address }, socket)?;
        }
        if let Some((address, socket)) = &offer.health {
            self.send_with(&Step::Health { address: *address }, socket)?;
        }
        if let Some((path, socket)) = &offer.local_socket {
            self.send_with(&Step::LocalSocket { path: path.clone() }, socket)?;
        }
        if self.abilities.compares_queries {
            offer.queries.steps().try_for_each(|step| self.send(RESTORE, &step))?;
        }
        self.send(RESTORE, &Step::Start { decides: offer.decides })?;
        fault("offered");
        match self.next(RESTORE, is_interrupted)? {
            Step::Ready { has_local_socket } => Ok(has_local_socket),
            other => Err(unexpected(RESTORE, &other)),
        }
    }

    /// Lets the process accept clients, which nobody does here any more. Where it fails the process is ended.
    pub fn commit(mut self, terms: Terms, has_local_socket: bool) -> Result<Committed, HandoverError> {
        self.ready_by = Instant::now() + RUNNING_TIME_MAX;
        let Terms { next_number, reloads, unknown_tokens, history } = terms;
        if self.takes_history {
            for points in in_messages(history) {
                self.send(ACCEPT, &Step::History { points })?;
            }
        }
        if self.abilities.counts_unknown_tokens {
            let parts = unknown_tokens.iter().flat_map(|counts| counts.parts(TOKEN_CELLS_MAX));
            parts
                .map(|counts| Step::UnknownTokens { counts })
                .try_for_each(|step| self.send(ACCEPT, &step))?;
        }
        self.send(ACCEPT, &Step::Commit { next_number, reloads })?;
        fault("commit-sent");
        match self.next(ACCEPT, &|| false)? {
            Step::Running => {}
            other => return Err(unexpected(ACCEPT, &other)),
        }
        let Some(child) = self.child.0.take() else { return Err(HandoverError::Ended { doing: ACCEPT }) };
        fault("running-heard");
        let (pid, moves_tunnels) = (child.id(), self.format == FORMAT);
        // Nothing tells of one with another format how it ends.
        let child = if moves_tunnels && self.abilities.says_farewell {
            Some(child)
        } else {
            child.leave();
            None
        };
        let (channel, version) = (self.channel, self.version);
        Ok(Committed { channel, pid, child, version, moves_tunnels, has_local_socket })
    }

    fn send(&self, doing: &'static str, step: &Step) -> Result<(), HandoverError> {
        self.channel.send_step(step, &[]).map_err(|error| broken(doing, &error))
    }

    fn send_with(&self, step: &Step, socket: &OwnedFd) -> Result<(), HandoverError> {
        self.channel.send_step(step, &[socket.as_fd()]).map_err(|error| broken(RESTORE, &error))
    }

    fn next(
        &mut self,
        doing: &'static str,
        is_interrupted: &dyn Fn() -> bool,
    ) -> Result<Step, HandoverError> {
        let mut was_interrupted = false;
        let next = self.channel.next_step(self.ready_by, || {
            was_interrupted = is_interrupted();
            was_interrupted
        });
        match next {
            Ok((Step::Refused { why }, _)) => Err(HandoverError::Refused(why)),
            Ok((step, _)) => Ok(step),
            Err(_) if was_interrupted => Err(HandoverError::Interrupted),
            Err(error) => Err(broken(doing, &error)),
        }
    }
}

impl Committed {
    /// Lets the new process report to the service manager, which knows it by now.
    pub fn make_main(&self) {
        if let Err(error) = self.channel.send_step(&Step::Main, &[]) {
            tracing::warn!("the new process cannot be told that it is the main one: {error}");
        }
        fault("main-sent");
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            child.kill();
        }
    }
}

/// Splits points so that a message has room for each part. A point that is too long for a message is left out.
fn in_messages(points: Vec<String>) -> Vec<Vec<String>> {
    let (mut parts, mut part, mut part_bytes) = (Vec::new(), Vec::new(), 0);
    for point in points {
        // In a message, each quote has a backslash.
        let bytes = point.len() + point.matches(['"', '\\']).count() + 3;
        if bytes > HISTORY_BYTES_MAX {
            continue;
        }
        if part_bytes + bytes > HISTORY_BYTES_MAX {
            parts.push(std::mem::take(&mut part));
            part_bytes = 0;
        }
        part_bytes += bytes;
        part.push(point);
    }
    parts.extend(Some(part).filter(|part| !part.is_empty()));
    parts
}

fn broken(doing: &'static str, error: &ChannelError) -> HandoverError {
    match error {
        ChannelError::Ended => HandoverError::Ended { doing },
        ChannelError::Late => HandoverError::Late { doing },
        other => HandoverError::Broken { doing, detail: other.to_string() },
    }
}

fn unexpected(doing: &'static str, step: &Step) -> HandoverError {
    HandoverError::Broken { doing, detail: format!("it sent {step:?}") }
}

const GREET: &str = "say hello";
const CHECK: &str = "check its configuration";
const RESTORE: &str = "restore the state and start its threads";
const ACCEPT: &str = "accept clients";

/// Time until it accepts clients once it may: they wait meanwhile.
const RUNNING_TIME_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::message::MESSAGE_BYTES_MAX;

    #[test]
    fn points_go_in_messages_that_have_room_for_them() {
        let point = |bytes: usize| "\"x".repeat(bytes / 2);
        let mut points: Vec<String> = (0..360).map(|number| point(300 + number % 900)).collect();
        let too_long = point(MESSAGE_BYTES_MAX);
        points.insert(7, too_long.clone());
        let parts = in_messages(points.clone());
        for points in &parts {
            let message = serde_json::to_vec(&Step::History { points: points.clone() }).unwrap();
            assert!(message.len() <= MESSAGE_BYTES_MAX, "{}", message.len());
        }
        points.retain(|point| *point != too_long);
        assert_eq!(parts.concat(), points);
        assert_eq!(in_messages(Vec::new()), Vec::<Vec<String>>::new());
    }
}
