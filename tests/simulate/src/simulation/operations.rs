//! The ring of the simulated kernel: operations are submitted, happen late and in any order, and complete.

use std::net::SocketAddr;
use std::rc::Weak;

use super::connection::{Dial, take_front};
use super::world::{Descriptor, World};
use crate::engine::user_data::{Purpose, UserData};
use crate::sys::backlog::SubmissionQueue;
use crate::sys::buffers::BUFFER_BYTES;
use crate::sys::ring::RECEIVE_BYTES_MAX;

/// An entry that the ring has not given to the kernel yet. It names descriptors by their numbers.
#[derive(Clone)]
pub struct Submission {
    pub user_data: UserData,
    pub operation: Operation,
    /// The address that it points to. It must live until the kernel has the entry.
    pub address: Option<Weak<SocketAddr>>,
}

/// An operation, and what it is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    Receive { socket: Named, is_stream: bool },
    Connect { socket: Named },
    Poll { socket: Named, mask: i16 },
    Fill { socket: Named, pipe: usize, bytes: usize },
    Drain { pipe: usize, socket: Named, bytes: usize },
    Accept { is_multishot: bool },
    Wake,
    Cancel { target: u64 },
}

/// A connection as an entry names it: by the number of a descriptor, which may be another's by then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Named {
    pub descriptor: usize,
    pub connection: usize,
}

/// An operation that the kernel has.
pub struct InFlight {
    user_data: UserData,
    operation: Operation,
    is_cancelled: bool,
    /// Bytes that a stream receive has delivered.
    delivered: usize,
    /// The outcome of a dial: an errno, or 0; `None` where no answer ever comes.
    dial: Option<i32>,
}

/// A completion in the queue.
pub struct Completed {
    pub user_data: UserData,
    pub result: i32,
    pub more: bool,
    pub buffer: Option<(u16, Vec<u8>)>,
    /// The connection that an accept returned, and its descriptor.
    pub accepted: Option<(usize, usize)>,
}

impl Operation {
    fn connection(self) -> Option<usize> {
        match self {
            Self::Receive { socket, .. }
            | Self::Connect { socket }
            | Self::Poll { socket, .. }
            | Self::Fill { socket, .. }
            | Self::Drain { socket, .. } => Some(socket.connection),
            Self::Accept { .. } | Self::Wake | Self::Cancel { .. } => None,
        }
    }

    fn pipe(self) -> Option<usize> {
        match self {
            Self::Fill { pipe, .. } | Self::Drain { pipe, .. } => Some(pipe),
            _ => None,
        }
    }
}

impl Completed {
    fn of(user_data: UserData, result: i32, more: bool) -> Self {
        Self { user_data, result, more, buffer: None, accepted: None }
    }
}

impl World {
    /// Gives the kernel what was queued, or some of it. Returns whether it took any.
    pub fn submit_queued(&mut self) -> bool {
        let count = self.submissions.len();
        let taken = if self.has_fault(1) { self.tape.roll(count + 1) } else { count };
        for _ in 0..taken {
            let Some(submission) = self.submissions.pop_front() else { break };
            self.submit(submission);
        }
        taken > 0
    }

    fn submit(&mut self, Submission { user_data, operation, address }: Submission) {
        if address.is_some_and(|address| address.upgrade().is_none()) {
            return self.fail(|| format!("the address of {user_data:?} was freed before the kernel had it"));
        }
        if let Operation::Cancel { target } = operation {
            return self.cancel(user_data, target);
        }
        if let Some(named) = operation.named()
            && self.descriptors.get(named.descriptor).copied().flatten()
                != Some(Descriptor::Connection(named.connection))
        {
            self.fail(|| format!("{user_data:?} was queued for a descriptor that was closed since"));
            return;
        }
        if let Some(pipe) = operation.pipe() {
            if !self.pipes[pipe].is_open {
                self.fail(|| format!("{user_data:?} was queued for a pipe that was closed since"));
                return;
            }
            self.pipes[pipe].operations += 1;
        }
        let is_twice = |other: &InFlight| other.user_data == user_data;
        if matches!(user_data, UserData::Session { .. } | UserData::Accept { .. })
            && self.in_flight.iter().any(is_twice)
        {
            self.fail(|| format!("{user_data:?} is in flight twice"));
        }
        let mut dial = Some(0);
        if let Operation::Connect { socket } = operation {
            self.connections[socket.connection].dial = Dial::Underway;
            if self.tape.chance(self.plan.refusal_times) {
                let errors = [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ETIMEDOUT, libc::EADDRNOTAVAIL];
                dial = Some(errors[self.tape.roll(4)]);
            } else if self.tape.chance(2 * self.plan.silence_times) {
                dial = None;
            }
        }
        if let Some(id) = operation.connection() {
            self.connections[id].operations += 1;
        }
        self.in_flight.push(InFlight { user_data, operation, is_cancelled: false, delivered: 0, dial });
    }

    fn cancel(&mut self, user_data: UserData, target: u64) {
        let found = self.in_flight.iter_mut().find(|each| each.user_data.into_bits() == target);
        let result = match found {
            Some(found) => {
                found.is_cancelled = true;
                // The kernel cannot stop a splice that a worker thread of it has begun.
                if found.operation.pipe().is_some() { -libc::EALREADY } else { 0 }
            }
            None => -libc::ENOENT,
        };
        self.complete(Completed::of(user_data, result, false));
    }

    fn complete(&mut self, mut completed: Completed) {
        if self.completed.len() < self.plan.completions_max && self.overflown.is_empty() {
            self.completed.push_back(completed);
        } else {
            // The kernel keeps it aside, and ends what goes on.
            completed.more = false;
            self.overflown.push_back(completed);
        }
    }

    /// Makes room in the queue for what the kernel kept aside.
    pub fn refill_completed(&mut self) {
        while self.completed.len() < self.plan.completions_max {
            let Some(completed) = self.overflown.pop_front() else { return };
            self.completed.push_back(completed);
        }
    }

    /// The ring is closed, with all that it has.
    pub fn close_ring(&mut self) {
        self.submissions.clear();
        for each in std::mem::take(&mut self.in_flight) {
            if let Some(pipe) = each.operation.pipe() {
                self.pipes[pipe].operations -= 1;
            }
            if let Some(id) = each.operation.connection() {
                self.connections[id].operations -= 1;
                self.let_go(id);
            }
        }
        let left: Vec<Completed> = self.completed.drain(..).chain(self.overflown.drain(..)).collect();
        for (id, descriptor) in left.into_iter().filter_map(|each| each.accepted) {
            self.close_connection(descriptor, id);
        }
        self.free_buffers = (0..self.plan.buffers).collect();
    }

    /// Completes an operation, or a step of one, that can complete by now. Returns whether there was one.
    pub fn complete_some(&mut self) -> bool {
        let count = self.in_flight.len();
        let first = self.tape.roll(count.max(1));
        (0..count).any(|each| self.complete_at((first + each) % count))
    }

    fn complete_at(&mut self, place: usize) -> bool {
        let each = &self.in_flight[place];
        let (user_data, operation, is_cancelled) = (each.user_data, each.operation, each.is_cancelled);
        // A cancel may take effect late: what is there may still be delivered first.
        let is_stopped = is_cancelled && operation.pipe().is_none() && self.tape.roll(3) < 2;
        let outcome = match is_stopped {
            true => Some(Completed::of(user_data, -libc::ECANCELED, false)),
            false => self.happen(place),
        };
        let outcome = match (outcome, is_cancelled) {
            (None, true) if operation.pipe().is_none() => Completed::of(user_data, -libc::ECANCELED, false),
            (None, true) => Completed::of(user_data, -libc::EAGAIN, false),
            (None, false) => return false,
            (Some(outcome), _) => outcome,
        };
        let is_full = self.completed.len() >= self.plan.completions_max || !self.overflown.is_empty();
        let is_over = !outcome.more || is_full;
        self.record(name(user_data, operation), user_data.into_bits() as usize, outcome.result.into());
        self.complete(outcome);
        if is_over {
            self.in_flight.remove(place);
            if let Some(pipe) = operation.pipe() {
                self.pipes[pipe].operations -= 1;
            }
            if let Some(id) = operation.connection() {
                self.connections[id].operations -= 1;
                self.let_go(id);
            }
        }
        true
    }

    /// The outcome of the operation at `place`, if there is one by now.
    fn happen(&mut self, place: usize) -> Option<Completed> {
        let InFlight { user_data, operation, delivered, dial, .. } = self.in_flight[place];
        let end = |result| Some(Completed::of(user_data, result, false));
        match operation {
            Operation::Receive { socket, is_stream } => {
                self.receive(place, socket.connection, is_stream, delivered)
            }
            Operation::Connect { socket } => {
                let connection = &mut self.connections[socket.connection];
                match dial? {
                    0 => connection.dial = Dial::Open,
                    errno => {
                        connection.dial = Dial::Failed(errno);
                        connection.is_dead = true;
                    }
                }
                end(-dial?)
            }
            Operation::Poll { socket, mask } => {
                let ready = self.connections[socket.connection].readiness();
                let seen = ready & (mask | libc::POLLERR | libc::POLLHUP);
                if seen == 0 { None } else { end(seen.into()) }
            }
            Operation::Fill { socket, pipe, bytes } => {
                if self.tape.chance(self.plan.fault_times) {
                    return end([-libc::EAGAIN, -libc::EINTR][self.tape.roll(2)]);
                }
                let result = self.splice_in(socket.connection, pipe, bytes);
                end(result.map_or_else(|errno| -errno, |moved| moved as i32))
            }
            Operation::Drain { pipe, socket, bytes } => {
                if self.tape.chance(self.plan.fault_times) {
                    return end([-libc::EAGAIN, -libc::EINTR][self.tape.roll(2)]);
                }
                let result = self.splice_out(pipe, socket.connection, bytes);
                end(result.map_or_else(|errno| -errno, |moved| moved as i32))
            }
            Operation::Accept { is_multishot } => self.accept(user_data, is_multishot),
            Operation::Wake => self.is_woken().then(|| {
                let more = !self.tape.chance(self.plan.fault_times);
                Completed::of(user_data, libc::POLLIN.into(), more)
            }),
            Operation::Cancel { .. } => None,
        }
    }

    fn receive(&mut self, place: usize, id: usize, is_stream: bool, delivered: usize) -> Option<Completed> {
        let user_data = self.in_flight[place].user_data;
        let end = |result| Some(Completed::of(user_data, result, false));
        let connection = &mut self.connections[id];
        if connection.arrived.is_empty() {
            return connection
                .end_of_read()
                .and_then(|outcome| end(outcome.map_or_else(|errno| -errno, |()| 0)));
        }
        if self.tape.chance(4 * self.plan.fault_times) {
            return end([-libc::EINTR, -libc::EAGAIN][self.tape.roll(2)]);
        }
        let Some(at) = self.free_buffers.len().checked_sub(1) else { return end(-libc::ENOBUFS) };
        let buffer = self.free_buffers.swap_remove(self.tape.roll(at + 1));
        let mut most = BUFFER_BYTES.min(self.connections[id].arrived.len());
        if self.tape.chance(self.plan.fault_times) {
            most = 1 + self.tape.roll(most);
        }
        let bytes = self.connections[id].read(most);
        let total = delivered + bytes.len();
        self.in_flight[place].delivered = total;
        let is_counted = is_stream && self.plan.has_counted_receives;
        let more = is_counted && total < RECEIVE_BYTES_MAX && !self.tape.chance(4 * self.plan.fault_times);
        let result = bytes.len() as i32;
        Some(Completed { user_data, result, more, buffer: Some((buffer, bytes)), accepted: None })
    }

    fn accept(&mut self, user_data: UserData, is_multishot: bool) -> Option<Completed> {
        let &id = self.backlog.front()?;
        if self.tape.chance(2 * self.plan.refusal_times) {
            let errors = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::ECONNABORTED];
            let errno = errors[self.tape.roll(5)];
            return Some(Completed::of(user_data, -errno, false));
        }
        let descriptor = match self.open(Descriptor::Connection(id)) {
            Ok(descriptor) => descriptor,
            Err(errno) => return Some(Completed::of(user_data, -errno, false)),
        };
        self.backlog.pop_front();
        self.connections[id].descriptors = 1;
        let more = is_multishot && !self.tape.chance(self.plan.fault_times);
        let accepted = Some((id, descriptor));
        Some(Completed { user_data, result: descriptor as i32, more, buffer: None, accepted })
    }

    /// Moves bytes from a connection into a pipe.
    pub fn splice_in(&mut self, id: usize, pipe: usize, most: usize) -> Result<usize, i32> {
        let connection = &mut self.connections[id];
        if connection.arrived.is_empty() {
            return connection.end_of_read().map_or(Err(libc::EAGAIN), |outcome| outcome.map(|()| 0));
        }
        let room = most.saturating_sub(self.pipes[pipe].bytes.len());
        if room == 0 {
            return Err(libc::EAGAIN);
        }
        let most = self.tape.most_of(room.min(self.connections[id].arrived.len()));
        let bytes = self.connections[id].read(most);
        self.pipes[pipe].bytes.extend(&bytes);
        Ok(bytes.len())
    }

    /// Moves bytes from a pipe into a connection.
    pub fn splice_out(&mut self, pipe: usize, id: usize, most: usize) -> Result<usize, i32> {
        let now_us = self.now_us;
        if let Some(errno) = self.error_of_send(id) {
            return Err(errno);
        }
        let most = most.min(self.connections[id].room()).min(self.pipes[pipe].bytes.len());
        if most == 0 {
            return Err(libc::EAGAIN);
        }
        let count = self.tape.most_of(most);
        let bytes = take_front(&mut self.pipes[pipe].bytes, count);
        self.connections[id].send(&bytes, now_us);
        Ok(count)
    }

    /// The error of a send, if it fails. Nothing may be sent behind a FIN.
    pub fn error_of_send(&mut self, id: usize) -> Option<i32> {
        if self.connections[id].fin && !self.connections[id].is_dead {
            self.fail(|| format!("the relay sends behind its own FIN on connection {id}"));
        }
        self.connections[id].error_of_send()
    }
}

/// The submission queue.
impl SubmissionQueue<Submission> for World {
    fn try_push(&mut self, entry: &Submission) -> bool {
        let has_room = self.submissions.len() < self.plan.submissions_max;
        if has_room {
            self.submissions.push_back(entry.clone());
        }
        has_room
    }

    fn is_empty(&mut self) -> bool {
        self.submissions.is_empty()
    }
}

impl Operation {
    fn named(self) -> Option<Named> {
        match self {
            Self::Receive { socket, .. }
            | Self::Connect { socket }
            | Self::Poll { socket, .. }
            | Self::Fill { socket, .. }
            | Self::Drain { socket, .. } => Some(socket),
            Self::Accept { .. } | Self::Wake | Self::Cancel { .. } => None,
        }
    }
}

/// The name of a completion in the trace.
fn name(user_data: UserData, operation: Operation) -> &'static str {
    match (user_data, operation) {
        (UserData::Session { purpose: Purpose::Head, .. }, _) => "head",
        (_, Operation::Receive { .. }) => "received",
        (_, Operation::Connect { .. }) => "dialled",
        (_, Operation::Poll { .. }) => "ready",
        (_, Operation::Fill { .. }) => "filled",
        (_, Operation::Drain { .. }) => "drained",
        (_, Operation::Accept { .. }) => "accepted",
        (_, Operation::Wake) => "woken",
        (_, Operation::Cancel { .. }) => "cancelled",
    }
}
