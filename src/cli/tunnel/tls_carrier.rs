//! Forwards bytes both ways through a tunnel with TLS, on one thread that polls all ends.
//!
//! A chunk is written before the next is read. So a side that does not read stops the other side, and at most two
//! chunks are held. An end is passed on: as close_notify one way, and as FIN or a closed stdout the other way. An
//! end without close_notify is an error, since an attacker may have cut off the rest.

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

use super::forward::{BrokenEnd, CHUNK_BYTES, TunnelEnd};
use crate::wire::explain;

/// The local end of the tunnel: one socket twice, or stdin and stdout. It may be blocking.
pub(super) struct LocalEnd {
    pub(super) input: OwnedFd,
    pub(super) output: OwnedFd,
}

/// Forwards until both directions have ended. After a failure, the tunnel ends by a reset.
pub(super) fn carry(tls: ClientConnection, tunnel: TcpStream, local: LocalEnd) -> TunnelEnd {
    let mut carrier = TlsCarrier {
        tls,
        tunnel,
        input: Some(local.input),
        output: Some(local.output),
        input_buffer: vec![0; CHUNK_BYTES].into_boxed_slice(),
        chunk: vec![0; CHUNK_BYTES].into_boxed_slice(),
        unwritten: 0..0,
    };
    match carrier.run() {
        Ok(()) => TunnelEnd::Whole,
        Err(error) => {
            // A pending alert explains the failure to the relay.
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
    /// Buffer for the next bytes of the input.
    input_buffer: Box<[u8]>,
    /// The last bytes from the tunnel.
    chunk: Box<[u8]>,
    /// Part of `chunk` that is still to be written to the output.
    unwritten: Range<usize>,
}

/// Ends that have something to read.
#[derive(Default)]
struct ReadySides {
    input: bool,
    tunnel: bool,
}

impl TlsCarrier {
    fn run(&mut self) -> Result<(), BrokenEnd> {
        self.tunnel.set_nonblocking(true)?;
        self.tls.set_buffer_limit(None);
        loop {
            self.flush()?;
            self.write_output()?;
            if self.input.is_none() && self.output.is_none() && !self.tls.wants_write() {
                // A failure means that the relay has left, and it has read everything.
                let _gone = self.tunnel.shutdown(Shutdown::Write);
                return Ok(());
            }
            let ready = self.wait()?;
            if ready.input {
                self.read_input()?;
            }
            if ready.tunnel {
                self.read_tunnel()?;
            }
        }
    }

    /// Writes pending TLS records to the tunnel, until it would block.
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

    /// Writes received bytes to the output, until it would block or nothing is left.
    fn write_output(&mut self) -> Result<(), BrokenEnd> {
        while let Some(output) = &self.output {
            if !self.unwritten.is_empty() {
                let unwritten = &self.chunk[self.unwritten.clone()];
                match write_some(output.as_fd(), unwritten).map_err(BrokenEnd::Output)? {
                    0 => return Ok(()),
                    written => self.unwritten.start += written,
                }
                continue;
            }
            match self.tls.reader().read(&mut self.chunk) {
                Ok(0) => {
                    // A pipe or a file is no socket; closing it has the same effect.
                    let _no_socket = shutdown(output.as_raw_fd(), nix::sys::socket::Shutdown::Write);
                    self.output = None;
                }
                Ok(len) => self.unwritten = 0..len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(io::Error::new(error.kind(), TRUNCATED).into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<ReadySides> {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::POLLOUT, self.tls.wants_write());
        wanted.set(PollFlags::POLLIN, self.reads_tunnel());
        // Where we only wait for a local side to go on, do not poll the tunnel: poll would report its failure again
        // and again. Where we only wait for the program's next bytes, poll the tunnel, so that its failure ends us
        // at once.
        let is_watched = !wanted.is_empty() || self.output.is_none();
        let tunnel = is_watched.then(|| PollFd::new(self.tunnel.as_fd(), wanted));
        let input = self.input.as_ref().filter(|_| !self.tls.wants_write());
        let input = input.map(|input| PollFd::new(input.as_fd(), PollFlags::POLLIN));
        let output = self.output.as_ref().filter(|_| !self.unwritten.is_empty());
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

    /// Tests whether to read from the tunnel: only once everything before was delivered.
    fn reads_tunnel(&self) -> bool {
        self.output.is_some() && self.unwritten.is_empty() && self.tls.wants_read()
    }

    fn read_input(&mut self) -> Result<(), BrokenEnd> {
        let Some(input) = &self.input else { return Ok(()) };
        match nix::unistd::read(input, &mut self.input_buffer) {
            Ok(0) => {
                self.tls.send_close_notify();
                self.input = None;
                Ok(())
            }
            Ok(len) => Ok(self.tls.writer().write_all(&self.input_buffer[..len])?),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(error) => Err(BrokenEnd::Input(error.into())),
        }
    }

    /// Reads until there is something to deliver, or nothing more to read now.
    fn read_tunnel(&mut self) -> io::Result<()> {
        while self.reads_tunnel() {
            let came = match self.tls.read_tls(&mut self.tunnel) {
                Ok(came) => came,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.tls
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, explain(&error)))?;
            if came == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// Writes as much as possible without blocking. Returns 0 where nothing can be written.
fn write_some(output: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let written = match send(output.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
        Err(Errno::ENOTSOCK) => {
            // Other processes may share it, so we may not make it non-blocking. One that is ready takes a page.
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

/// Bytes that a pipe takes for certain once poll reports it writable.
const PAGE_BYTES: usize = 4096;
