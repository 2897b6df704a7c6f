//! Bytes both ways through a tunnel by TLS, by one thread that waits for whichever side can go on.
//!
//! Nothing is read before what was read last has gone on, so a side that does not read stops the other, and what
//! is held is two chunks at most. An end goes on by itself, as close_notify one way and as FIN or a closed stdout
//! the other. An end without close_notify is none: somebody may have cut the rest off.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send, shutdown};
use rustls::ClientConnection;
use socket2::SockRef;

use super::forward::{CHUNK_BYTES, TunnelEnd};

/// What the tunnel serves: one socket twice, or stdin and stdout. Need not be non-blocking.
pub(super) struct LocalEnd {
    pub(super) input: OwnedFd,
    pub(super) output: OwnedFd,
}

/// Forwards until both directions have ended; after a failure, the tunnel ends by a reset.
pub(super) fn carry(tls: ClientConnection, tunnel: TcpStream, local: LocalEnd) -> TunnelEnd {
    let mut carrier = TlsCarrier {
        tls,
        tunnel,
        input: Some(local.input),
        output: Some(local.output),
        taken: vec![0; CHUNK_BYTES].into_boxed_slice(),
        chunk: vec![0; CHUNK_BYTES].into_boxed_slice(),
        undelivered: 0..0,
    };
    match carrier.run() {
        Ok(()) => TunnelEnd::Whole,
        Err(error) => {
            // An alert says why, where there is one and room for it.
            let _gone = carrier.flush();
            let _gone = SockRef::from(&carrier.tunnel).set_linger(Some(Duration::ZERO));
            TunnelEnd::Broken(error)
        }
    }
}

struct TlsCarrier {
    tls: ClientConnection,
    tunnel: TcpStream,
    /// `None` once its end has been read.
    input: Option<OwnedFd>,
    /// `None` once the device's end has been passed on.
    output: Option<OwnedFd>,
    /// Room for what the input says next.
    taken: Box<[u8]>,
    /// What the tunnel said last.
    chunk: Box<[u8]>,
    /// What of `chunk` is still to be written to the output.
    undelivered: Range<usize>,
}

/// What can go on.
#[derive(Default)]
struct ReadySides {
    input: bool,
    tunnel: bool,
}

impl TlsCarrier {
    fn run(&mut self) -> io::Result<()> {
        self.tunnel.set_nonblocking(true)?;
        self.tls.set_buffer_limit(None);
        loop {
            self.flush()?;
            self.deliver()?;
            if self.input.is_none() && self.output.is_none() && !self.tls.wants_write() {
                // Fails where the relay has left, which has heard all there was.
                let _gone = self.tunnel.shutdown(Shutdown::Write);
                return Ok(());
            }
            let ready = self.wait()?;
            if ready.input {
                self.take_from_input()?;
            }
            if ready.tunnel {
                self.take_from_tunnel()?;
            }
        }
    }

    /// Writes to the tunnel what there is, until it takes no more.
    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.tunnel) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes to the output what has come, until it takes no more or nothing is left.
    fn deliver(&mut self) -> io::Result<()> {
        while let Some(output) = &self.output {
            if !self.undelivered.is_empty() {
                match write_some(output.as_fd(), &self.chunk[self.undelivered.clone()])? {
                    0 => return Ok(()),
                    written => self.undelivered.start += written,
                }
                continue;
            }
            match self.tls.reader().read(&mut self.chunk) {
                Ok(0) => {
                    // No socket, where it is a pipe or a file; then closing it says the same.
                    let _no_socket = shutdown(output.as_raw_fd(), nix::sys::socket::Shutdown::Write);
                    self.output = None;
                }
                Ok(len) => self.undelivered = 0..len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(io::Error::new(error.kind(), TRUNCATED));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<ReadySides> {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::POLLOUT, self.tls.wants_write());
        wanted.set(PollFlags::POLLIN, self.reads_tunnel());
        // Where nothing is wanted of the tunnel but for a local side to go on, its failure can wait for that: poll
        // would tell it again and again. Where only the program's next bytes are waited for, it is told at once.
        let is_watched = !wanted.is_empty() || self.output.is_none();
        let tunnel = is_watched.then(|| PollFd::new(self.tunnel.as_fd(), wanted));
        let input = self.input.as_ref().filter(|_| !self.tls.wants_write());
        let input = input.map(|input| PollFd::new(input.as_fd(), PollFlags::POLLIN));
        let output = self.output.as_ref().filter(|_| !self.undelivered.is_empty());
        let output = output.map(|output| PollFd::new(output.as_fd(), PollFlags::POLLOUT));
        let (has_tunnel, has_input) = (tunnel.is_some(), input.is_some());
        let mut fds: Vec<PollFd<'_>> = [tunnel, input, output].into_iter().flatten().collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(ReadySides::default()),
            Err(error) => return Err(error.into()),
        }
        let is_ready = |index: usize| fds[index].any().unwrap_or(false);
        let tunnel = has_tunnel && is_ready(0);
        if tunnel && wanted.is_empty() {
            let error = self.tunnel.take_error()?;
            return Err(error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()));
        }
        Ok(ReadySides { input: has_input && is_ready(usize::from(has_tunnel)), tunnel })
    }

    /// Only once all that came before is delivered.
    fn reads_tunnel(&self) -> bool {
        self.output.is_some() && self.undelivered.is_empty() && self.tls.wants_read()
    }

    fn take_from_input(&mut self) -> io::Result<()> {
        let Some(input) = &self.input else { return Ok(()) };
        match nix::unistd::read(input, &mut self.taken) {
            Ok(0) => {
                self.tls.send_close_notify();
                self.input = None;
                Ok(())
            }
            Ok(len) => self.tls.writer().write_all(&self.taken[..len]),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads until there is something to deliver, or no more for now.
    fn take_from_tunnel(&mut self) -> io::Result<()> {
        while self.reads_tunnel() {
            let came = match self.tls.read_tls(&mut self.tunnel) {
                Ok(came) => came,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.tls
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if came == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// Writes what can be written at once; 0 where nothing can.
fn write_some(output: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let written = match send(output.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
        Err(Errno::ENOTSOCK) => {
            // Others may share it, so it is not ours to be made non-blocking. One that is ready takes a page.
            let mut fds = [PollFd::new(output, PollFlags::POLLOUT)];
            match poll(&mut fds, PollTimeout::ZERO) {
                Ok(1..) => nix::unistd::write(output, &bytes[..bytes.len().min(PAGE_BYTES)]),
                other => other.map(|_| 0),
            }
        }
        other => other,
    };
    match written {
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
        other => Ok(other?),
    }
}

const TRUNCATED: &str = "the connection ended without TLS's close_notify, so something may be missing";

/// What a pipe surely takes once poll says that it takes something.
const PAGE_BYTES: usize = 4096;
