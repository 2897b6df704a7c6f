//! The kernel of a running node: one thread's io_uring, with its buffers and pipes.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::{Conveyor, Kernel, SocketOperation};
use crate::config::{Config, EngineConfig, KernelTls};
use crate::engine::user_data::UserData;
use crate::sys::buffers::{BufferId, Buffers};
use crate::sys::kernel_tls::{self, Keys, Record};
use crate::sys::pipe::Pipe;
use crate::sys::ring::{Completion, Gather, Operation, Ring, RingError, Wait};
use crate::sys::socket::{self, Keepalive, UserTimeout, WatchForSilence};
use crate::telemetry::HotCounters;

/// One thread's ring, with its buffers and pipes.
pub(in crate::engine) struct UringKernel {
    // The ring goes first, so that no receive is in flight when the buffers' memory is unmapped.
    ring: Ring,
    buffers: Buffers,
    pipes: PipePool,
    buffers_out: usize,
    silence: WatchForSilence,
    kernel_tls: KernelTls,
    vpn_interface: Option<String>,
}

impl UringKernel {
    /// Makes the ring, for the calling thread alone. `kernel_tls` says whether TLS may be left to this kernel.
    pub fn new(config: &Config, kernel_tls: KernelTls) -> Result<Self, RingError> {
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

    /// Records the buffers and pipes in use.
    pub fn record_use(&self, counters: &HotCounters) {
        counters.buffers_in_use.set(self.buffers_out as u64);
        counters.pipes_in_use.set(self.pipes.out as u64);
        counters.ring_overflows.set(self.ring.overflows());
    }

    /// Spins for up to `budget`, without a system call, until a turn would find completions.
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

    /// Queues an operation of the worker itself.
    pub fn push(&mut self, user_data: UserData, operation: Operation<'_>) {
        self.ring.push(user_data.into_bits(), operation);
    }
}

impl Kernel for UringKernel {
    type Socket = OwnedFd;
    type Pipe = Pipe;

    fn submit(&mut self, user_data: UserData, operation: SocketOperation<'_, Self>) {
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
        self.ring.push(user_data.into_bits(), operation);
    }

    fn cancel(&mut self, user_data: UserData, target: UserData) {
        self.ring.push(user_data.into_bits(), Operation::Cancel { user_data: target.into_bits() });
    }

    fn send(&self, socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
        socket::send_now(socket.as_fd(), bytes)
    }

    fn receive(&self, socket: &OwnedFd, room: &mut [u8]) -> io::Result<usize> {
        socket::receive_now(socket.as_fd(), room)
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

    fn shut_write(&self, socket: &OwnedFd) {
        socket::shut_write(socket);
    }

    fn reset_on_close(&self, socket: &OwnedFd) {
        socket::reset_on_close(socket);
    }

    fn open_device_socket(&self, address: SocketAddr) -> io::Result<OwnedFd> {
        socket::open(address, self.vpn_interface.as_deref())
    }

    fn open_peer_socket(&self, address: SocketAddr) -> io::Result<OwnedFd> {
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

    fn record_filled(&mut self, bytes: usize) {
        Pipe::record_filled(self, bytes);
    }

    fn record_drained(&mut self, bytes: usize) {
        Pipe::record_drained(self, bytes);
    }
}

/// The options by which a socket notices a remote side that went away silently.
pub(in crate::engine) fn silence_options(config: &Config) -> WatchForSilence {
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

/// Spins between two readings of the clock.
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
