//! Listening sockets that a service manager opened for this process and left at descriptors 3 and up
//! (`sd_listen_fds(3)`).
//!
//! Unsafe because a descriptor that comes as a number has to be adopted.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{SockRef, Socket};

use super::address::canonical;
use super::silence::{WatchForSilence, watch_for_silence};
use super::socket::BACKLOG;

/// Takes the sockets that were passed to this process. Empty where none were, and at each later call.
pub fn take() -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let numbers = sd_notify::listen_fds()?;
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    // SAFETY: the protocol gives these descriptors to the process whose id LISTEN_PID is, which is ours;
    // they are open, since close-on-exec could be set on them; and `TAKEN` prevents a second adoption.
    Ok(numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect())
}

/// The address that `socket` listens on; `None` where it does not listen for TCP.
pub fn listening_address(socket: &OwnedFd) -> Option<SocketAddr> {
    let socket = SockRef::from(socket);
    let listens = socket.is_listener().ok()? && socket.r#type().ok()? == socket2::Type::STREAM;
    socket.local_addr().ok()?.as_socket().filter(|_| listens).map(canonical)
}

/// True where a listener on an IPv6 address takes IPv4 clients as well. That can no more be changed.
pub fn takes_both_families(socket: &OwnedFd) -> bool {
    SockRef::from(socket).only_v6().is_ok_and(|only_v6| !only_v6)
}

/// Sets on an inherited listener the options that [`super::socket::listen`] sets on its own.
pub fn make_ours(socket: OwnedFd, options: WatchForSilence) -> io::Result<OwnedFd> {
    let socket = Socket::from(socket);
    // The ring waits for a client only where the socket itself would block.
    socket.set_nonblocking(false)?;
    socket.set_tcp_nodelay(true)?;
    watch_for_silence(&socket, options)?;
    // Listening again is how the backlog of a listener is changed.
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
