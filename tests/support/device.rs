//! Devices: what listens where the relay dials.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::PATIENCE;
use super::client::connect;

pub const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Every address of this machine: for one listener that stands for several devices.
pub const ALL_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
pub const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A listening socket. Gives its connections to the test, unless it was made to serve them itself.
pub struct Device {
    listener: TcpListener,
    address: SocketAddr,
}

impl Device {
    /// Listens, and has the test do the rest by [`Device::accept`].
    pub fn listening(ip: IpAddr) -> Self {
        Self::listening_at((ip, 0).into())
    }

    fn listening_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        SockRef::from(&listener).set_read_timeout(Some(PATIENCE)).unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    /// Sends back what it gets.
    pub fn echo(ip: IpAddr) -> Self {
        Self::echo_at((ip, 0).into())
    }

    /// Starts a [`Device::echo`] on an address chosen by the test.
    pub fn echo_at(address: SocketAddr) -> Self {
        Self::serving_at(address, |mut socket| {
            let mut source = socket.try_clone().unwrap();
            let _whatever_ended_it = std::io::copy(&mut source, &mut socket);
        })
    }

    /// Answers each request with `body`, then closes.
    pub fn http(body: &'static [u8]) -> Self {
        Self::http_at((V4, 0).into(), body)
    }

    /// Starts a [`Device::http`] on an address chosen by the test.
    pub fn http_at(address: SocketAddr, body: &'static [u8]) -> Self {
        Self::serving_at(address, move |mut socket| {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && matches!(socket.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            let _gone = socket.write_all(head.as_bytes());
            let _gone = socket.write_all(body);
        })
    }

    /// Has `serve` deal with each connection, in a thread of its own.
    pub fn serving(ip: IpAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::serving_at((ip, 0).into(), serve)
    }

    fn serving_at(address: SocketAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let device = Self::listening_at(address);
        let listener = device.listener.try_clone().unwrap();
        SockRef::from(&listener).set_read_timeout(None).unwrap();
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                let serve = Arc::clone(&serve);
                socket.set_nodelay(true).unwrap();
                std::thread::spawn(move || serve(socket));
            }
        });
        device
    }

    /// A port that answers nobody: its backlog is full, so what else comes is dropped without a word.
    pub fn silent() -> Silent {
        Self::silent_at(V4)
    }

    /// A [`Device::silent`] at an IPv4 address chosen by the test.
    pub fn silent_at(ip: IpAddr) -> Silent {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((ip, 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let mut fillers = Vec::new();
        while let Ok(filler) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            fillers.push(filler);
        }
        Silent { _socket: socket, _fillers: fillers, port: address.port() }
    }

    /// A port on which nothing listens.
    pub fn closed_port() -> u16 {
        Self::listening(V4).port()
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection.
    pub fn accept(&self) -> TcpStream {
        let (socket, _) = self.listener.accept().unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// True if anybody has connected since the last call.
    pub fn was_connected_to(&self) -> bool {
        self.listener.set_nonblocking(true).unwrap();
        self.listener.accept().is_ok()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Wakes the thread that accepts, if there is one.
        let _none_left = SockRef::from(&self.listener).shutdown(Shutdown::Both);
    }
}

/// The listener that [`Device::silent`] holds open.
pub struct Silent {
    _socket: Socket,
    _fillers: Vec<TcpStream>,
    pub port: u16,
}

/// Has the peer see a reset.
pub fn reset(socket: TcpStream) {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
}
