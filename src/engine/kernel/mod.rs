//! The seam between session logic and the operating system.
//!
//! Sessions queue operations and make a few inline calls through [`Kernel`], and are told of completions
//! by their worker. [`RingKernel`] is the real one; tests script their own, with short, failed, reordered
//! and late results.

#[cfg(test)]
pub(super) mod simulated;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use crate::config::{Config, Engine as EngineConfig, KernelTls};
use crate::sys::buffers::{BufferId, Buffers};
use crate::sys::kernel_tls::{self, Keys, Record};
use crate::sys::pipe::Pipe;
use crate::sys::ring::{Completion, First, Gather, Operation, Ring, RingError, Wait};
use crate::sys::socket::{self, Keepalive, UserTimeout, WatchForSilence};
use crate::telemetry::HotCounters;

use super::timers::Tick;
use crate::engine::peer_pool::{Means, PeerPool};
use crate::engine::tls::handshake_pool::{HandshakeDone, HandshakePool, Owner, PoolFull};
use crate::engine::tls::stream::{RECORD_BYTES_MAX, TlsStream};
use crate::engine::user_data::{PeerStep, Slot, UserData};
use crate::wire::Sealed;

/// What a session may ask of the system. Nothing here waits.
pub(super) trait Kernel {
    /// A connected or connecting socket; dropping it closes it with a FIN.
    type Socket;
    /// A conveyor for splicing.
    type Pipe: Conveyor;

    /// Queues an operation; its completions come back under `token`. `socket` and any pipe must outlive
    /// the last of them.
    fn submit(&mut self, token: UserData, operation: SocketOperation<'_, Self>);
    /// Ends the operation that was submitted under `target`; its last completion still comes.
    fn cancel(&mut self, token: UserData, target: UserData);

    fn send(&self, socket: &Self::Socket, bytes: &[u8]) -> io::Result<usize>;
    /// What has come, into `room`; 0 at the end.
    fn receive(&self, socket: &Self::Socket, room: &mut [u8]) -> io::Result<usize>;
    fn shut_write(&self, socket: &Self::Socket);
    /// Makes the socket's close a reset.
    fn reset_on_close(&self, socket: &Self::Socket);
    fn open_device_socket(&self, address: SocketAddr) -> io::Result<Self::Socket>;
    /// A connection to the node at `address` that was made before; there are to be some from now on.
    fn take_spare(
        &mut self,
        node: &str,
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
        now: Tick,
    ) -> Option<(Self::Socket, Box<TlsStream>)>;
    /// To another node, which no VPN is on the way to.
    fn open_node_socket(&self, address: SocketAddr) -> io::Result<Self::Socket>;
    /// Turns on what tells of a peer that has gone without a word. Client sockets have it from the start.
    fn watch_for_silence(&self, socket: &Self::Socket);

    /// Has a step of a TLS handshake taken, with `records` that came for it, aside from this thread. It comes
    /// back by the worker. Refused where too many are under way.
    fn shake_hands(&mut self, slot: Slot, secured: Box<TlsStream>, records: Vec<u8>) -> Result<(), PoolFull>;
    /// Makes the socket one that TLS can be left to the kernel on; refused by a kernel without it.
    fn prepare_tls(&self, socket: &Self::Socket) -> io::Result<()>;
    /// Leaves the records from the next on to the kernel. Only after [`prepare_tls`](Self::prepare_tls).
    fn give_tls(&self, socket: &Self::Socket, keys: &Keys) -> io::Result<()>;
    /// Takes the record that is no data, which reading has failed on.
    fn receive_record(&self, socket: &Self::Socket) -> io::Result<Record>;
    /// Has the kernel tell the peer by TLS that nothing follows.
    fn send_close_notify(&self, socket: &Self::Socket) -> io::Result<()>;
    /// The thread's memory for records; to be put back before the session's call ends.
    fn take_scratch(&mut self) -> Box<Scratch>;
    fn put_scratch(&mut self, scratch: Box<Scratch>);

    /// The bytes that a completed receive put into a buffer.
    fn received(&self, buffer: BufferId, len: usize) -> &[u8];
    /// Returns a buffer to the ring; once per completion that named one.
    fn give_back(&mut self, buffer: BufferId);

    /// A clean pipe, or `None` where this thread's bound is reached or the system has none left.
    fn take_pipe(&mut self) -> Option<Self::Pipe>;
    /// Takes a pipe back: pooled where it is clean, closed where bytes are left in it.
    fn put_pipe(&mut self, pipe: Self::Pipe);
    fn fill_pipe(&self, pipe: &mut Self::Pipe, from: &Self::Socket) -> io::Result<usize>;
    fn drain_pipe(&self, pipe: &mut Self::Pipe, to: &Self::Socket) -> io::Result<usize>;
}

/// An operation of a session on one of its sockets.
pub(super) enum SocketOperation<'a, K: Kernel + ?Sized> {
    Receive(&'a K::Socket),
    ReceiveStream(&'a K::Socket, First),
    Connect(&'a K::Socket, SocketAddr),
    PollReadable(&'a K::Socket),
    PollWritable(&'a K::Socket),
    PollHangup(&'a K::Socket),
    /// The ring's own splice, into a pipe.
    SpliceIn(&'a K::Socket, &'a K::Pipe),
    /// The ring's own splice, out of a pipe.
    SpliceOut(&'a K::Pipe, &'a K::Socket),
}

/// Memory in which records are opened and sealed, one flow at a time.
pub(super) struct Scratch {
    /// As received; always of one length.
    pub incoming: Vec<u8>,
    /// As opened.
    pub plain: Vec<u8>,
    pub sealed: Sealed,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            incoming: vec![0; RECORD_BYTES_MAX + RECEIVE_RECORDS_BYTES],
            plain: Vec::new(),
            sealed: Sealed::default(),
        }
    }
}

/// What one receive gives at most where either end speaks TLS: four records.
const RECEIVE_RECORDS_BYTES: usize = 64 * 1024;

/// What the splice path needs to know of a pipe.
pub(super) trait Conveyor {
    fn held_bytes(&self) -> usize;
    fn note_filled(&mut self, bytes: usize);
    fn note_drained(&mut self, bytes: usize);
}

/// `None` for "would block"; tries again when interrupted.
pub(super) fn retrying(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(moved) => return Ok(Some(moved)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends until all is sent or the socket has no room; how much it took.
pub(super) fn send_until_full<K: Kernel>(kernel: &K, socket: &K::Socket, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match retrying(|| kernel.send(socket, &bytes[sent..]))? {
            Some(taken) => sent += taken,
            None => break,
        }
    }
    Ok(sent)
}

/// A thread's ring with its buffers and pipes.
pub(super) struct RingKernel {
    // The ring goes first, so that no receive is in flight when the buffers' memory is unmapped.
    ring: Ring,
    buffers: Buffers,
    pipes: PipePool,
    buffers_out: usize,
    silence: WatchForSilence,
    kernel_tls: KernelTls,
    vpn_interface: Option<String>,
    /// Made when first wanted.
    scratch: Option<Box<Scratch>>,
    desk: HandshakePool,
    spares: PeerPool,
}

impl RingKernel {
    /// `kernel_tls` says whether this kernel is to be left TLS.
    pub fn new(config: &Config, kernel_tls: KernelTls, desk: HandshakePool) -> Result<Self, RingError> {
        let ring = Ring::new()?;
        let buffers =
            ring.register_buffers(config.engine.buffers).map_err(|error| match error.raw_os_error() {
                Some(libc::ENOMEM) => RingError::Memory,
                Some(libc::EINVAL) => RingError::Unsupported { feature: "provided-buffer rings" },
                _ => RingError::Setup(error),
            })?;
        Ok(Self {
            ring,
            buffers,
            pipes: PipePool::new(&config.engine),
            buffers_out: 0,
            silence: silence_options(config),
            kernel_tls,
            vpn_interface: config.vpn.interface.clone(),
            scratch: None,
            desk,
            spares: PeerPool::new(config.forward.idle_connections),
        })
    }

    /// One turn of the ring; see [`Ring::turn`].
    pub fn turn(
        &mut self,
        wait: Wait,
        gather: Option<Gather>,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        let before = completions.len();
        self.ring.turn(wait, gather, completions)?;
        self.buffers_out += completions[before..].iter().filter(|each| each.buffer.is_some()).count();
        Ok(())
    }

    /// Tells what is with sessions now.
    pub fn tell(&self, counters: &HotCounters) {
        counters.buffers_in_use.set(self.buffers_out as u64);
        counters.pipes_in_use.set(self.pipes.out as u64);
        counters.ring_overflows.set(self.ring.overflows());
    }

    /// Looks on for up to `budget`, without calling into the system, until a turn would find completions.
    pub fn has_work_within(&mut self, budget: Duration) -> bool {
        let began = Instant::now();
        loop {
            for _ in 0..SPINS_PER_CLOCK {
                if self.ring.has_work() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if began.elapsed() >= budget {
                return false;
            }
        }
    }

    /// A step of a session's handshake that was taken. Those of spares go on by themselves.
    pub fn next_shaken(&mut self, now: Tick) -> Option<(Slot, HandshakeDone)> {
        loop {
            let shaken = self.desk.next()?;
            match shaken.owner {
                Owner::Session(slot) => return Some((slot, shaken)),
                Owner::PeerConnection(place) => {
                    let (spares, mut means) = self.spares(now);
                    spares.on_shaken(place, shaken, &mut means);
                }
            }
        }
    }

    /// An operation of a spare connection has completed.
    pub fn complete_spare(&mut self, place: u32, step: PeerStep, result: i32, now: Tick) {
        let (spares, mut means) = self.spares(now);
        spares.complete(place, step, result, &mut means);
    }

    /// Sees to the spare connections; when to do so again.
    pub fn tend_spares(&mut self, now: Tick) -> Option<Tick> {
        let (spares, mut means) = self.spares(now);
        spares.tend(&mut means)
    }

    fn spares(&mut self, now: Tick) -> (&mut PeerPool, Means<'_>) {
        (&mut self.spares, Means { ring: &mut self.ring, desk: &mut self.desk, now })
    }

    /// Queues an operation of the worker's own.
    pub fn push(&mut self, token: UserData, operation: Operation<'_>) {
        self.ring.push(token.into_bits(), operation);
    }
}

impl Kernel for RingKernel {
    type Socket = OwnedFd;
    type Pipe = Pipe;

    fn submit(&mut self, token: UserData, operation: SocketOperation<'_, Self>) {
        let operation = match operation {
            SocketOperation::Receive(socket) => Operation::Receive { socket: socket.as_fd() },
            SocketOperation::ReceiveStream(socket, first) => {
                Operation::ReceiveStream { socket: socket.as_fd(), first }
            }
            SocketOperation::Connect(socket, address) => {
                Operation::Connect { socket: socket.as_fd(), address }
            }
            SocketOperation::PollReadable(socket) => Operation::PollReadable { fd: socket.as_fd() },
            SocketOperation::PollWritable(socket) => Operation::PollWritable { fd: socket.as_fd() },
            SocketOperation::PollHangup(socket) => Operation::PollHangup { fd: socket.as_fd() },
            SocketOperation::SpliceIn(socket, pipe) => Operation::Splice {
                from: socket.as_fd(),
                to: pipe.write_end(),
                bytes: pipe.capacity_bytes() as u32,
            },
            SocketOperation::SpliceOut(pipe, socket) => Operation::Splice {
                from: pipe.read_end(),
                to: socket.as_fd(),
                bytes: pipe.held_bytes() as u32,
            },
        };
        self.ring.push(token.into_bits(), operation);
    }

    fn cancel(&mut self, token: UserData, target: UserData) {
        self.ring.push(token.into_bits(), Operation::Cancel { user_data: target.into_bits() });
    }

    fn send(&self, socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
        socket::send_now(socket.as_fd(), bytes)
    }

    fn receive(&self, socket: &OwnedFd, room: &mut [u8]) -> io::Result<usize> {
        socket::receive_now(socket.as_fd(), room)
    }

    fn shake_hands(&mut self, slot: Slot, secured: Box<TlsStream>, records: Vec<u8>) -> Result<(), PoolFull> {
        self.desk.hand_over(Owner::Session(slot), secured, records)
    }

    fn prepare_tls(&self, socket: &OwnedFd) -> io::Result<()> {
        match self.kernel_tls {
            KernelTls::Auto => kernel_tls::prepare(socket),
            KernelTls::Off => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn give_tls(&self, socket: &OwnedFd, keys: &Keys) -> io::Result<()> {
        kernel_tls::give_keys(socket, keys)
    }

    fn receive_record(&self, socket: &OwnedFd) -> io::Result<Record> {
        kernel_tls::receive_record(socket.as_fd())
    }

    fn send_close_notify(&self, socket: &OwnedFd) -> io::Result<()> {
        kernel_tls::send_close_notify(socket.as_fd())
    }

    fn take_scratch(&mut self) -> Box<Scratch> {
        self.scratch.take().unwrap_or_default()
    }

    fn put_scratch(&mut self, scratch: Box<Scratch>) {
        self.scratch = Some(scratch);
    }

    fn shut_write(&self, socket: &OwnedFd) {
        socket::shut_write(socket);
    }

    fn reset_on_close(&self, socket: &OwnedFd) {
        socket::reset_on_close(socket);
    }

    fn open_device_socket(&self, address: SocketAddr) -> io::Result<OwnedFd> {
        socket::open(address, self.vpn_interface.as_deref())
    }

    fn take_spare(
        &mut self,
        node: &str,
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
        now: Tick,
    ) -> Option<(OwnedFd, Box<TlsStream>)> {
        let mut means = Means { ring: &mut self.ring, desk: &mut self.desk, now };
        self.spares.take(node, address, tls, &mut means)
    }

    fn open_node_socket(&self, address: SocketAddr) -> io::Result<OwnedFd> {
        socket::open(address, None)
    }

    fn watch_for_silence(&self, socket: &OwnedFd) {
        // The connection may have failed already, which its next completion tells.
        let _failed_already = socket::watch_for_silence(socket, self.silence);
    }

    fn received(&self, buffer: BufferId, len: usize) -> &[u8] {
        self.buffers.bytes(buffer, len)
    }

    fn give_back(&mut self, buffer: BufferId) {
        self.buffers_out -= 1;
        self.buffers.give_back(buffer);
    }

    fn take_pipe(&mut self) -> Option<Pipe> {
        self.pipes.take()
    }

    fn put_pipe(&mut self, pipe: Pipe) {
        self.pipes.put(pipe);
    }

    fn fill_pipe(&self, pipe: &mut Pipe, from: &OwnedFd) -> io::Result<usize> {
        pipe.fill_from(from.as_fd())
    }

    fn drain_pipe(&self, pipe: &mut Pipe, to: &OwnedFd) -> io::Result<usize> {
        pipe.drain_into(to.as_fd())
    }
}

impl Conveyor for Pipe {
    fn held_bytes(&self) -> usize {
        Pipe::held_bytes(self)
    }

    fn note_filled(&mut self, bytes: usize) {
        Pipe::note_filled(self, bytes);
    }

    fn note_drained(&mut self, bytes: usize) {
        Pipe::note_drained(self, bytes);
    }
}

/// How the config wants silent peers found out.
pub(super) fn silence_options(config: &Config) -> WatchForSilence {
    WatchForSilence {
        keepalive: Keepalive(config.timeouts.keepalive),
        user_timeout: UserTimeout(config.timeouts.user_timeout),
    }
}

/// Clean pipes of one thread; made when first wanted, kept until the thread ends.
struct PipePool {
    clean: Vec<Pipe>,
    out: usize,
    pipes_max: usize,
    pipe_bytes: usize,
}

impl PipePool {
    fn new(config: &EngineConfig) -> Self {
        Self { clean: Vec::new(), out: 0, pipes_max: config.pipes, pipe_bytes: config.pipe_bytes }
    }

    fn take(&mut self) -> Option<Pipe> {
        let pipe = match self.clean.pop() {
            Some(pipe) => pipe,
            None if self.out < self.pipes_max => Pipe::new(self.pipe_bytes).ok()?,
            None => return None,
        };
        self.out += 1;
        Some(pipe)
    }

    fn put(&mut self, pipe: Pipe) {
        self.out -= 1;
        if pipe.is_clean() {
            self.clean.push(pipe);
        }
    }
}

/// Looks between two readings of the clock.
const SPINS_PER_CLOCK: u32 = 32;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pool(pipes: usize) -> PipePool {
        PipePool::new(&EngineConfig { pipes, ..EngineConfig::default() })
    }

    #[test]
    fn the_pool_stops_at_its_bound_and_goes_on_when_a_pipe_comes_back() {
        let mut pool = pool(2);
        let first = pool.take().unwrap();
        let _second = pool.take().unwrap();
        assert!(pool.take().is_none());
        pool.put(first);
        assert!(pool.take().is_some());
    }

    #[test]
    fn a_dirty_pipe_is_closed_not_pooled() {
        let mut pool = pool(1);
        let mut pipe = pool.take().unwrap();
        let (inlet, mut source) = UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut source, b"left over").unwrap();
        pipe.fill_from(inlet.as_fd()).unwrap();
        pool.put(pipe);
        assert!(pool.clean.is_empty());
        assert!(pool.take().is_some_and(|fresh| fresh.is_clean()));
    }
}
