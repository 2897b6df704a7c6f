//! One client connection: connects, opens its tunnel where there is a relay that wants it, then does its
//! job.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::Socket;

use super::Opening;
use super::backend::Role;
use super::poller::{Interest, Ready};
use super::socket::{Done, discard, read, write};
use super::tally::Tally;
use crate::works::Direction;

/// What a client does once its tunnel is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Job {
    Stream(Direction),
    /// Messages of so many bytes, each sent when it is due and the one before is answered.
    Exchange {
        bytes: usize,
    },
    /// Says one byte, hears it, and is done.
    Once,
}

pub struct Client {
    socket: Socket,
    job: Job,
    stage: Stage,
    /// When it began to connect.
    began_ns: u64,
    exchange: Exchange,
}

enum Stage {
    Connecting,
    /// The CONNECT is out; so much of the reply's head is in.
    Opening(Vec<u8>),
    /// The role is told, and on its way back.
    Greeting,
    Working,
}

/// Where an exchanging client stands.
#[derive(Default)]
struct Exchange {
    /// When the message that is out was due; `None` between two.
    out_since_ns: Option<u64>,
    /// Due and not out yet.
    due_ns: VecDeque<u64>,
    /// Which message is out, told in its first bytes.
    number: u64,
    unsent: usize,
    received: usize,
}

/// What a moment came to.
pub enum Step {
    Goes,
    /// The tunnel is open and has been used, and from now on it is to be told of this.
    Opened(Interest),
    /// A [`Job::Once`] is done.
    Done,
}

impl Client {
    pub fn new(socket: Socket, job: Job, now_ns: u64) -> Self {
        Self { socket, job, stage: Stage::Connecting, began_ns: now_ns, exchange: Exchange::default() }
    }

    /// Its tunnel is open and has been used.
    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Working)
    }

    /// Does what can be done now; what arrives is counted in `tally`.
    pub fn act(
        &mut self,
        ready: Ready,
        opening: &OpeningBytes,
        scratch: &mut [u8],
        tally: &mut Tally,
    ) -> Result<Step, String> {
        match &mut self.stage {
            Stage::Connecting if ready.writable => self.begin(opening),
            Stage::Connecting => Ok(Step::Goes),
            Stage::Opening(_) => self.open(scratch),
            Stage::Greeting => self.hear_greeting(scratch, tally),
            Stage::Working => self.work(ready, scratch, tally).map_err(|error| broke(&error)),
        }
    }

    /// A message was due at `due_ns`: it is sent now, or once the ones before are answered. `false` where
    /// too many wait already.
    pub fn owe(&mut self, due_ns: u64, scratch: &mut [u8]) -> Result<bool, String> {
        if self.exchange.due_ns.len() >= DUE_MAX {
            return Ok(false);
        }
        self.exchange.due_ns.push_back(due_ns);
        self.send_next(scratch).map_err(|error| broke(&error))?;
        Ok(true)
    }

    fn begin(&mut self, opening: &OpeningBytes) -> Result<Step, String> {
        if let Ok(Some(error)) = self.socket.take_error() {
            return Err(format!("a client could not connect: {error}"));
        }
        match opening.request.as_slice() {
            [] => self.greet(),
            request => {
                send_small(&self.socket, request)?;
                self.stage = Stage::Opening(Vec::new());
                Ok(Step::Goes)
            }
        }
    }

    fn open(&mut self, scratch: &mut [u8]) -> Result<Step, String> {
        let Stage::Opening(head) = &mut self.stage else { return Ok(Step::Goes) };
        // No byte of the tunnel comes before ours, so all that arrives is head.
        match read(&self.socket, scratch).map_err(|error| broke(&error))? {
            Done::Bytes(len) => head.extend_from_slice(&scratch[..len]),
            Done::WouldBlock => return Ok(Step::Goes),
            Done::Ended => return Err(format!("closed in the reply: {:?}", String::from_utf8_lossy(head))),
        }
        if !head.ends_with(b"\r\n\r\n") {
            return Ok(Step::Goes);
        }
        if !head.starts_with(b"HTTP/1.1 200 ") {
            let head = String::from_utf8_lossy(head);
            return Err(format!("the relay said {:?}", head.lines().next().unwrap_or_default()));
        }
        self.greet()
    }

    fn greet(&mut self) -> Result<Step, String> {
        let role = match self.job {
            Job::Stream(Direction::Up) => Role::Sink,
            Job::Stream(Direction::Down) => Role::Source,
            Job::Stream(Direction::Both) => Role::SourceAndSink,
            Job::Exchange { .. } | Job::Once => Role::Echo,
        };
        send_small(&self.socket, &[role.byte()])?;
        let interest = match role {
            Role::Echo => {
                self.stage = Stage::Greeting;
                return Ok(Step::Goes);
            }
            Role::Source => Interest::Readable,
            Role::Sink => Interest::Writable,
            Role::SourceAndSink => Interest::ReadableAndWritable,
        };
        self.stage = Stage::Working;
        Ok(Step::Opened(interest))
    }

    fn hear_greeting(&mut self, scratch: &mut [u8], tally: &mut Tally) -> Result<Step, String> {
        match read(&self.socket, &mut scratch[..2]).map_err(|error| broke(&error))? {
            Done::Bytes(1) if scratch[0] == Role::Echo.byte() => {}
            Done::Bytes(_) => return Err("the first byte back was not the one sent".to_owned()),
            Done::WouldBlock => return Ok(Step::Goes),
            Done::Ended => return Err("closed before its first byte came back".to_owned()),
        }
        self.stage = Stage::Working;
        if self.job == Job::Once {
            tally.exchanged(self.began_ns);
            return Ok(Step::Done);
        }
        Ok(Step::Opened(Interest::Edges))
    }

    fn work(&mut self, ready: Ready, scratch: &mut [u8], tally: &mut Tally) -> io::Result<Step> {
        match self.job {
            Job::Stream(direction) => {
                if ready.readable && direction != Direction::Up {
                    match discard(&self.socket, scratch)? {
                        Done::Bytes(len) => tally.arrived(len as u64),
                        Done::WouldBlock => {}
                        Done::Ended => return Err(io::ErrorKind::UnexpectedEof.into()),
                    }
                }
                if ready.writable && direction != Direction::Down {
                    write(&self.socket, scratch)?;
                }
            }
            Job::Exchange { bytes } => self.exchange(bytes, scratch, tally)?,
            // Nothing comes any more, unless the relay ends it.
            Job::Once => {
                if let Done::Ended = read(&self.socket, &mut scratch[..1])? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        Ok(Step::Goes)
    }

    fn exchange(&mut self, bytes: usize, scratch: &mut [u8], tally: &mut Tally) -> io::Result<()> {
        self.send_rest(scratch)?;
        loop {
            let len = match read(&self.socket, scratch)? {
                Done::Bytes(len) => len,
                Done::WouldBlock => return Ok(()),
                Done::Ended => return Err(io::ErrorKind::UnexpectedEof.into()),
            };
            let Some(due_ns) = self.exchange.out_since_ns else {
                return Err(io::Error::other("an answer that nobody asked for"));
            };
            let number = self.exchange.number.to_le_bytes();
            if self.exchange.received == 0 && len >= number.len() && scratch[..number.len()] != number {
                return Err(io::Error::other("the answer to another message"));
            }
            self.exchange.received += len;
            if self.exchange.received > bytes {
                return Err(io::Error::other("more came back than was sent"));
            }
            if self.exchange.received < bytes {
                continue;
            }
            let answered_ns = tally.exchanged(due_ns);
            self.exchange.out_since_ns = None;
            if tally.is_closed_loop {
                self.exchange.due_ns.push_back(answered_ns);
            }
            return self.send_next(scratch);
        }
    }

    /// Sends the message that is due first, unless one is out.
    fn send_next(&mut self, scratch: &mut [u8]) -> io::Result<()> {
        let Job::Exchange { bytes } = self.job else { return Ok(()) };
        if self.exchange.out_since_ns.is_some() {
            return Ok(());
        }
        let Some(due_ns) = self.exchange.due_ns.pop_front() else { return Ok(()) };
        self.exchange.out_since_ns = Some(due_ns);
        self.exchange.number += 1;
        self.exchange.received = 0;
        self.exchange.unsent = bytes;
        self.send_rest(scratch)
    }

    fn send_rest(&mut self, scratch: &mut [u8]) -> io::Result<()> {
        let Job::Exchange { bytes } = self.job else { return Ok(()) };
        let number = self.exchange.number.to_le_bytes();
        let named = number.len().min(bytes);
        scratch[..named].copy_from_slice(&number[..named]);
        while self.exchange.unsent > 0 {
            match write(&self.socket, &scratch[bytes - self.exchange.unsent..bytes])? {
                Done::Bytes(sent) => self.exchange.unsent -= sent,
                Done::WouldBlock | Done::Ended => break,
            }
        }
        Ok(())
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What a client sends to have its tunnel opened; nothing where there is none to open.
pub struct OpeningBytes {
    request: Vec<u8>,
}

impl OpeningBytes {
    pub fn new(opening: &Opening, backend_port: u16) -> Self {
        let request = match opening {
            Opening::Plain => Vec::new(),
            Opening::Connect { uuid, token } => format!(
                "CONNECT {uuid}.balena:{backend_port} HTTP/1.1\r\nProxy-Authorization: Bearer {token}\r\n\r\n"
            )
            .into_bytes(),
        };
        Self { request }
    }
}

/// Sends what a new connection always has room for.
fn send_small(socket: &Socket, bytes: &[u8]) -> Result<(), String> {
    match write(socket, bytes) {
        Ok(Done::Bytes(sent)) if sent == bytes.len() => Ok(()),
        Ok(_) => Err("a new connection had no room".to_owned()),
        Err(error) => Err(broke(&error)),
    }
}

fn broke(error: &io::Error) -> String {
    format!("a connection broke: {error}")
}

/// Messages that may be due on one connection and not out. At 1,000 connections this is minutes of a rate
/// that nobody keeps up with.
const DUE_MAX: usize = 10_000;
