//! The demo's client: a blocking socket and the bytes of a CONNECT.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::answer::{ESTABLISHED, RelayReply};
use super::steps::{DemoFailure, Expecting};
use crate::authz::DeviceUuid;

/// A client of one relay.
#[derive(Clone, Copy)]
pub(super) struct DemoClient {
    pub relay: SocketAddr,
}

/// End of a tunnel.
#[derive(Clone, Copy)]
pub(super) struct DemoTarget {
    pub uuid: DeviceUuid,
    pub port: u16,
}

impl DemoClient {
    /// Opens a tunnel.
    pub fn open(self, target: DemoTarget, token: &str) -> Result<TcpStream, DemoFailure> {
        let (stream, answer) = self.request(&target.connect(Some(token))).expecting(ESTABLISHED)?;
        ESTABLISHED.check(&answer)?;
        Ok(stream)
    }

    /// Sends `request` and reads the head of the reply, and nothing after it.
    pub fn request(self, request: &[u8]) -> io::Result<(TcpStream, RelayReply)> {
        let mut stream = TcpStream::connect_timeout(&self.relay, TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.write_all(request)?;
        let head = read_head(&mut stream)?;
        Ok((stream, RelayReply { head }))
    }
}

impl DemoTarget {
    /// Request for a tunnel to this target.
    pub fn connect(self, token: Option<&str>) -> Vec<u8> {
        let authorization = token.map_or_else(String::new, |token| {
            let credentials = STANDARD.encode(format!("{USER}:{token}"));
            format!("Proxy-Authorization: Basic {credentials}\r\n")
        });
        format!("CONNECT {self} HTTP/1.1\r\nHost: {self}\r\n{authorization}\r\n").into_bytes()
    }
}

impl fmt::Display for DemoTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.balena:{}", self.uuid, self.port)
    }
}

/// Closes a tunnel in order. The relay is done with it when this returns.
pub(super) fn close(mut tunnel: TcpStream) -> io::Result<()> {
    tunnel.shutdown(Shutdown::Write)?;
    io::copy(&mut tunnel, &mut io::sink()).map(|_| ())
}

/// Reads up to the empty line. The bytes after it come from the device and stay in the socket.
fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut peeked = [0; 1024];
    loop {
        let len = stream.peek(&mut peeked)?;
        let text = String::from_utf8_lossy(&peeked[..len]);
        if let Some(end) = text.find("\r\n\r\n") {
            let mut head = vec![0; end + 4];
            stream.read_exact(&mut head)?;
            return Ok(String::from_utf8_lossy(&head).into_owned());
        }
        if len == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a close with no reply"));
        }
        if len == peeked.len() {
            return Err(io::Error::other(format!("no reply but {text:?}")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Basic authentication requires a user name; the relay ignores it.
pub(super) const USER: &str = "demo";

/// Time limit for every answer, on a machine that may be busy.
const TIMEOUT: Duration = Duration::from_secs(10);
