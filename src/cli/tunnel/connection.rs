//! The connection to a relay, plain or with TLS, until a tunnel is open on it. Every operation has a time limit.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use rustls::{ClientConnection, StreamOwned};
use x509_cert::Certificate;
use x509_cert::der::Decode;

/// A connection on which a client requests a tunnel.
pub enum RelayConnection {
    Plain(DeadlineStream),
    Tls(Box<StreamOwned<ClientConnection, DeadlineStream>>),
}

/// A socket whose reads and writes fail after a deadline, which can be moved.
pub struct DeadlineStream {
    socket: TcpStream,
    deadline: Instant,
}

impl RelayConnection {
    /// Sets the deadline of all operations from now on.
    pub fn set_deadline(&mut self, deadline: Instant) {
        match self {
            Self::Plain(bounded) => bounded.deadline = deadline,
            Self::Tls(stream) => stream.sock.deadline = deadline,
        }
    }

    /// Expiry of the relay's certificate. `None` without TLS, and where the time cannot be read from an accepted
    /// certificate.
    pub fn certificate_expires_at(&self) -> Option<SystemTime> {
        let Self::Tls(stream) = self else { return None };
        let certificate = Certificate::from_der(stream.conn.peer_certificates()?.first()?).ok()?;
        Some(certificate.tbs_certificate().validity().not_after.to_system_time())
    }

    /// Closes the connection in order, so that the relay does not log a client that was cut off. Waits a moment for
    /// the other end.
    pub fn finish(mut self) {
        self.set_deadline(Instant::now() + CLOSING_TIME);
        if let Self::Tls(stream) = &mut self {
            stream.conn.send_close_notify();
        }
        // A failure means that the other side has left, which is also an end.
        let _gone = self.flush();
        if let Self::Plain(bounded) = &self {
            let _gone = bounded.socket.shutdown(Shutdown::Write);
        }
        let _gone = io::copy(&mut (&mut self).take(CLOSING_BYTES_MAX), &mut io::sink());
    }
}

impl DeadlineStream {
    pub fn new(socket: TcpStream, deadline: Instant) -> Self {
        Self { socket, deadline }
    }

    /// Returns the socket, without a deadline.
    pub fn into_socket(self) -> io::Result<TcpStream> {
        self.socket.set_read_timeout(None)?;
        self.socket.set_write_timeout(None)?;
        Ok(self.socket)
    }

    /// Reads bytes and leaves them in the socket.
    pub fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.peek(buffer).map_err(with_clear_timeout)
    }

    fn left(&self) -> io::Result<Duration> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::Error::new(io::ErrorKind::TimedOut, NO_ANSWER)),
            left => Ok(left),
        }
    }
}

impl Read for DeadlineStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(buffer).map_err(with_clear_timeout)
    }
}

impl Write for DeadlineStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(bytes).map_err(with_clear_timeout)
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

/// Replaces the kernel's error for a timeout, "resource temporarily unavailable".
fn with_clear_timeout(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, NO_ANSWER),
        _ => error,
    }
}

const NO_ANSWER: &str = "the relay did not answer in time";

/// Time for the other side to close. A service that still sends then gets a reset.
const CLOSING_TIME: Duration = Duration::from_secs(1);

/// Bytes that are read in that time.
const CLOSING_BYTES_MAX: u64 = 64 * 1024;
