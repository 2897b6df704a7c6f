//! A connection to an OpenVPN server's management interface. Each line, in or out, has a deadline.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::OpenVpnInterface;

pub(super) struct ManagementConnection {
    reader: BufReader<Socket>,
    line: LineBuffer,
}

/// The line that is being read. It holds no more than [`LINE_BYTES_MAX`] bytes of it.
#[derive(Default)]
pub(in crate::store::presence) struct LineBuffer(Vec<u8>);

impl LineBuffer {
    /// Takes bytes up to the end of the line. Returns their number, and the line without its end once it is whole.
    pub(in crate::store::presence) fn take(&mut self, bytes: &[u8]) -> (usize, Option<String>) {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let part = &bytes[..end.unwrap_or(bytes.len())];
        // Bytes over the limit are read and dropped.
        let room = LINE_BYTES_MAX - self.0.len();
        self.0.extend_from_slice(&part[..part.len().min(room)]);
        let taken = part.len() + usize::from(end.is_some());
        let line = end.map(|_| {
            let line = std::mem::take(&mut self.0);
            String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned()
        });
        (taken, line)
    }
}

impl ManagementConnection {
    pub(super) fn open(at: &OpenVpnInterface) -> io::Result<Self> {
        let socket = match at {
            OpenVpnInterface::Path(path) => connect_unix(path)?,
            OpenVpnInterface::Tcp(address) => connect_tcp(address)?,
        };
        socket.set_write_timeout(Some(WRITE_TIMEOUT))?;
        Ok(Self { reader: BufReader::new(socket), line: LineBuffer::default() })
    }

    pub(super) fn send(&self, command: &str) -> io::Result<()> {
        let mut stream = self.reader.get_ref();
        stream.write_all(format!("{command}\n").as_bytes())
    }

    /// Reads the next line, without its end. `None` if there is none by `until`.
    pub(super) fn line(&mut self, until: Instant) -> io::Result<Option<String>> {
        loop {
            let left = until.saturating_duration_since(Instant::now()).max(READ_TIMEOUT_MIN);
            self.reader.get_ref().set_read_timeout(Some(left))?;
            let bytes = match self.reader.fill_buf() {
                Ok([]) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => bytes,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let (taken, line) = self.line.take(bytes);
            self.reader.consume(taken);
            if line.is_some() {
                return Ok(line);
            }
            if Instant::now() >= until {
                return Ok(None);
            }
        }
    }

    /// The bytes of a line that has not ended.
    pub(super) fn unfinished(&self) -> &[u8] {
        &self.line.0
    }
}

/// Connects. Fails at once if the queue of the server's socket is full.
fn connect_unix(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A blocking socket would wait for room in the queue without end.
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    socket.set_nonblocking(false)?;
    Ok(socket)
}

/// Connects to the first address that accepts.
fn connect_tcp(address: &str) -> io::Result<Socket> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream.into()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Longest wait for a server at one address over TCP. It is on this machine, or near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Size limit of a line. The longest lines are certificates in notifications.
pub(in crate::store::presence) const LINE_BYTES_MAX: usize = 8 * 1024;

/// Longest wait for a server to take a command of a few bytes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Shortest read timeout. Zero would mean to wait without end.
const READ_TIMEOUT_MIN: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::PathBuf;

    use super::*;

    fn open(path: PathBuf) -> io::Result<ManagementConnection> {
        ManagementConnection::open(&OpenVpnInterface::Path(path))
    }

    fn connected() -> (ManagementConnection, UnixStream) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("management");
        let listener = UnixListener::bind(&path).unwrap();
        let connection = open(path).unwrap();
        (connection, listener.accept().unwrap().0)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    #[test]
    fn a_line_that_comes_in_parts_is_one_line() {
        let (mut connection, mut server) = connected();
        server.write_all(b"SUCC").unwrap();
        assert_eq!(connection.line(soon()).unwrap(), None);
        assert_eq!(connection.unfinished(), b"SUCC");
        server.write_all(b"ESS: pid=1\r\nEND\n").unwrap();
        let mut read = || connection.line(Instant::now() + WRITE_TIMEOUT).unwrap();
        assert_eq!(read().as_deref(), Some("SUCCESS: pid=1"));
        assert_eq!(read().as_deref(), Some("END"));
    }

    #[test]
    fn a_line_without_end_is_cut_and_the_next_one_is_whole() {
        let (mut connection, mut server) = connected();
        let sender = std::thread::spawn(move || {
            server.write_all(&vec![b'x'; 10 * LINE_BYTES_MAX]).unwrap();
            server.write_all(b"\nEND\n").unwrap();
            server
        });
        let late = Instant::now() + Duration::from_secs(60);
        assert_eq!(connection.line(late).unwrap().unwrap().len(), LINE_BYTES_MAX);
        assert_eq!(connection.line(late).unwrap().as_deref(), Some("END"));
        drop(sender.join().unwrap());
        assert_eq!(connection.line(late).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_socket_whose_queue_is_full_is_an_error_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("management");
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let _queued = open(path.clone()).unwrap();
        assert_eq!(open(path).err().unwrap().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn a_server_over_tcp_is_asked_in_the_same_way() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut connection = ManagementConnection::open(&OpenVpnInterface::Tcp(address)).unwrap();
        let mut server = BufReader::new(listener.accept().unwrap().0);
        connection.send("status 3").unwrap();
        let mut asked = String::new();
        server.read_line(&mut asked).unwrap();
        assert_eq!(asked, "status 3\n");
        server.get_mut().write_all(b"END\r\n").unwrap();
        let line = connection.line(Instant::now() + WRITE_TIMEOUT).unwrap();
        assert_eq!(line.as_deref(), Some("END"));
        assert_eq!(connection.line(soon()).unwrap(), None, "a silent server");
    }
}
