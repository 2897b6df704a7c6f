//! Sockets and the calls on them, none of which waits, with "would block" told apart from an error.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Protocol, Socket, Type};

/// The result of a call on a socket.
pub enum Done {
    Bytes(usize),
    WouldBlock,
    Ended,
}

/// A listener whose connections inherit that they send at once and end with a reset.
pub fn listen() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    // Whoever ends first, no relay's port is left in TIME_WAIT towards us.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// The next connection that waits; `None` where none does.
pub fn accept(listener: &Socket) -> io::Result<Option<Socket>> {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    match listener.accept() {
        Ok((socket, _)) => Ok(Some(socket)),
        Err(error) if matches!(error.kind(), WouldBlock | ConnectionAborted | Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Begins to connect. `number` spreads the clients over loopback addresses, so that one's ports do not
/// run out.
pub fn connect(to: SocketAddr, number: u64) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    // A reset leaves nothing in TIME_WAIT, on either side.
    socket.set_linger(Some(Duration::ZERO))?;
    if to.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
        let from = Ipv4Addr::new(127, 0, 0, 1 + (number % SOURCES) as u8);
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::from((from, 0)).into())?;
    }
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(socket),
    }
}

pub fn write(socket: &Socket, bytes: &[u8]) -> io::Result<Done> {
    told(send(socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL))
}

pub fn read(socket: &Socket, into: &mut [u8]) -> io::Result<Done> {
    told(recv(socket.as_raw_fd(), into, MsgFlags::MSG_DONTWAIT))
}

/// Takes up to `room.len()` bytes off the socket without copying them anywhere (tcp(7), MSG_TRUNC).
pub fn discard(socket: &Socket, room: &mut [u8]) -> io::Result<Done> {
    told(recv(socket.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC))
}

/// An error in the words that reports have for it.
pub fn broke(error: &io::Error) -> String {
    format!("a connection broke: {error}")
}

/// Tells "would block" apart from an error.
pub fn told(result: nix::Result<usize>) -> io::Result<Done> {
    match result {
        Ok(0) => Ok(Done::Ended),
        Ok(bytes) => Ok(Done::Bytes(bytes)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(Done::WouldBlock),
        Err(error) => Err(error.into()),
    }
}

const BACKLOG: i32 = 4096;

/// Loopback addresses that clients connect from.
const SOURCES: u64 = 50;
