//! Forwards bytes both ways between a tunnel and a local end. Each direction ends by itself.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::channel::bounded;
use nix::unistd::{dup2_stdin, dup2_stdout};
use socket2::SockRef;

use super::TunnelError;

/// The end of a pair of sockets.
#[derive(Debug)]
pub(super) enum TunnelEnd {
    /// Both directions ended by a FIN, which was passed on.
    Whole,
    /// One direction failed. Both sockets were reset.
    Broken(BrokenEnd),
}

/// The end that failed.
#[derive(Debug)]
pub(super) enum BrokenEnd {
    Tunnel(io::Error),
    /// The local end, from which bytes go to the device.
    Input(io::Error),
    /// The local end that gets the device's bytes.
    Output(io::Error),
}

impl From<io::Error> for BrokenEnd {
    fn from(error: io::Error) -> Self {
        Self::Tunnel(error)
    }
}

/// Forwards until both directions have ended.
pub(super) fn sockets(local: &TcpStream, tunnel: &TcpStream) -> Result<TunnelEnd, TunnelError> {
    let pair = SocketPair { local, tunnel, is_broken: AtomicBool::new(false) };
    std::thread::scope(|scope| {
        let up = std::thread::Builder::new()
            .name("tunnel-up".into())
            .spawn_scoped(scope, || pair.forward(|| upward(local, tunnel), tunnel))
            .map_err(TunnelError::Thread)?;
        let down = pair.forward(|| downward(tunnel, local), local);
        let failed = || Err(io::Error::other("a thread of this program failed").into());
        let up = up.join().unwrap_or_else(|_| failed());
        Ok(match up.and(down) {
            Ok(()) => TunnelEnd::Whole,
            Err(error) => TunnelEnd::Broken(error),
        })
    })
}

/// Forwards stdin and stdout until both directions have ended, or one has failed.
///
/// A thread that reads stdin cannot be woken, so the caller must end the process after a failure.
pub(super) fn stdio(tunnel: TcpStream) -> Result<TunnelEnd, TunnelError> {
    let (input, output) = take_stdio().map_err(TunnelError::Stdio)?;
    let (done, ends) = bounded(2);
    let to_device = tunnel.try_clone().map_err(TunnelError::Stdio)?;
    let up_done = done.clone();
    let up = move || {
        let ended = upward(&input, &to_device).and_then(|()| Ok(to_device.shutdown(Shutdown::Write)?));
        let _nobody_waits = up_done.send(ended);
    };
    let down = move || {
        let ended = downward(&tunnel, &output);
        // Close stdout, so that its reader sees the device's FIN while stdin is still forwarded.
        drop(output);
        let _nobody_waits = done.send(ended);
    };
    std::thread::Builder::new().name("tunnel-up".into()).spawn(up).map_err(TunnelError::Thread)?;
    std::thread::Builder::new().name("tunnel-down".into()).spawn(down).map_err(TunnelError::Thread)?;
    Ok(ends.iter().collect::<Result<(), BrokenEnd>>().map_or_else(TunnelEnd::Broken, |()| TunnelEnd::Whole))
}

/// Two connected sockets, shared by the threads of both directions.
struct SocketPair<'a> {
    local: &'a TcpStream,
    tunnel: &'a TcpStream,
    /// One direction has failed. An end that a thread sees from now on is our own shutdown, and no FIN.
    is_broken: AtomicBool,
}

impl SocketPair<'_> {
    /// Runs one direction, and passes its end on to `sink`.
    fn forward(
        &self,
        direction: impl FnOnce() -> Result<(), BrokenEnd>,
        sink: &TcpStream,
    ) -> Result<(), BrokenEnd> {
        match direction() {
            Ok(()) if self.is_broken.load(Ordering::Acquire) => Ok(()),
            Ok(()) => {
                // A failure means that the sink is gone, which the other direction will see.
                let _gone = sink.shutdown(Shutdown::Write);
                Ok(())
            }
            Err(error) => {
                self.break_off();
                Err(error)
            }
        }
    }

    /// Makes both sockets end by a reset, and wakes the other direction.
    fn break_off(&self) {
        self.is_broken.store(true, Ordering::Release);
        for socket in [self.local, self.tunnel] {
            let _gone = SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO));
            let _gone = socket.shutdown(Shutdown::Read);
        }
    }
}

/// Copies the local end's bytes to the device.
fn upward(input: impl Read, tunnel: impl Write) -> Result<(), BrokenEnd> {
    pump(input, tunnel, BrokenEnd::Input, BrokenEnd::Tunnel)
}

/// Copies the device's bytes to the local end.
fn downward(tunnel: impl Read, output: impl Write) -> Result<(), BrokenEnd> {
    pump(tunnel, output, BrokenEnd::Tunnel, BrokenEnd::Output)
}

/// Copies bytes; each chunk is written before the next is read. `io::copy` has 8 KiB chunks and half the speed.
fn pump(
    mut source: impl Read,
    mut sink: impl Write,
    source_failed: fn(io::Error) -> BrokenEnd,
    sink_failed: fn(io::Error) -> BrokenEnd,
) -> Result<(), BrokenEnd> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match source.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(len) => sink.write_all(&chunk[..len]).map_err(sink_failed)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(source_failed(error)),
        }
    }
}

/// Returns stdin and stdout as files, which are unbuffered and can be closed one by one.
pub(super) fn take_stdio() -> io::Result<(File, File)> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    let nowhere = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&nowhere)?;
    dup2_stdout(&nowhere)?;
    Ok((input.into(), output.into()))
}

/// Large enough that a gigabyte needs few calls, small enough for two per local connection.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let outer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (outer, listener.accept().unwrap().0)
    }

    /// The program's end, the device's end, and the thread that forwards between them.
    fn forwarded() -> (TcpStream, TcpStream, std::thread::JoinHandle<TunnelEnd>) {
        let ((program, local), (device, tunnel)) = (pair(), pair());
        let forwarder = std::thread::spawn(move || sockets(&local, &tunnel).unwrap());
        (program, device, forwarder)
    }

    fn read_all(mut socket: &TcpStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_half_closed_program_still_receives() {
        let (mut program, mut device, forwarder) = forwarded();
        program.write_all(b"question").unwrap();
        program.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&device), b"question");
        device.write_all(b"answer").unwrap();
        drop(device);
        assert_eq!(read_all(&program), b"answer");
        assert!(matches!(forwarder.join().unwrap(), TunnelEnd::Whole));
    }

    #[test]
    fn a_half_closed_device_still_receives() {
        let (mut program, mut device, forwarder) = forwarded();
        device.write_all(b"banner").unwrap();
        device.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&program), b"banner");
        program.write_all(b"late").unwrap();
        drop(program);
        assert_eq!(read_all(&device), b"late");
        assert!(matches!(forwarder.join().unwrap(), TunnelEnd::Whole));
    }

    #[test]
    fn a_reset_of_one_side_reaches_the_other() {
        let (mut program, device, forwarder) = forwarded();
        SockRef::from(&device).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(device);
        let error = program.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(matches!(forwarder.join().unwrap(), TunnelEnd::Broken(_)));
    }
}
