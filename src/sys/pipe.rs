//! Kernel pipes that carry bytes between two sockets, and the splices that fill and empty them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

/// A non-blocking pipe that knows how many bytes it holds.
#[derive(Debug)]
pub struct Pipe {
    read_end: OwnedFd,
    write_end: OwnedFd,
    // No pipe of the kernel is larger than 32 bits can say, and every open tunnel has room for two pipes.
    capacity_bytes: u32,
    held_bytes: u32,
}

impl Pipe {
    /// Makes a pipe with a capacity of about `bytes`. The pipe is smaller where the kernel refuses that much
    /// (the user's `fs.pipe-user-pages-soft` is used up).
    pub fn new(bytes: usize) -> io::Result<Self> {
        let (read_end, write_end) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        let wanted = i32::try_from(bytes).unwrap_or(i32::MAX);
        let capacity = match fcntl(&write_end, FcntlArg::F_SETPIPE_SZ(wanted)) {
            Ok(capacity) => capacity,
            Err(_) => fcntl(&write_end, FcntlArg::F_GETPIPE_SZ)?,
        };
        let capacity_bytes = u32::try_from(capacity).unwrap_or(4096);
        Ok(Self { read_end, write_end, capacity_bytes, held_bytes: 0 })
    }

    /// The pipe with these ends, which another process has filled with `held_bytes`.
    pub fn from_ends(read_end: OwnedFd, write_end: OwnedFd, held_bytes: u32) -> io::Result<Self> {
        let capacity = fcntl(&write_end, FcntlArg::F_GETPIPE_SZ)?;
        let capacity_bytes = u32::try_from(capacity).unwrap_or(4096);
        Ok(Self { read_end, write_end, capacity_bytes, held_bytes })
    }

    pub fn capacity_bytes(&self) -> usize {
        self.capacity_bytes as usize
    }

    pub fn held_bytes(&self) -> usize {
        self.held_bytes as usize
    }

    pub fn is_clean(&self) -> bool {
        self.held_bytes == 0
    }

    /// Moves received bytes from the socket into the pipe. `Ok(0)` at the socket's end; `WouldBlock` where the
    /// socket has nothing or the pipe is full.
    pub fn fill_from(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let moved = splice(socket, None, &self.write_end, None, self.capacity_bytes(), FLAGS)?;
        self.record_filled(moved);
        Ok(moved)
    }

    /// Moves the pipe's bytes into the socket; `WouldBlock` where the socket has no room.
    pub fn drain_into(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let moved = splice(&self.read_end, None, socket, None, self.held_bytes(), FLAGS)?;
        self.record_drained(moved);
        Ok(moved)
    }

    /// The end that the ring's splice operation writes to. Report the bytes that it moved to
    /// [`Pipe::record_filled`] and [`Pipe::record_drained`].
    pub fn write_end(&self) -> BorrowedFd<'_> {
        self.write_end.as_fd()
    }

    pub fn read_end(&self) -> BorrowedFd<'_> {
        self.read_end.as_fd()
    }

    pub fn record_filled(&mut self, bytes: usize) {
        self.held_bytes += bytes as u32;
    }

    pub fn record_drained(&mut self, bytes: usize) {
        self.held_bytes -= bytes as u32;
    }
}

const FLAGS: SpliceFFlags = SpliceFFlags::SPLICE_F_MOVE.union(SpliceFFlags::SPLICE_F_NONBLOCK);

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_pass_through_and_are_counted() {
        let (mut source, inlet) = UnixStream::pair().unwrap();
        let (outlet, mut sink) = UnixStream::pair().unwrap();
        inlet.set_nonblocking(true).unwrap();
        let mut pipe = Pipe::new(64 * 1024).unwrap();
        assert_eq!(pipe.fill_from(inlet.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        source.write_all(b"water").unwrap();
        assert_eq!(pipe.fill_from(inlet.as_fd()).unwrap(), 5);
        assert!(!pipe.is_clean());
        assert_eq!(pipe.drain_into(outlet.as_fd()).unwrap(), 5);
        assert!(pipe.is_clean());
        let mut seen = [0; 5];
        sink.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"water");
        drop(source);
        assert_eq!(pipe.fill_from(inlet.as_fd()).unwrap(), 0);
    }

    #[test]
    fn a_pipe_that_changes_hands_keeps_what_is_in_it() {
        let (mut source, inlet) = UnixStream::pair().unwrap();
        let (outlet, mut sink) = UnixStream::pair().unwrap();
        let mut pipe = Pipe::new(64 * 1024).unwrap();
        source.write_all(b"water").unwrap();
        pipe.fill_from(inlet.as_fd()).unwrap();
        let Pipe { read_end, write_end, capacity_bytes, held_bytes } = pipe;
        let mut pipe = Pipe::from_ends(read_end, write_end, held_bytes).unwrap();
        assert_eq!((pipe.held_bytes(), pipe.capacity_bytes()), (5, capacity_bytes as usize));
        assert_eq!(pipe.drain_into(outlet.as_fd()).unwrap(), 5);
        let mut seen = [0; 5];
        sink.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"water");
    }
}
