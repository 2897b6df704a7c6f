//! The connection to a relay until a tunnel is open on it, by TLS or without, and never for longer than allowed.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use rustls::{ClientConnection, StreamOwned};
use x509_cert::Certificate;
use x509_cert::der::Decode;

/// A connection on which a tunnel can be asked for.
pub enum RelayConnection {
    Plain(DeadlineStream),
    Tls(Box<StreamOwned<ClientConnection, DeadlineStream>>),
}

/// A socket whose reads and writes all come to an end by a moment, which can be put off.
pub struct DeadlineStream {
    socket: TcpStream,
    until: Instant,
}

impl RelayConnection {
    /// Everything from now on comes to an end by `until`.
    pub fn put_off(&mut self, until: Instant) {
        match self {
            Self::Plain(bounded) => bounded.until = until,
            Self::Tls(stream) => stream.sock.until = until,
        }
    }

    /// Until when the relay's certificate is good. `None` without TLS, and where its time cannot be read, though the
    /// certificate was accepted.
    pub fn certificate_expires_at(&self) -> Option<SystemTime> {
        let Self::Tls(stream) = self else { return None };
        let certificate = Certificate::from_der(stream.conn.peer_certificates()?.first()?).ok()?;
        Some(certificate.tbs_certificate().validity().not_after.to_system_time())
    }

    /// Ends in order, so that nobody takes it for a client that was cut off; waits a little for the other end.
    pub fn finish(mut self) {
        self.put_off(Instant::now() + GOODBYE);
        if let Self::Tls(stream) = &mut self {
            stream.conn.send_close_notify();
        }
        // Fails only where the other side has left, which is an end, too.
        let _gone = self.flush();
        if let Self::Plain(bounded) = &self {
            let _gone = bounded.socket.shutdown(Shutdown::Write);
        }
        let _gone = io::copy(&mut (&mut self).take(GOODBYE_BYTES_MAX), &mut io::sink());
    }
}

impl DeadlineStream {
    pub fn new(socket: TcpStream, until: Instant) -> Self {
        Self { socket, until }
    }

    /// The socket, on which reads and writes wait for as long as it takes again.
    pub fn into_socket(self) -> io::Result<TcpStream> {
        self.socket.set_read_timeout(None)?;
        self.socket.set_write_timeout(None)?;
        Ok(self.socket)
    }

    /// Sees what has come and leaves it in the socket.
    pub fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.peek(buffer).map_err(in_words)
    }

    fn left(&self) -> io::Result<Duration> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::Error::new(io::ErrorKind::TimedOut, NO_ANSWER)),
            left => Ok(left),
        }
    }
}

impl Read for DeadlineStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(buffer).map_err(in_words)
    }
}

impl Write for DeadlineStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(bytes).map_err(in_words)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for RelayConnection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(bounded) => bounded.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for RelayConnection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(bounded) => bounded.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(bounded) => bounded.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// The kernel calls a timeout "resource temporarily unavailable".
fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, NO_ANSWER),
        _ => error,
    }
}

const NO_ANSWER: &str = "the relay did not answer in time";

/// For the other side to end, too. A service that goes on meanwhile is reset.
const GOODBYE: Duration = Duration::from_secs(1);

/// Of what still comes in that time.
const GOODBYE_BYTES_MAX: u64 = 64 * 1024;
