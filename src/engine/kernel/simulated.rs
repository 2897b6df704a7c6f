//! A simulated kernel for tests: its dice decide within the limits of a real kernel.
//!
//! Calls come short, would block or are interrupted; operations complete late, in any order, in pieces;
//! multishot receives stop of themselves, find no buffer, or deliver more after their cancel was queued.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::engine::kernel::io::Outcome;
use crate::engine::kernel::{Conveyor, Kernel, SocketOperation};
use crate::engine::user_data::{Purpose, UserData};
use crate::sys::buffers::{BUFFER_BYTES, FilledBuffer};
use crate::sys::kernel_tls::{Keys, Record};
use crate::sys::silence::Delivery;

/// One end of a connection, as the relay holds it. Clones are the test's view of the same one.
#[derive(Clone, Default)]
pub(in crate::engine) struct Socket(Rc<SocketState>);

#[derive(Default)]
pub(in crate::engine) struct SocketState {
    /// Bytes that the other side has sent and the relay has not read.
    pub incoming: RefCell<VecDeque<u8>>,
    /// The other side has sent a FIN behind them.
    pub peer_ended: Cell<bool>,
    /// Bytes that the relay has sent.
    pub sent: RefCell<Vec<u8>>,
    /// Bytes that the relay may send before it would block.
    pub room: Cell<usize>,
    /// The relay has sent its FIN.
    pub shut: Cell<bool>,
    pub reset_on_close: Cell<bool>,
    /// A record that is no data, behind the bytes: the kernel opens and seals the records of this connection.
    pub record: Cell<Option<Record>>,
    /// The relay has sent the alert `close_notify`.
    pub close_notify_sent: Cell<bool>,
    /// The state of the bytes that the relay has sent.
    pub delivery: Cell<Delivery>,
    /// The errno of every call from now on.
    pub broken: Cell<Option<i32>>,
}

#[derive(Default)]
pub(in crate::engine) struct SimulatedPipe {
    /// Bytes that are really in it. Shared with the ring's operations in flight.
    bytes: PipeBytes,
    /// Bytes that the relay knows of.
    held_bytes: usize,
}

type PipeBytes = Rc<RefCell<VecDeque<u8>>>;

/// An operation that the relay waits for.
pub(in crate::engine) struct Pending {
    pub purpose: Purpose,
    what: What,
    cancelled: bool,
}

enum What {
    Receive { socket: Socket, is_multishot: bool },
    Connect,
    Readable(Socket),
    Writable(Socket),
    Hangup,
    Fill(Socket, PipeBytes),
    Drain(PipeBytes, Socket),
}

/// Numbers from a test's seed, so that a failure can be run again.
pub(in crate::engine) struct Dice(u64);

pub(in crate::engine) struct SimulatedKernel {
    pub pending: Vec<Pending>,
    pub dice: RefCell<Dice>,
    pub pipes_left: usize,
    /// Bytes that a pipe takes.
    pub pipe_bytes: usize,
    /// The socket that every open of a device or peer socket returns.
    pub device: Socket,
    /// True where connects complete.
    pub connects: bool,
    /// True where TLS can be left to the kernel.
    pub has_tls: bool,
    buffers: HashMap<u16, Vec<u8>>,
    next_buffer: u16,
    cancels_to_complete: usize,
}

/// A socket that a panic drops resets its connection, as the real kernel's sockets do.
impl Drop for Socket {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.reset_on_close.set(true);
        }
    }
}

impl Socket {
    pub fn state(&self) -> &SocketState {
        &self.0
    }

    /// Clones of the socket, the test's included.
    pub fn holders(&self) -> usize {
        Rc::strong_count(&self.0)
    }

    fn check(&self) -> io::Result<()> {
        self.0.broken.get().map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    /// Takes up to `max` bytes that the peer sent.
    fn take_incoming(&self, max: usize) -> Vec<u8> {
        let mut incoming = self.0.incoming.borrow_mut();
        let count = max.min(incoming.len());
        take_front(&mut incoming, count)
    }

    fn is_readable(&self) -> bool {
        !self.0.incoming.borrow().is_empty()
            || self.0.record.get().is_some()
            || self.0.peer_ended.get()
            || self.0.broken.get().is_some()
    }

    fn end_of_splice(&self) -> io::Result<usize> {
        match self.end() {
            None => Err(io::ErrorKind::WouldBlock.into()),
            Some(0) => Ok(0),
            Some(_) => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    /// The result of a read where no data is next; `None` where it would block.
    fn end(&self) -> Option<i32> {
        match self.0.record.get() {
            Some(_) => Some(-libc::EIO),
            None => self.0.peer_ended.get().then_some(0),
        }
    }
}

impl Dice {
    /// A number below `sides`, by xorshift64*.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides
    }
}

impl SimulatedKernel {
    pub fn new(seed: u64) -> Self {
        Self {
            pending: Vec::new(),
            dice: RefCell::new(Dice(seed | 1)),
            pipes_left: 2,
            pipe_bytes: 64 * 1024,
            device: Socket::default(),
            connects: true,
            has_tls: false,
            buffers: HashMap::new(),
            next_buffer: 0,
            cancels_to_complete: 0,
        }
    }

    pub fn roll(&self, sides: usize) -> usize {
        self.dice.borrow_mut().roll(sides)
    }

    /// Buffers that are neither with the kernel nor given back.
    pub fn buffers_out(&self) -> usize {
        self.buffers.len()
    }

    /// Lets something happen that a real kernel could let happen now; `None` where nothing can.
    pub fn step(&mut self) -> Option<(Purpose, Outcome)> {
        if self.cancels_to_complete > 0 && self.roll(3) == 0 {
            self.cancels_to_complete -= 1;
            return Some((Purpose::Cancel, Outcome { result: 0, more: false, buffer: None }));
        }
        let count = self.pending.len();
        if count == 0 && self.cancels_to_complete > 0 {
            self.cancels_to_complete -= 1;
            return Some((Purpose::Cancel, Outcome { result: -libc::ENOENT, more: false, buffer: None }));
        }
        let first = self.roll(count.max(1));
        (0..count).find_map(|offset| self.complete((first + offset) % count, self.roll(8)))
    }

    /// Completes the pending operation at `place`, if it can complete; `luck` 0 is bad luck.
    fn complete(&mut self, place: usize, luck: usize) -> Option<(Purpose, Outcome)> {
        let pending = &self.pending[place];
        let purpose = pending.purpose;
        let end = |result| Outcome { result, more: false, buffer: None };
        // A cancel may take effect late: what is there may still be delivered first.
        let cancelled = pending.cancelled.then(|| end(-libc::ECANCELED));
        let outcome = match cancelled {
            Some(cancelled) if luck < 4 => cancelled,
            _ => self.happen(place, luck).or(cancelled)?,
        };
        if !outcome.more {
            self.pending.remove(place);
        }
        Some((purpose, outcome))
    }

    /// The result of the pending operation at `place`, if it can complete by now.
    fn happen(&mut self, place: usize, luck: usize) -> Option<Outcome> {
        let end = |result| Outcome { result, more: false, buffer: None };
        Some(match &self.pending[place].what {
            What::Receive { socket, is_multishot } => {
                let (socket, is_multishot) = (socket.clone(), *is_multishot);
                self.receive(&socket, is_multishot, luck)?
            }
            What::Connect if self.connects => end(0),
            What::Connect | What::Hangup => return None,
            What::Readable(socket) if socket.is_readable() => end(i32::from(libc::POLLIN)),
            What::Writable(socket) if socket.0.room.get() > 0 || socket.0.broken.get().is_some() => {
                end(i32::from(libc::POLLOUT))
            }
            What::Readable(_) | What::Writable(_) => return None,
            // The relay asks only once the socket was ready; bad luck makes it come to nothing.
            What::Fill(..) | What::Drain(..) if luck == 0 => end(-libc::EAGAIN),
            What::Fill(socket, pipe) => end(self.ring_fill(socket, pipe)),
            What::Drain(pipe, socket) => end(ring_drain(pipe, socket)),
        })
    }

    fn receive(&mut self, socket: &Socket, is_multishot: bool, luck: usize) -> Option<Outcome> {
        let end = |result| Outcome { result, more: false, buffer: None };
        if let Some(errno) = socket.0.broken.get() {
            return Some(end(-errno));
        }
        if socket.0.incoming.borrow().is_empty() {
            return socket.end().map(end);
        }
        if luck == 0 {
            return Some(end(-libc::ENOBUFS));
        }
        // Mostly all that fits, so that streams look like streams.
        let max = if luck < 6 { BUFFER_BYTES } else { 1 + self.roll(BUFFER_BYTES) };
        let len = max.min(socket.0.incoming.borrow().len());
        let more = is_multishot && luck != 1;
        Some(Outcome { result: len as i32, more, buffer: Some(self.deliver_up_to(socket, max)) })
    }

    /// Fills a buffer with what `socket` has, asked or not.
    pub fn deliver(&mut self, socket: &Socket) -> FilledBuffer {
        self.deliver_up_to(socket, BUFFER_BYTES)
    }

    fn deliver_up_to(&mut self, socket: &Socket, max: usize) -> FilledBuffer {
        self.next_buffer = self.next_buffer.wrapping_add(1);
        self.buffers.insert(self.next_buffer, socket.take_incoming(max));
        FilledBuffer::for_tests(self.next_buffer)
    }

    fn ring_fill(&self, socket: &Socket, pipe: &PipeBytes) -> i32 {
        let bytes = socket.take_incoming(self.pipe_bytes);
        if bytes.is_empty() {
            return socket
                .end_of_splice()
                .map_or_else(|error| -error.raw_os_error().unwrap_or(libc::EAGAIN), |_| 0);
        }
        pipe.borrow_mut().extend(&bytes);
        bytes.len() as i32
    }
}

fn ring_drain(pipe: &PipeBytes, socket: &Socket) -> i32 {
    let mut pipe = pipe.borrow_mut();
    let count = socket.0.room.get().min(pipe.len());
    if count == 0 {
        return -libc::EAGAIN;
    }
    socket.0.room.set(socket.0.room.get() - count);
    socket.0.sent.borrow_mut().extend_from_slice(&take_front(&mut pipe, count));
    count as i32
}

/// Removes the first `count` bytes. Copies slices: byte by byte, most of the tests' time would go into this.
fn take_front(queue: &mut VecDeque<u8>, count: usize) -> Vec<u8> {
    let (front, back) = queue.as_slices();
    let from_front = count.min(front.len());
    let bytes = [&front[..from_front], &back[..count - from_front]].concat();
    queue.drain(..count);
    bytes
}

impl Kernel for SimulatedKernel {
    type Socket = Socket;
    type Pipe = SimulatedPipe;

    fn submit(&mut self, user_data: UserData, operation: SocketOperation<'_, Self>) {
        let purpose = match user_data {
            UserData::Session { purpose, .. } => purpose,
            // The operations of pooled connections stay in flight.
            UserData::PeerConnection { .. } => return,
            _ => panic!("{user_data:?} is not for a socket"),
        };
        assert!(self.pending.iter().all(|pending| pending.purpose != purpose), "{purpose:?} twice");
        let what = match operation {
            SocketOperation::Receive(socket) => What::Receive { socket: socket.clone(), is_multishot: false },
            SocketOperation::ReceiveStream(socket, _) => {
                What::Receive { socket: socket.clone(), is_multishot: true }
            }
            SocketOperation::Connect(..) => What::Connect,
            SocketOperation::PollReadable(socket) => What::Readable(socket.clone()),
            SocketOperation::PollWritable(socket) => What::Writable(socket.clone()),
            SocketOperation::PollHangup(_) => What::Hangup,
            SocketOperation::SpliceIn(socket, pipe) => What::Fill(socket.clone(), Rc::clone(&pipe.bytes)),
            SocketOperation::SpliceOut(pipe, socket) => What::Drain(Rc::clone(&pipe.bytes), socket.clone()),
        };
        self.pending.push(Pending { purpose, what, cancelled: false });
    }

    fn cancel(&mut self, _user_data: UserData, target: UserData) {
        let UserData::Session { purpose, .. } = target else { return };
        self.cancels_to_complete += 1;
        for pending in &mut self.pending {
            pending.cancelled |= pending.purpose == purpose;
        }
    }

    fn send(&self, socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
        socket.check()?;
        let room = socket.0.room.get();
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.roll(16) == 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let count = room.min(bytes.len()).min(1 + self.roll(2 * BUFFER_BYTES));
        socket.0.room.set(room - count);
        socket.0.sent.borrow_mut().extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn receive(&self, socket: &Socket, room: &mut [u8]) -> io::Result<usize> {
        socket.check()?;
        if self.roll(16) == 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let bytes = socket.take_incoming(1 + self.roll(room.len()));
        if bytes.is_empty() && !socket.0.peer_ended.get() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        room[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn prepare_tls(&self, _socket: &Socket) -> io::Result<()> {
        if self.has_tls { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOENT)) }
    }

    fn give_tls(&self, socket: &Socket, _keys: &Keys) -> io::Result<()> {
        socket.check()
    }

    fn receive_record(&self, socket: &Socket) -> io::Result<Record> {
        socket.check()?;
        if self.roll(16) == 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        socket.0.record.take().ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn send_close_notify(&self, socket: &Socket) -> io::Result<()> {
        socket.check()?;
        if socket.0.room.get() == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        assert!(!socket.0.close_notify_sent.replace(true), "close_notify is sent once");
        Ok(())
    }

    fn shut_write(&self, socket: &Socket) {
        assert!(!socket.0.shut.replace(true), "a FIN is sent once");
    }

    fn reset_on_close(&self, socket: &Socket) {
        socket.0.reset_on_close.set(true);
    }

    fn duplicate(&self, socket: &Socket) -> io::Result<Socket> {
        Ok(socket.clone())
    }

    fn watch_for_silence(&self, _socket: &Socket) {}

    fn delivery(&self, socket: &Socket) -> Delivery {
        socket.0.delivery.get()
    }

    fn open_device_socket(&self, _address: SocketAddr) -> io::Result<Socket> {
        self.device.check()?;
        Ok(self.device.clone())
    }

    fn open_peer_socket(&self, address: SocketAddr) -> io::Result<Socket> {
        self.open_device_socket(address)
    }

    fn received<'a>(&'a self, buffer: &'a FilledBuffer, len: usize) -> &'a [u8] {
        &self.buffers[&buffer.number()][..len]
    }

    fn give_back(&mut self, buffer: FilledBuffer) {
        assert!(self.buffers.remove(&buffer.number()).is_some(), "{buffer:?} is given back once");
    }

    fn take_pipe(&mut self) -> Option<SimulatedPipe> {
        if self.pipes_left == 0 || self.roll(8) == 0 {
            return None;
        }
        self.pipes_left -= 1;
        Some(SimulatedPipe::default())
    }

    fn put_pipe(&mut self, pipe: SimulatedPipe) {
        assert!(
            pipe.held_bytes > 0 || pipe.bytes.borrow().is_empty(),
            "a pipe goes back to the pool as clean with a tunnel's bytes in it"
        );
        self.pipes_left += 1;
    }

    fn close_pipe(&mut self, _pipe: SimulatedPipe) {
        self.pipes_left += 1;
    }

    fn pipe_leaves(&mut self) {
        self.pipes_left += 1;
    }

    fn pipe_comes(&mut self) {
        self.pipes_left -= 1;
    }

    fn fill_pipe(&self, pipe: &mut SimulatedPipe, from: &Socket) -> io::Result<usize> {
        from.check()?;
        if self.roll(16) == 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let bytes = from.take_incoming(1 + self.roll(self.pipe_bytes));
        if bytes.is_empty() {
            return from.end_of_splice();
        }
        pipe.bytes.borrow_mut().extend(&bytes);
        pipe.held_bytes += bytes.len();
        Ok(bytes.len())
    }

    fn drain_pipe(&self, pipe: &mut SimulatedPipe, to: &Socket) -> io::Result<usize> {
        to.check()?;
        let count = to.0.room.get().min(pipe.held_bytes);
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = 1 + self.roll(count);
        to.0.room.set(to.0.room.get() - count);
        to.0.sent.borrow_mut().extend_from_slice(&take_front(&mut pipe.bytes.borrow_mut(), count));
        pipe.held_bytes -= count;
        Ok(count)
    }
}

impl Conveyor for SimulatedPipe {
    fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    fn record_filled(&mut self, bytes: usize) {
        self.held_bytes += bytes;
    }

    fn record_drained(&mut self, bytes: usize) {
        self.held_bytes -= bytes;
    }
}
