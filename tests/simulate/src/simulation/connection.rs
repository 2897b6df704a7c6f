//! One TCP connection between the relay and a client or a device, as the relay's kernel has it.

use std::collections::VecDeque;

use super::remote::Remote;

/// See the module.
pub struct Connection {
    /// The tunnel that it is for.
    pub tunnel: usize,
    pub side: Side,
    pub dial: Dial,
    /// Bytes that the remote end has sent and that have not arrived.
    pub wire: VecDeque<u8>,
    /// Bytes that have arrived and that the relay has not read.
    pub arrived: VecDeque<u8>,
    pub remote_fin: Progress,
    pub remote_reset: Progress,
    /// Bytes that the relay has sent and the remote end has not read.
    pub sent: VecDeque<u8>,
    /// The relay has sent its FIN behind them.
    pub fin: bool,
    /// The relay has reset the connection.
    pub reset: bool,
    /// The error that the next call gets.
    pub error: Option<i32>,
    /// The connection is no more: the remote end has reset it, or the dial has failed.
    pub is_dead: bool,
    /// Bytes that fit into each direction.
    pub room_max: usize,
    /// Descriptors of the relay for it, and operations of the ring on it: it closes with the last of them.
    pub descriptors: usize,
    pub operations: usize,
    pub resets_on_close: bool,
    /// The relay has let go of it.
    pub is_closed: bool,
    /// Bytes that the relay has sent and read in all.
    pub sent_bytes: u64,
    pub read_bytes: u64,
    /// Time at which a reset of the remote end arrived.
    pub reset_at_us: Option<u64>,
    /// Time of the last byte that the relay sent.
    pub moved_at_us: u64,
    pub remote: Remote,
}

/// The end of a tunnel that a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Client,
    Device,
}

/// The progress of the relay's connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dial {
    /// A client's, or nothing was asked yet.
    None,
    Underway,
    Open,
    Failed(i32),
}

/// How far a segment has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    NotSent,
    Underway,
    Arrived,
}

impl Connection {
    pub fn new(tunnel: usize, side: Side, room_max: usize, remote: Remote) -> Self {
        Self {
            tunnel,
            side,
            dial: Dial::None,
            wire: VecDeque::new(),
            arrived: VecDeque::new(),
            remote_fin: Progress::NotSent,
            remote_reset: Progress::NotSent,
            sent: VecDeque::new(),
            fin: false,
            reset: false,
            error: None,
            is_dead: false,
            room_max,
            descriptors: 0,
            operations: 0,
            resets_on_close: false,
            is_closed: false,
            sent_bytes: 0,
            read_bytes: 0,
            reset_at_us: None,
            moved_at_us: 0,
            remote,
        }
    }

    /// Bytes that the relay can send now.
    pub fn room(&self) -> usize {
        if self.is_dead { 0 } else { self.room_max.saturating_sub(self.sent.len()) }
    }

    pub fn has_ended(&self) -> bool {
        self.remote_fin == Progress::Arrived || self.is_dead
    }

    /// Readiness as poll(2) has it.
    pub fn readiness(&self) -> i16 {
        let mut ready = 0;
        if !self.arrived.is_empty() || self.has_ended() || self.error.is_some() {
            ready |= libc::POLLIN;
        }
        if self.has_ended() {
            ready |= libc::POLLRDHUP;
        }
        // Linux reports room once a third of the buffer is free.
        let is_dialled = !matches!(self.dial, Dial::Underway);
        if is_dialled && (self.is_dead || self.fin || 3 * self.sent.len() <= 2 * self.room_max) {
            ready |= libc::POLLOUT;
        }
        if self.error.is_some() {
            ready |= libc::POLLERR;
        }
        if self.is_dead || (self.fin && self.remote_fin == Progress::Arrived) {
            ready |= libc::POLLHUP;
        }
        ready
    }

    /// The result of a read where no byte is there: an error, the end, or `None` where it would block.
    pub fn end_of_read(&mut self) -> Option<Result<(), i32>> {
        if let Some(errno) = self.error.take() {
            return Some(Err(errno));
        }
        self.has_ended().then_some(Ok(()))
    }

    /// The error of a send, if it fails.
    pub fn error_of_send(&mut self) -> Option<i32> {
        if let Some(errno) = self.error.take() {
            return Some(errno);
        }
        (self.is_dead || self.fin).then_some(libc::EPIPE)
    }

    /// Takes up to `max` bytes that have arrived.
    pub fn read(&mut self, max: usize) -> Vec<u8> {
        let bytes = take_front(&mut self.arrived, max);
        self.read_bytes += bytes.len() as u64;
        bytes
    }

    pub fn send(&mut self, bytes: &[u8], now_us: u64) {
        self.sent.extend(bytes);
        self.sent_bytes += bytes.len() as u64;
        self.moved_at_us = now_us;
    }

    /// The relay has no descriptor of it any more, and no operation is in flight.
    pub fn is_unused(&self) -> bool {
        self.descriptors == 0 && self.operations == 0
    }

    /// The relay's kernel lets go of the connection. Returns the number of bytes that may still reach the remote end.
    pub fn close(&mut self) -> Closed {
        self.is_closed = true;
        if self.is_dead || self.dial == Dial::Underway {
            self.is_dead = true;
            return Closed::Nothing;
        }
        // tcp_close: unread bytes, and SO_LINGER of zero, make a reset.
        if self.resets_on_close || !self.arrived.is_empty() {
            self.reset = true;
            return Closed::Reset;
        }
        self.fin = true;
        Closed::Fin
    }
}

/// What a close has sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closed {
    Nothing,
    Fin,
    Reset,
}

/// Removes up to `max` bytes from the front. Copies slices: byte by byte, most of the time would go into this.
pub fn take_front(queue: &mut VecDeque<u8>, max: usize) -> Vec<u8> {
    let count = max.min(queue.len());
    let (front, back) = queue.as_slices();
    let from_front = count.min(front.len());
    let bytes = [&front[..from_front], &back[..count - from_front]].concat();
    queue.drain(..count);
    bytes
}
