//! The kernel of a running node: one thread's io_uring, with its buffers and pipes.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::pipe_pool::PipePool;
use super::thread::ThreadKernel;
use super::{Conveyor, Kernel, SocketOperation};
use crate::authz::UnixMillis;
use crate::config::{Config, KernelTls};
use crate::engine::listener::{Listener, Sharing};
use crate::engine::moved_tunnel::MovedTunnel;
use crate::engine::user_data::UserData;
use crate::sys::buffers::{Buffers, FilledBuffer};
use crate::sys::kernel_tls::{self, Keys, Record};
use crate::sys::monotonic::monotonic_us;
use crate::sys::pipe::Pipe;
use crate::sys::ring::{Completion, Gather, Operation, Ring, RingError, Wait};
use crate::sys::silence::{self, Delivery, Keepalive, UserTimeout, WatchForSilence};
use crate::sys::socket;
use crate::sys::wake::Wake;
use crate::telemetry::HotCounters;

/// A socket of a session or of a pooled connection.
///
/// A queued operation names its socket by number until it is submitted, so the number must not be free for another
/// socket before that. Sessions keep their sockets until all of their operations have completed. Where a panic drops
/// a socket, it resets its connection, and stays open until the thread's next turn has submitted what was queued.
pub(in crate::engine) struct UringSocket(OwnedFd);

/// One thread's ring, with its buffers and pipes.
pub(in crate::engine) struct UringKernel {
    // The ring goes first, so that no receive is in flight when the buffers' memory is unmapped.
    ring: Ring,
    buffers: Buffers,
    pipes: PipePool<Pipe>,
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
                Some(libc::EOPNOTSUPP) => RingError::NotOffered,
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
}

impl UringSocket {
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl AsFd for UringSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for UringSocket {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(copy) = self.0.try_clone()
        {
            socket::reset_on_close(&self.0);
            let socket = std::mem::replace(&mut self.0, copy);
            DROPPED_BY_PANIC.with_borrow_mut(|sockets| sockets.push(socket));
        }
    }
}

thread_local! {
    /// Sockets that a panic has dropped, and that queued operations may still name.
    static DROPPED_BY_PANIC: RefCell<Vec<OwnedFd>> = const { RefCell::new(Vec::new()) };
}

impl Kernel for UringKernel {
    type Socket = UringSocket;
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

    fn send(&self, socket: &UringSocket, bytes: &[u8]) -> io::Result<usize> {
        socket::send_now(socket.as_fd(), bytes)
    }

    fn receive(&self, socket: &UringSocket, room: &mut [u8]) -> io::Result<usize> {
        socket::receive_now(socket.as_fd(), room)
    }

    fn prepare_tls(&self, socket: &UringSocket) -> io::Result<()> {
        match self.kernel_tls {
            KernelTls::Auto => kernel_tls::prepare(socket),
            KernelTls::Off => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn give_tls(&self, socket: &UringSocket, keys: &Keys) -> io::Result<()> {
        kernel_tls::give_keys(socket, keys)
    }

    fn receive_record(&self, socket: &UringSocket) -> io::Result<Record> {
        kernel_tls::receive_record(socket.as_fd())
    }

    fn send_close_notify(&self, socket: &UringSocket) -> io::Result<()> {
        kernel_tls::send_close_notify(socket.as_fd())
    }

    fn shut_write(&self, socket: &UringSocket) {
        socket::shut_write(socket);
    }

    fn reset_on_close(&self, socket: &UringSocket) {
        socket::reset_on_close(socket);
    }

    fn open_device_socket(&self, address: SocketAddr) -> io::Result<UringSocket> {
        socket::open(address, self.vpn_interface.as_deref()).map(UringSocket::new)
    }

    fn open_peer_socket(&self, address: SocketAddr) -> io::Result<UringSocket> {
        socket::open(address, None).map(UringSocket::new)
    }

    fn duplicate(&self, socket: &UringSocket) -> io::Result<UringSocket> {
        socket.0.try_clone().map(UringSocket::new)
    }

    fn watch_for_silence(&self, socket: &UringSocket) {
        // The connection may have failed already, which its next completion tells.
        let _failed_already = silence::watch_for_silence(socket, self.silence);
    }

    fn delivery(&self, socket: &UringSocket) -> Delivery {
        silence::delivery(socket, self.silence.user_timeout)
    }

    fn received<'a>(&'a self, buffer: &'a FilledBuffer, len: usize) -> &'a [u8] {
        self.buffers.bytes(buffer, len)
    }

    fn give_back(&mut self, buffer: FilledBuffer) {
        self.buffers_out -= 1;
        self.buffers.give_back(buffer);
    }

    fn take_pipe(&mut self) -> Option<Pipe> {
        self.pipes.take(Pipe::new)
    }

    fn put_pipe(&mut self, pipe: Pipe) {
        self.pipes.put(pipe);
    }

    fn close_pipe(&mut self, pipe: Pipe) {
        self.pipes.close(pipe);
    }

    fn pipe_leaves(&mut self) {
        self.pipes.leaves();
    }

    fn pipe_comes(&mut self) {
        self.pipes.comes();
    }

    fn fill_pipe(&self, pipe: &mut Pipe, from: &UringSocket) -> io::Result<usize> {
        pipe.fill_from(from.as_fd())
    }

    fn drain_pipe(&self, pipe: &mut Pipe, to: &UringSocket) -> io::Result<usize> {
        pipe.drain_into(to.as_fd())
    }
}

impl ThreadKernel for UringKernel {
    type Listener = OwnedFd;
    type Accepted = OwnedFd;

    fn monotonic_us(&self) -> u64 {
        monotonic_us()
    }

    fn wall_time(&self) -> UnixMillis {
        UnixMillis::now()
    }

    fn turn(
        &mut self,
        wait: Wait,
        gather: Option<Gather>,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        let before = completions.len();
        self.ring.turn(wait, gather, completions)?;
        DROPPED_BY_PANIC.with_borrow_mut(|sockets| {
            if !sockets.is_empty() && self.ring.has_submitted_all() {
                sockets.clear();
            }
        });
        self.buffers_out += completions[before..].iter().filter(|each| each.buffer.is_some()).count();
        Ok(())
    }

    fn has_work_within(&mut self, budget: Duration) -> bool {
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

    fn record_use(&self, counters: &HotCounters) {
        counters.buffers_in_use.set(self.buffers_out as u64);
        counters.pipes_in_use.set(self.pipes.out() as u64);
        counters.ring_overflows.set(self.ring.overflows());
    }

    fn reconfigure(&mut self, config: &Config, kernel_tls: KernelTls) {
        self.silence = silence_options(config);
        self.kernel_tls = kernel_tls;
        self.vpn_interface.clone_from(&config.vpn.interface);
        self.pipes.reconfigure(&config.engine);
    }

    fn watch_wake(&mut self, user_data: UserData, wake: &Wake) {
        self.ring.push(user_data.into_bits(), Operation::PollReadableMultishot { fd: wake.as_fd() });
    }

    fn accept(&mut self, user_data: UserData, listener: &Listener) {
        let socket = listener.socket.as_fd();
        let operation = match listener.sharing {
            Sharing::Own => Operation::AcceptMultishot { listener: socket },
            Sharing::Shared => Operation::AcceptOne { listener: socket },
        };
        self.ring.push(user_data.into_bits(), operation);
    }

    fn accepted(&self, connection: OwnedFd) -> (UringSocket, Option<SocketAddr>) {
        let address = socket::peer_address(&connection);
        (UringSocket::new(connection), address)
    }

    fn set_silence_options(&self, listener: &Listener, config: &Config) {
        if let Err(error) = silence::watch_for_silence(&listener.socket, silence_options(config)) {
            tracing::warn!(%error, "a listener keeps its timeouts.keepalive and timeouts.user_timeout");
        }
    }

    fn share_listener(&self, listener: &Listener) -> io::Result<OwnedFd> {
        listener.socket.try_clone()
    }

    fn share(&self, socket: &UringSocket) -> io::Result<OwnedFd> {
        socket.0.try_clone()
    }

    fn send_away(&mut self, tunnel: MovedTunnel) -> MovedTunnel {
        tunnel
    }

    fn take_in(&mut self, tunnel: MovedTunnel) -> MovedTunnel<UringSocket, Pipe> {
        tunnel.map_sockets(UringSocket::new)
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

/// Spins between two readings of the clock.
const SPINS_PER_CLOCK: u32 = 32;

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::engine::user_data::{Purpose, Slot};

    #[test]
    fn a_socket_that_a_panic_drops_keeps_its_number_until_the_next_turn_and_is_reset() {
        let mut kernel = UringKernel::new(&Config::default(), KernelTls::Off).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let relay = UringSocket::new(listener.accept().unwrap().0.into());
        let number = relay.as_fd().as_raw_fd();
        let user_data = UserData::Session { slot: Slot(0), purpose: Purpose::Head };
        kernel.submit(user_data, SocketOperation::Receive(&relay));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _relay = relay;
            panic!("a defect");
        }));
        assert!(panicked.is_err());
        let other = std::fs::File::open("/dev/null").unwrap();
        assert_ne!(other.as_raw_fd(), number, "the queued receive would read from another file");

        kernel.turn(Wait::No, None, &mut Vec::new()).unwrap();
        kernel.cancel(UserData::CancelOwn, user_data);
        let mut completions = Vec::new();
        while !completions.iter().any(|each: &Completion| each.user_data == user_data.into_bits()) {
            kernel.turn(Wait::Until(Duration::from_secs(1)), None, &mut completions).unwrap();
        }
        let error = std::io::Read::read(&mut client, &mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
