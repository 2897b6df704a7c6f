//! Packets between two processes of this machine, with descriptors beside the bytes (`SCM_RIGHTS`).
//!
//! Unsafe because a descriptor that comes as a number has to be adopted.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    setsockopt, socketpair,
};
use nix::sys::time::TimeVal;

/// One end of a connected pair of `SOCK_SEQPACKET` sockets: packets arrive whole and in order.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens a connected pair. Neither end outlives an exec by itself.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Self(one), other))
    }

    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sets the longest time that a [`send`](Self::send) waits for room.
    pub fn limit_send(&self, time: Duration) -> io::Result<()> {
        Ok(setsockopt(&self.0, SendTimeout, &time_value(time))?)
    }

    /// Sets the longest time that a [`receive`](Self::receive) waits for a packet; it then fails with `WouldBlock`.
    pub fn limit_receive(&self, time: Duration) -> io::Result<()> {
        Ok(setsockopt(&self.0, ReceiveTimeout, &time_value(time))?)
    }

    /// Sends a packet whole, with copies of `descriptors`, of which there are at most [`DESCRIPTORS_MAX`].
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let rights = if numbers.is_empty() { &rights[..0] } else { &rights[..] };
        loop {
            let flags = MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], rights, flags, None) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a packet without a wait; `WouldBlock` where there is no room.
    pub fn send_now(&self, bytes: &[u8]) -> io::Result<()> {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        Ok(nix::sys::socket::send(self.0.as_raw_fd(), bytes, flags).map(drop)?)
    }

    /// Waits until a packet has come, `wake` is readable, there is room where `wants_room`, or `time` has passed.
    /// Returns whether a packet, or the end, has come.
    pub fn wait(&self, wake: Option<BorrowedFd<'_>>, wants_room: bool, time: Duration) -> io::Result<bool> {
        let wanted = if wants_room { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
        let mut waiting = vec![PollFd::new(self.0.as_fd(), wanted)];
        waiting.extend(wake.map(|wake| PollFd::new(wake, PollFlags::POLLIN)));
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        match poll(&mut waiting, timeout) {
            Ok(_) => {}
            Err(nix::Error::EINTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let has_come = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
        Ok(waiting[0].revents().is_some_and(|events| events.intersects(has_come)))
    }

    /// Receives a packet into `room`. Returns its length, which is 0 at the end, and its descriptors. Fails where the
    /// packet, or its descriptors, did not fit.
    pub fn receive(&self, room: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let mut rights = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
        let (len, flags, descriptors) = loop {
            let mut parts = [IoSliceMut::new(room)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut rights), flags) {
                Ok(message) => {
                    let numbers = message.cmsgs()?.flat_map(|each| match each {
                        ControlMessageOwned::ScmRights(numbers) => numbers,
                        _ => Vec::new(),
                    });
                    // SAFETY: the kernel has just opened these descriptors for this process with this message, and
                    // nothing else knows their numbers.
                    let descriptors = numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) });
                    break (message.bytes, message.flags, descriptors.collect());
                }
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet is longer than agreed"));
        }
        Ok((len, descriptors))
    }
}

fn time_value(time: Duration) -> TimeVal {
    // Zero would be no limit.
    let time = time.max(Duration::from_millis(1));
    TimeVal::new(time.as_secs() as _, time.subsec_micros().into())
}

/// Descriptors that one packet may carry; the kernel allows 253.
pub const DESCRIPTORS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn packets_come_whole_and_in_order_with_their_descriptors() {
        let (one, other) = PacketSocket::pair().unwrap();
        let other = PacketSocket::new(other);
        let (passed, mut kept) = UnixStream::pair().unwrap();
        one.send(b"first", &[passed.as_fd()]).unwrap();
        one.send(b"second", &[]).unwrap();
        drop(passed);
        let mut room = [0; 64];
        let (len, mut descriptors) = other.receive(&mut room).unwrap();
        assert_eq!((&room[..len], descriptors.len()), (&b"first"[..], 1));
        kept.write_all(b"through").unwrap();
        let mut seen = [0; 7];
        UnixStream::from(descriptors.remove(0)).read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"through");
        let (len, descriptors) = other.receive(&mut room).unwrap();
        assert_eq!((&room[..len], descriptors.len()), (&b"second"[..], 0));
        drop(one);
        assert_eq!(other.receive(&mut room).unwrap().0, 0);
    }

    #[test]
    fn a_packet_that_does_not_fit_is_an_error_and_a_silent_peer_a_time_limit() {
        let (one, other) = PacketSocket::pair().unwrap();
        let other = PacketSocket::new(other);
        one.send(&[1; 100], &[]).unwrap();
        assert_eq!(other.receive(&mut [0; 64]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        other.limit_receive(Duration::from_millis(20)).unwrap();
        assert_eq!(other.receive(&mut [0; 64]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
