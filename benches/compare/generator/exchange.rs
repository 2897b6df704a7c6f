//! Messages on one connection, each sent back by the other side: one is out at a time, the next is sent
//! when it is due and the one before is answered. What comes back is compared with what was sent.

use socket2::Socket;

use super::buffers::Buffers;
use super::socket::{Done, broke, read, write};

pub struct Exchange {
    message_bytes: usize,
    /// Number of the message that is out, sent in its first bytes; no two connections share one.
    tag: u64,
    out: Option<Out>,
    /// Due and not sent yet.
    waiting: u64,
    /// Time at which the first of those is due, and the step to each that follows.
    due_ns: f64,
    step_ns: f64,
}

struct Out {
    due_ns: u64,
    unsent: usize,
    received: usize,
}

impl Exchange {
    /// `connection` is this one's number.
    pub fn new(message_bytes: usize, connection: u64) -> Self {
        Self { message_bytes, tag: connection << 32, out: None, waiting: 0, due_ns: 0.0, step_ns: 0.0 }
    }

    /// Starts a schedule: the first message is due at `due_ns`, then one every `step_ns`. Waiting messages are dropped.
    pub fn follow(&mut self, due_ns: f64, step_ns: f64) {
        self.waiting = 0;
        self.due_ns = due_ns;
        self.step_ns = step_ns;
    }

    /// Another message is due.
    pub fn owe(&mut self) {
        self.waiting += 1;
    }

    /// Sends what can be sent now.
    pub fn send(&mut self, socket: &Socket, buffers: &mut Buffers) -> Result<(), String> {
        if self.out.is_none() && self.waiting > 0 {
            self.waiting -= 1;
            self.tag += 1;
            self.out = Some(Out { due_ns: self.due_ns as u64, unsent: self.message_bytes, received: 0 });
            self.due_ns += self.step_ns;
        }
        let Some(out) = self.out.as_mut().filter(|out| out.unsent > 0) else { return Ok(()) };
        let message = buffers.message(self.message_bytes, self.tag);
        while out.unsent > 0 {
            match write(socket, &message[message.len() - out.unsent..]).map_err(|error| broke(&error))? {
                Done::Bytes(sent) => out.unsent -= sent,
                Done::WouldBlock | Done::Ended => break,
            }
        }
        Ok(())
    }

    /// Takes what is there; when the message was due that is answered now.
    pub fn receive(&mut self, socket: &Socket, buffers: &mut Buffers) -> Result<Option<u64>, String> {
        let whole = self.message_bytes;
        loop {
            let read = read(socket, &mut buffers.received).map_err(|error| broke(&error))?;
            let (len, out) = match (read, &mut self.out) {
                (Done::Bytes(len), Some(out)) => (len, out),
                (Done::WouldBlock, _) => return Ok(None),
                (Done::Bytes(_), None) => return Err("an answer came that nobody had asked for".to_owned()),
                (Done::Ended, None) => return Err("a connection ended between two messages".to_owned()),
                (Done::Ended, Some(Out { received, .. })) => {
                    return Err(format!("a connection ended after {received} of an answer's {whole} bytes"));
                }
            };
            let (before, after) = (out.received, out.received + len);
            if after > whole {
                return Err(format!("{after} bytes answered a message of {whole}"));
            }
            let (message, received) = buffers.message_and_received(whole, self.tag);
            if message[before..after] != received[..len] {
                let same = message[before..].iter().zip(received).take_while(|(sent, came)| sent == came);
                let byte = before + same.count();
                return Err(format!("an answer differs from its message in byte {byte} of {whole}"));
            }
            out.received = after;
            if after == whole {
                let due_ns = out.due_ns;
                self.out = None;
                return Ok(Some(due_ns));
            }
        }
    }

    /// Due times, since `since_ns`, of the messages that have no answer.
    pub fn unanswered(&self, since_ns: u64) -> impl Iterator<Item = u64> {
        let out = self.out.as_ref().map(|out| out.due_ns).filter(|&due_ns| due_ns >= since_ns);
        let waiting = (0..self.waiting).map(|place| (self.due_ns + place as f64 * self.step_ns) as u64);
        out.into_iter().chain(waiting)
    }
}
