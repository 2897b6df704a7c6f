//! The device's side: takes what relays bring, and does what the first byte of each connection says.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::Socket;

use super::buffers::Buffers;
use super::poller::{Interest, Ready};
use super::socket::{Done, discard, read, write};

/// The use of a connection; the first byte that its client sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Sends everything back, this byte included.
    Echo,
    Source,
    Sink,
    SourceAndSink,
}

/// One connection from a relay, or straight from a client.
pub struct Served {
    socket: Socket,
    role: Option<Role>,
    /// Echo that found no room.
    unsent: Vec<u8>,
}

/// The result of serving a connection for a moment.
pub enum Step {
    /// So many bytes of bulk have arrived.
    Goes {
        bulk_bytes: u64,
    },
    /// The connection waits for this readiness from now on.
    Wants(Interest),
    Over,
}

impl Role {
    pub const fn byte(self) -> u8 {
        match self {
            Self::Echo => b'e',
            Self::Source => b's',
            Self::Sink => b'k',
            Self::SourceAndSink => b'b',
        }
    }

    const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            b'e' => Self::Echo,
            b's' => Self::Source,
            b'k' => Self::Sink,
            b'b' => Self::SourceAndSink,
            _ => return None,
        })
    }

    /// The readiness that the backend's side of bulk waits for.
    const fn interest(self) -> Interest {
        match self {
            Self::Echo => Interest::Edges,
            Self::Source => Interest::Writable,
            Self::Sink => Interest::Readable,
            Self::SourceAndSink => Interest::ReadableAndWritable,
        }
    }
}

impl Served {
    pub fn new(socket: Socket) -> Self {
        Self { socket, role: None, unsent: Vec::new() }
    }

    /// Does what can be done now. Whatever fails, the client is the one to notice.
    pub fn serve(&mut self, ready: Ready, buffers: &mut Buffers) -> Step {
        match self.try_serve(ready, buffers) {
            Ok(served) => served,
            Err(_) => Step::Over,
        }
    }

    fn try_serve(&mut self, ready: Ready, buffers: &mut Buffers) -> io::Result<Step> {
        match self.role {
            None => self.begin(buffers),
            Some(Role::Echo) => self.echo(ready, buffers),
            Some(role) => self.move_bulk(role, ready, buffers),
        }
    }

    fn begin(&mut self, buffers: &mut Buffers) -> io::Result<Step> {
        let first = match read(&self.socket, &mut buffers.received[..1])? {
            Done::Bytes(_) => buffers.received[0],
            Done::WouldBlock => return Ok(Step::Goes { bulk_bytes: 0 }),
            Done::Ended => return Ok(Step::Over),
        };
        let Some(role) = Role::of(first) else { return Ok(Step::Over) };
        self.role = Some(role);
        if role != Role::Echo {
            // Sending a file has no flag that says so.
            self.socket.set_nonblocking(true)?;
            return Ok(Step::Wants(role.interest()));
        }
        write(&self.socket, &[first])?;
        Ok(Step::Goes { bulk_bytes: 0 })
    }

    fn echo(&mut self, ready: Ready, buffers: &mut Buffers) -> io::Result<Step> {
        if ready.writable && !self.unsent.is_empty() {
            let unsent = std::mem::take(&mut self.unsent);
            self.send(&unsent)?;
        }
        while self.unsent.is_empty() {
            let len = match read(&self.socket, &mut buffers.received)? {
                Done::Bytes(len) => len,
                Done::WouldBlock => break,
                Done::Ended => return Ok(Step::Over),
            };
            self.send(&buffers.received[..len])?;
            if len < buffers.received.len() {
                break;
            }
        }
        Ok(Step::Goes { bulk_bytes: 0 })
    }

    fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match write(&self.socket, bytes)? {
                Done::Bytes(sent) => bytes = &bytes[sent..],
                Done::WouldBlock | Done::Ended => break,
            }
        }
        self.unsent.extend_from_slice(bytes);
        Ok(())
    }

    fn move_bulk(&mut self, role: Role, ready: Ready, buffers: &mut Buffers) -> io::Result<Step> {
        let mut bulk_bytes = 0;
        if ready.readable && role != Role::Source {
            match discard(&self.socket, &mut buffers.received)? {
                Done::Bytes(len) => bulk_bytes = len as u64,
                Done::WouldBlock => {}
                Done::Ended => return Ok(Step::Over),
            }
        }
        if ready.writable && role != Role::Sink {
            buffers.send_bulk(&self.socket)?;
        }
        Ok(Step::Goes { bulk_bytes })
    }
}

impl AsFd for Served {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
