//! Non-blocking sockets and the calls on them, with "would block" told apart from an error.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv, send};
use socket2::{Domain, Protocol, Socket, Type};

/// How a call on a socket went.
pub enum Done {
    Bytes(usize),
    WouldBlock,
    Ended,
}

pub fn listen() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
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
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::from((from, 0)).into())?;
    }
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

pub fn write(socket: &Socket, bytes: &[u8]) -> io::Result<Done> {
    told(send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).map(|sent| sent.max(1)))
}

pub fn read(socket: &Socket, into: &mut [u8]) -> io::Result<Done> {
    told(recv(socket.as_raw_fd(), into, MsgFlags::empty()))
}

/// Takes up to `scratch.len()` bytes off the socket without copying them anywhere (tcp(7), MSG_TRUNC).
pub fn discard(socket: &Socket, scratch: &mut [u8]) -> io::Result<Done> {
    told(recv(socket.as_raw_fd(), scratch, MsgFlags::MSG_TRUNC))
}

fn told(result: nix::Result<usize>) -> io::Result<Done> {
    match result {
        Ok(0) => Ok(Done::Ended),
        Ok(bytes) => Ok(Done::Bytes(bytes)),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(Done::WouldBlock),
        Err(error) => Err(error.into()),
    }
}

const BACKLOG: i32 = 4096;

/// Loopback addresses that clients connect from.
const SOURCES: u64 = 50;
