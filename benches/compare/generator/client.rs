//! One client connection: connects, opens its tunnel where there is a relay that wants it, then does its
//! job.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::Socket;

use super::Opening;
use super::backend::Role;
use super::buffers::Buffers;
use super::exchange::Exchange;
use super::poller::{Interest, Ready};
use super::socket::{Done, broke, discard, read, write};
use super::tally::Tally;
use crate::works::Direction;

/// The work of a client once its tunnel is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Job {
    Stream(Direction),
    /// Messages of so many bytes.
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
    /// Time at which it began to connect.
    began_ns: u64,
    /// The state of a [`Job::Exchange`]; unused in other jobs.
    pub exchange: Exchange,
}

enum Stage {
    Connecting,
    /// The CONNECT is out; so much of the reply's head is in.
    Opening(Vec<u8>),
    /// The role is told, and on its way back.
    Greeting,
    Working,
}

/// The result of one readiness event.
pub enum Step {
    Goes,
    /// The tunnel is open and has been used, and from now on it is to be told of this.
    Opened(Interest),
    /// A [`Job::Once`] is done.
    Done,
}

impl Client {
    /// The `number`th client.
    pub fn new(socket: Socket, number: u64, job: Job, now_ns: u64) -> Self {
        let bytes = if let Job::Exchange { bytes } = job { bytes } else { 0 };
        let exchange = Exchange::new(bytes, number);
        Self { socket, job, stage: Stage::Connecting, began_ns: now_ns, exchange }
    }

    /// Does what can be done now; what arrives is counted in `tally`.
    pub fn act(
        &mut self,
        ready: Ready,
        opening: &OpeningBytes,
        buffers: &mut Buffers,
        tally: &mut Tally,
    ) -> Result<Step, String> {
        match &mut self.stage {
            Stage::Connecting if ready.writable => self.begin(opening),
            Stage::Connecting => Ok(Step::Goes),
            Stage::Opening(_) => self.open(buffers),
            Stage::Greeting => self.hear_greeting(buffers, tally),
            Stage::Working => self.work(ready, buffers, tally),
        }
    }

    /// A message more is due: it is sent now, or once those before it are answered.
    pub fn owe(&mut self, buffers: &mut Buffers) -> Result<(), String> {
        self.exchange.owe();
        self.exchange.send(&self.socket, buffers)
    }

    /// Its tunnel is open and has been used.
    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Working)
    }

    fn begin(&mut self, opening: &OpeningBytes) -> Result<Step, String> {
        if let Ok(Some(error)) = self.socket.take_error() {
            return Err(could_not_connect(&error));
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

    fn open(&mut self, buffers: &mut Buffers) -> Result<Step, String> {
        let Stage::Opening(head) = &mut self.stage else { return Ok(Step::Goes) };
        // No byte of the tunnel comes before ours, so all that arrives is head.
        match read(&self.socket, &mut buffers.received).map_err(|error| broke(&error))? {
            Done::Bytes(len) => head.extend_from_slice(&buffers.received[..len]),
            Done::WouldBlock => return Ok(Step::Goes),
            Done::Ended => return Err(format!("closed in the reply: {:?}", String::from_utf8_lossy(head))),
        }
        let end = head.windows(HEAD_END.len()).position(|bytes| bytes == HEAD_END);
        let behind = end.map(|end| head.len() - end - HEAD_END.len());
        let status = String::from_utf8_lossy(head.split(|&byte| byte == b'\r').next().unwrap_or_default());
        match (behind, status.split(' ').nth(1)) {
            (Some(0), Some("200")) => self.greet(),
            (Some(_), Some("200")) => {
                Err("bytes came behind the relay's 200 that nobody had sent".to_owned())
            }
            (None, _) if head.len() <= HEAD_BYTES_MAX => Ok(Step::Goes),
            _ => Err(format!("the relay said {status:?}")),
        }
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

    fn hear_greeting(&mut self, buffers: &mut Buffers, tally: &mut Tally) -> Result<Step, String> {
        match read(&self.socket, &mut buffers.received[..2]).map_err(|error| broke(&error))? {
            Done::Bytes(1) if buffers.received[0] == Role::Echo.byte() => {}
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

    fn work(&mut self, ready: Ready, buffers: &mut Buffers, tally: &mut Tally) -> Result<Step, String> {
        match self.job {
            Job::Stream(direction) => {
                self.stream(direction, ready, buffers, tally).map_err(|error| broke(&error))?;
            }
            Job::Exchange { .. } => self.exchange(buffers, tally)?,
            // Nothing comes any more, unless the relay ends it.
            Job::Once => {
                match read(&self.socket, &mut buffers.received[..1]).map_err(|error| broke(&error))? {
                    Done::WouldBlock => {}
                    Done::Bytes(_) => return Err("a byte came that nobody had sent".to_owned()),
                    Done::Ended => return Err("closed while it was idle".to_owned()),
                }
            }
        }
        Ok(Step::Goes)
    }

    fn stream(
        &mut self,
        direction: Direction,
        ready: Ready,
        buffers: &mut Buffers,
        tally: &mut Tally,
    ) -> io::Result<()> {
        if ready.readable && direction != Direction::Up {
            match discard(&self.socket, &mut buffers.received)? {
                Done::Bytes(len) => tally.arrived(len as u64),
                Done::WouldBlock => {}
                Done::Ended => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        if ready.writable && direction != Direction::Down {
            buffers.send_bulk(&self.socket)?;
        }
        Ok(())
    }

    fn exchange(&mut self, buffers: &mut Buffers, tally: &mut Tally) -> Result<(), String> {
        self.exchange.send(&self.socket, buffers)?;
        let Some(due_ns) = self.exchange.receive(&self.socket, buffers)? else { return Ok(()) };
        let answered_ns = tally.exchanged(due_ns);
        if !tally.is_scheduled {
            self.exchange.follow(answered_ns as f64, 0.0);
            self.exchange.owe();
        }
        self.exchange.send(&self.socket, buffers)
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Bytes that open a tunnel; empty for a contender without tunnels.
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

pub fn could_not_connect(error: &io::Error) -> String {
    format!("a client could not connect: {error}")
}

/// Sends what a new connection always has room for.
fn send_small(socket: &Socket, bytes: &[u8]) -> Result<(), String> {
    match write(socket, bytes) {
        Ok(Done::Bytes(sent)) if sent == bytes.len() => Ok(()),
        Ok(_) => Err("a new connection had no room".to_owned()),
        Err(error) => Err(broke(&error)),
    }
}

/// An empty line.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// Longest head of a reply; a longer one is an error.
const HEAD_BYTES_MAX: usize = 8 * 1024;
