//! A client that sends exactly the bytes that a test wants, and sees exactly those that come back.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

/// A CONNECT request in the making.
#[derive(Clone)]
pub struct Request {
    target: String,
    headers: String,
    version: &'static str,
    early: Vec<u8>,
}

/// The reply to a request, with the connection behind it.
pub struct Answer {
    /// The head as it came, its empty line included.
    pub head: Vec<u8>,
    pub status: u16,
    pub reason: String,
    pub stream: TcpStream,
}

impl Request {
    pub fn to(uuid: &str, port: u16) -> Self {
        Self {
            target: format!("{uuid}.balena:{port}"),
            headers: String::new(),
            version: "HTTP/1.1",
            early: Vec::new(),
        }
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header(&format!("Proxy-Authorization: Bearer {token}"))
    }

    pub fn header(mut self, line: &str) -> Self {
        self.headers += &format!("{line}\r\n");
        self
    }

    pub fn http10(mut self) -> Self {
        self.version = "HTTP/1.0";
        self
    }

    /// Bytes that are sent in the same write as the head.
    pub fn early(mut self, bytes: &[u8]) -> Self {
        self.early = bytes.to_vec();
        self
    }

    /// Everything that the client sends at first.
    pub fn bytes(&self) -> Vec<u8> {
        let Self { target, headers, version, early } = self;
        let mut bytes = format!("CONNECT {target} {version}\r\n{headers}\r\n").into_bytes();
        bytes.extend_from_slice(early);
        bytes
    }

    pub fn send(&self, relay: SocketAddr) -> Answer {
        let mut stream = connect(relay);
        stream.write_all(&self.bytes()).unwrap();
        Answer::read(stream)
    }
}

impl Answer {
    /// Sends any bytes at all and reads what is said to them.
    pub fn to_bytes(relay: SocketAddr, bytes: &[u8]) -> Self {
        let mut stream = connect(relay);
        stream.write_all(bytes).unwrap();
        Self::read(stream)
    }

    /// Reads a head from `stream`, and not one byte more.
    pub fn read(mut stream: TcpStream) -> Self {
        let head = read_head(&mut stream).unwrap();
        let text = String::from_utf8_lossy(&head).into_owned();
        let (_, status_line) = text.lines().next().unwrap().split_once(' ').unwrap();
        let (status, reason) = status_line.split_once(' ').unwrap();
        Self { status: status.parse().unwrap(), reason: reason.to_owned(), head, stream }
    }

    /// The connection, where the relay opened the tunnel; else the test ends here.
    #[track_caller]
    pub fn opened(self) -> TcpStream {
        assert_eq!(self.status, 200, "no tunnel: {}", String::from_utf8_lossy(&self.head));
        self.stream
    }

    /// The values of a header, in their order.
    pub fn header(&self, name: &str) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.head);
        text.lines()
            .skip(1)
            .filter_map(|line| line.split_once(": "))
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
            .collect()
    }

    /// The value of `Sluicegate-Reason`.
    pub fn slug(&self) -> Option<String> {
        self.header("Sluicegate-Reason").pop()
    }

    /// All that comes after the head, to the end of the connection.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest)?;
        Ok(rest)
    }
}

/// A connection whose reads and writes fail where a test would otherwise hang.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads to the first empty line, byte by byte, so that none behind it is taken.
pub fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(head)
}
