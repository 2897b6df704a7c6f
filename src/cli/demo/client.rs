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

/// Asks one relay for tunnels.
#[derive(Clone, Copy)]
pub(super) struct DemoClient {
    pub relay: SocketAddr,
}

/// What a tunnel is to end at.
#[derive(Clone, Copy)]
pub(super) struct DemoTarget {
    pub uuid: DeviceUuid,
    pub port: u16,
}

impl DemoClient {
    /// Opens a tunnel.
    pub fn open(self, target: DemoTarget, token: &str) -> Result<TcpStream, DemoFailure> {
        let (stream, answer) = self.ask(&target.connect(Some(token))).expecting(ESTABLISHED)?;
        ESTABLISHED.check(&answer)?;
        Ok(stream)
    }

    /// Sends `request` and reads the head of the reply, and nothing behind it.
    pub fn ask(self, request: &[u8]) -> io::Result<(TcpStream, RelayReply)> {
        let mut stream = TcpStream::connect_timeout(&self.relay, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(request)?;
        let head = read_head(&mut stream)?;
        Ok((stream, RelayReply { head }))
    }
}

impl DemoTarget {
    /// The request for a tunnel to it.
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

/// Ends a tunnel in good order: the relay is done with it when this returns.
pub(super) fn close(mut tunnel: TcpStream) -> io::Result<()> {
    tunnel.shutdown(Shutdown::Write)?;
    io::copy(&mut tunnel, &mut io::sink()).map(|_| ())
}

/// Reads up to the empty line, and leaves in the socket what follows it: that is the device's.
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

/// The relay ignores it; Basic authentication wants one.
pub(super) const USER: &str = "demo";

/// How long the client waits for anything, on a machine that is busy with other things too.
const PATIENCE: Duration = Duration::from_secs(10);
