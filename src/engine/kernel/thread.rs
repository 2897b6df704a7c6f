//! The seam of a whole thread: the ring's turns, the clocks, listeners, wake-ups, and tunnels that move.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::Kernel;
use crate::authz::UnixMillis;
use crate::config::{Config, KernelTls};
use crate::engine::listener::Listener;
use crate::engine::moved_tunnel::MovedTunnel;
use crate::engine::user_data::UserData;
use crate::sys::ring::{Completion, Gather, Wait};
use crate::sys::wake::Wake;
use crate::telemetry::HotCounters;

/// The calls by which a worker runs its thread. Sessions do not use them.
pub(in crate::engine) trait ThreadKernel: Kernel {
    /// A listening socket.
    type Listener;
    /// A connection as an accept returns it.
    type Accepted;

    /// Time since the machine started, in µs.
    fn monotonic_us(&self) -> u64;
    fn wall_time(&self) -> UnixMillis;

    /// One turn of the ring; see [`Ring::turn`](crate::sys::ring::Ring::turn).
    fn turn(
        &mut self,
        wait: Wait,
        gather: Option<Gather>,
        completions: &mut Vec<Completion<Self::Accepted>>,
    ) -> io::Result<()>;
    /// Spins for up to `budget`, without a system call, until a turn would find completions.
    fn has_work_within(&mut self, budget: Duration) -> bool;
    /// Records the buffers and pipes in use.
    fn record_use(&self, counters: &HotCounters);
    /// Puts the keys of `config` in force that new connections and pipes are made by.
    fn reconfigure(&mut self, config: &Config, kernel_tls: KernelTls);

    /// Queues a multishot poll of the thread's wake-up.
    fn watch_wake(&mut self, user_data: UserData, wake: &Wake);
    /// Queues an accept: of the next client where threads share the listener, else of all further ones.
    fn accept(&mut self, user_data: UserData, listener: &Listener<Self::Listener>);
    /// Makes a session's socket of an accepted connection. Its address is absent where the client has gone already.
    fn accepted(&self, connection: Self::Accepted) -> (Self::Socket, Option<SocketAddr>);
    /// Sets the options that accepted connections inherit.
    fn set_silence_options(&self, listener: &Listener<Self::Listener>, config: &Config);

    /// Another descriptor of the listener, for a process that takes it over.
    fn share_listener(&self, listener: &Listener<Self::Listener>) -> io::Result<OwnedFd>;
    /// Another descriptor of this connection, for a process that takes it over.
    fn share(&self, socket: &Self::Socket) -> io::Result<OwnedFd>;
    /// Gives a captured tunnel the form in which it leaves this thread.
    fn send_away(&mut self, tunnel: MovedTunnel<OwnedFd, Self::Pipe>) -> MovedTunnel;
    /// Gives a tunnel that comes from another thread or process the form of this thread's.
    fn take_in(&mut self, tunnel: MovedTunnel) -> MovedTunnel<Self::Socket, Self::Pipe>;
}
