//! TCP sockets with the options that a relay needs, and the direct system calls on them.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv, send};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::address::canonical;
use super::silence::{WatchForSilence, watch_for_silence};

/// Opens a listener for the calling thread; the kernel spreads clients over all listeners of one address. One on an
/// IPv6 address takes IPv6 clients alone.
/// Accepted sockets inherit `options`, so that an accept needs no call for each option.
pub fn listen(address: SocketAddr, options: WatchForSilence) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_tcp_nodelay(true)?;
    watch_for_silence(&socket, options)?;
    bind(&socket, address)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Fails where another process listens on `address`. [`listen`] alone would not notice: it shares the address
/// with any other process of the same user that does the same.
pub fn check_free(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    bind(&socket, address)?;
    socket.listen(1)
}

/// Opens a listener of its own for a thread that does not use a ring. It takes clients as [`listen`] does.
pub fn listen_alone(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    bind(&socket, address)?;
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Binds to an address that this machine may get only later: at boot, a network can come after the relay. Until then
/// nobody can connect.
fn bind(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match socket.bind(&address.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {
            match address {
                SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
                SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
            }
            socket.bind(&address.into())
        }
        bound => bound,
    }
}

/// Opens a non-blocking socket for a connection to `to`, bound to `interface` where one is given.
pub fn open(to: SocketAddr, interface: Option<&str>) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if let Some(interface) = interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// The address that a listener is bound to.
pub fn local_address(socket: &impl AsFd) -> io::Result<SocketAddr> {
    SockRef::from(socket).local_addr()?.as_socket().ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The peer's address in its one form; `None` where the connection is gone already.
pub fn peer_address(socket: &impl AsFd) -> Option<SocketAddr> {
    SockRef::from(socket).peer_addr().ok()?.as_socket().map(canonical)
}

/// Sends without a wait; `WouldBlock` where there is no room.
pub fn send_now(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    Ok(send(socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?)
}

/// Receives into `room` without a wait; 0 at the end of the stream, `WouldBlock` where nothing has arrived.
pub fn receive_now(socket: BorrowedFd<'_>, room: &mut [u8]) -> io::Result<usize> {
    Ok(recv(socket.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT)?)
}

/// Sends a FIN after all bytes. A connection that is gone already needs none.
pub fn shut_write(socket: &impl AsFd) {
    let _gone_already = SockRef::from(socket).shutdown(Shutdown::Write);
}

/// Makes closing this socket send a reset instead of a FIN.
pub fn reset_on_close(socket: &impl AsFd) {
    let _gone_already = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Connections that may wait for an accept, per listener; the kernel limits it to `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 4096;
