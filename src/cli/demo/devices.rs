//! Devices that listen, each on a loopback address of its own, and ports that do not answer.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::noise;

/// A listener with a thread for each connection. Dropping it ends the listener.
pub(super) struct DemoDevice {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    acceptor: Option<JoinHandle<()>>,
}

/// A port that is taken, and that nobody listens on. A connection to it is refused.
pub(super) struct ClosedPort {
    address: SocketAddr,
    socket: Socket,
}

/// A port whose listener accepts no more connections. A client gets no answer.
pub(super) struct SilentPort {
    port: ClosedPort,
    /// Connections that fill the backlog.
    _waiting: Vec<TcpStream>,
}

impl DemoDevice {
    /// Serves `page` over HTTP/1.1, one request per connection.
    pub fn web(address: Ipv4Addr, page: String) -> io::Result<Self> {
        Self::web_on(SocketAddr::from((address, 0)), page)
    }

    /// Serves `page` at this address and port.
    pub fn web_on(address: SocketAddr, page: String) -> io::Result<Self> {
        Self::start("web", address, move |stream| serve_page(stream, &page))
    }

    /// Reads a line and carries it out: `echo`, `take BYTES` or `send BYTES`. The latter two end with a line with
    /// the checksum at this end.
    pub fn echo(address: Ipv4Addr) -> io::Result<Self> {
        Self::start("echo", SocketAddr::from((address, 0)), serve_line)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn start(
        name: &str,
        address: SocketAddr,
        serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = Arc::new(TcpListener::bind(address)?);
        let address = listener.local_addr()?;
        let accepting = Arc::clone(&listener);
        let serve = Arc::new(serve);
        let thread = std::thread::Builder::new().name(name.to_owned());
        let acceptor = thread.spawn(move || {
            // The loop ends with the first error. Dropping the device causes one.
            while let Ok((stream, _)) = accepting.accept() {
                if Arc::strong_count(&serve) <= CONNECTIONS_MAX {
                    let serve = Arc::clone(&serve);
                    // A connection that fails is closed, and its client sees that.
                    std::thread::spawn(move || drop(serve(stream)));
                }
            }
        })?;
        Ok(Self { address, listener, acceptor: Some(acceptor) })
    }
}

impl Drop for DemoDevice {
    fn drop(&mut self) {
        // Wakes the thread that waits in accept.
        let is_shut = SockRef::from(&*self.listener).shutdown(Shutdown::Both).is_ok();
        if let Some(acceptor) = self.acceptor.take().filter(|_| is_shut) {
            // A panic of the thread has shown in the steps of the demo.
            let _ = acceptor.join();
        }
    }
}

impl ClosedPort {
    pub fn bind(address: IpAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address((address, 0).into()), Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((address, 0)).into())?;
        let address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        Ok(Self { address, socket })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl SilentPort {
    pub fn bind(address: IpAddr) -> io::Result<Self> {
        let port = ClosedPort::bind(address)?;
        // A backlog for one connection, the least that Linux gives.
        port.socket.listen(0)?;
        let mut waiting = Vec::new();
        while waiting.len() < WAITING_MAX {
            match TcpStream::connect_timeout(&port.address, FULL_AFTER) {
                Ok(stream) => waiting.push(stream),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Ok(Self { port, _waiting: waiting });
                }
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("this machine takes connections beyond a listener's backlog"))
    }

    pub fn port(&self) -> u16 {
        self.port.port()
    }
}

fn serve_page(mut stream: TcpStream, page: &str) -> io::Result<()> {
    let mut request = String::new();
    let mut reader = BufReader::new((&stream).take(REQUEST_BYTES_MAX));
    while reader.read_line(&mut request)? > 2 {}
    let (status, body) = match request.lines().next().unwrap_or_default().split(' ').collect::<Vec<_>>()[..] {
        ["GET", "/", _] => ("200 OK", page),
        ["GET", ..] => ("404 Not Found", "This device has one page: /\n"),
        _ => ("501 Not Implemented", "This device answers GET alone.\n"),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())
}

fn serve_line(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut line = String::new();
    // A buffer of one byte leaves what follows the line in the socket.
    BufReader::with_capacity(1, (&stream).take(LINE_BYTES_MAX)).read_line(&mut line)?;
    let checksum = match line.trim_end().split_once(' ') {
        None if line == "echo\n" => return echo(&mut stream),
        Some(("take", bytes)) => noise::receive(&mut stream, parse(bytes)?, |_| Ok(()))?,
        Some(("send", bytes)) => noise::send(&mut stream, parse(bytes)?, |_| Ok(()))?,
        _ => return stream.write_all(b"say: echo, take BYTES or send BYTES\n"),
    };
    stream.write_all(format!("{}\n", checksum.to_line()).as_bytes())
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let mut bytes = [0; 16 * 1024];
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            len => stream.write_all(&bytes[..len])?,
        }
    }
}

fn parse(bytes: &str) -> io::Result<u64> {
    bytes.parse().map_err(io::Error::other)
}

/// Connections of one device. The relay's limit for a device is lower.
const CONNECTIONS_MAX: usize = 64;

const REQUEST_BYTES_MAX: u64 = 8 * 1024;

const LINE_BYTES_MAX: u64 = 64;

/// Linux takes one connection more than a backlog of 0 says. A system that takes more has no limit.
const WAITING_MAX: usize = 8;

/// Time after which a connection to a full listener counts as unanswered.
const FULL_AFTER: Duration = Duration::from_millis(150);
