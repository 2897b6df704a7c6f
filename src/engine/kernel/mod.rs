//! The seam between the engine and the operating system, which is all that is behind it.
//!
//! Sessions and pooled connections queue operations and make a few inline calls through [`Kernel`]; the worker
//! brings their completions. [`thread::ThreadKernel`] has the calls of the worker itself. [`uring::UringKernel`] is the
//! real kernel. Tests use simulated ones, whose results come short, failed, reordered or late: `simulated` for single
//! sessions, and `simulation` beside this folder for whole workers.

pub(super) mod io;
pub(super) mod pipe_pool;
#[cfg(test)]
pub(super) mod simulated;
pub(super) mod thread;
pub(super) mod uring;

use std::io::Result;
use std::net::SocketAddr;

use super::user_data::UserData;
use crate::sys::buffers::FilledBuffer;
use crate::sys::kernel_tls::{Keys, Record};
use crate::sys::ring::First;
use crate::sys::silence::Delivery;

/// The calls and operations that the engine needs of the system. None of them waits.
pub(super) trait Kernel {
    /// A connected or connecting socket; dropping it closes it with a FIN.
    type Socket;
    /// A pipe for splicing.
    type Pipe: Conveyor;

    /// Queues an operation; its completions come back with `user_data`. `socket` and any pipe must outlive
    /// the last of them.
    fn submit(&mut self, user_data: UserData, operation: SocketOperation<'_, Self>);
    /// Ends the operation that was submitted with `target`; its last completion still comes.
    fn cancel(&mut self, user_data: UserData, target: UserData);

    fn send(&self, socket: &Self::Socket, bytes: &[u8]) -> Result<usize>;
    /// Reads bytes that have arrived into `room`; 0 at the end of the stream.
    fn receive(&self, socket: &Self::Socket, room: &mut [u8]) -> Result<usize>;
    fn shut_write(&self, socket: &Self::Socket);
    /// Makes the socket's close a reset.
    fn reset_on_close(&self, socket: &Self::Socket);
    /// Opens a socket to connect to a device, by the VPN's interface where the config names one.
    fn open_device_socket(&self, address: SocketAddr) -> Result<Self::Socket>;
    /// Opens a socket to connect to a peer; no VPN is on the way there.
    fn open_peer_socket(&self, address: SocketAddr) -> Result<Self::Socket>;
    /// Opens another descriptor of the same connection, which ends once both are closed.
    fn duplicate(&self, socket: &Self::Socket) -> Result<Self::Socket>;
    /// Turns on the detection of a remote side that went away silently. Client sockets have it from the start.
    fn watch_for_silence(&self, socket: &Self::Socket);
    /// Finds out whether the other side has taken what was sent to it, and whether it is still there.
    fn delivery(&self, socket: &Self::Socket) -> Delivery;

    /// Prepares the socket for TLS in the kernel; an error where the kernel has none.
    fn prepare_tls(&self, socket: &Self::Socket) -> Result<()>;
    /// Leaves the records from the next on to the kernel. Only after [`prepare_tls`](Self::prepare_tls).
    fn give_tls(&self, socket: &Self::Socket, keys: &Keys) -> Result<()>;
    /// Takes the next record, which is no data, after a read failed on it.
    fn receive_record(&self, socket: &Self::Socket) -> Result<Record>;
    /// Sends the alert `close_notify`: nothing follows.
    fn send_close_notify(&self, socket: &Self::Socket) -> Result<()>;

    /// The bytes that a completed receive put into a buffer.
    fn received<'a>(&'a self, buffer: &'a FilledBuffer, len: usize) -> &'a [u8];
    /// Returns a buffer to the ring.
    fn give_back(&mut self, buffer: FilledBuffer);

    /// A clean pipe, or `None` where this thread's bound is reached or the system has none left.
    fn take_pipe(&mut self) -> Option<Self::Pipe>;
    /// Takes a pipe back: pooled where it is clean, closed where bytes are left in it.
    fn put_pipe(&mut self, pipe: Self::Pipe);
    /// Closes a pipe of which it is not known whether bytes are left in it.
    fn close_pipe(&mut self, pipe: Self::Pipe);
    /// A pipe that was taken goes to another process, with what is in it.
    fn pipe_leaves(&mut self);
    /// A pipe has come from another process, with what is in it; it counts as taken.
    fn pipe_comes(&mut self);
    fn fill_pipe(&self, pipe: &mut Self::Pipe, from: &Self::Socket) -> Result<usize>;
    fn drain_pipe(&self, pipe: &mut Self::Pipe, to: &Self::Socket) -> Result<usize>;
}

/// An operation on one socket.
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

/// A pipe, as far as the splice path needs to know it.
pub(super) trait Conveyor {
    fn held_bytes(&self) -> usize;
    fn record_filled(&mut self, bytes: usize);
    fn record_drained(&mut self, bytes: usize);
}
