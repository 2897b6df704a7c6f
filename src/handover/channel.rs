//! The connection between the two processes: messages of bounded length, with descriptors.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::message::{MESSAGE_BYTES_MAX, Step, Traffic};
use crate::sys::packets::PacketSocket;

/// One end of the connection.
pub(super) struct Channel {
    socket: PacketSocket,
    room: Vec<u8>,
}

/// A message as it came.
#[derive(Debug)]
pub(super) enum Message {
    Step(Step, Vec<OwnedFd>),
    Traffic(Traffic, Vec<OwnedFd>),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ChannelError {
    #[error("the other process has closed the connection")]
    Ended,
    #[error("the other process has not answered in time")]
    Late,
    #[error("the other process sent what this version does not understand: {0}")]
    NotUnderstood(String),
    #[error("the connection with the other process failed: {0}")]
    Io(io::Error),
}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            // The second where it has left messages unread.
            Some(libc::EPIPE | libc::ECONNRESET) => Self::Ended,
            _ => Self::Io(error),
        }
    }
}

impl Message {
    /// Reads a packet; an empty one is the end of the connection.
    pub fn parse(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<Self, ChannelError> {
        let not_understood = |error: &dyn std::fmt::Display| ChannelError::NotUnderstood(error.to_string());
        match bytes.first() {
            None => Err(ChannelError::Ended),
            Some(b'{') => {
                let step = serde_json::from_slice(bytes).map_err(|error| not_understood(&error))?;
                Ok(Self::Step(step, descriptors))
            }
            Some(&TRAFFIC) => {
                let traffic = postcard::from_bytes(&bytes[1..]).map_err(|error| not_understood(&error))?;
                Ok(Self::Traffic(traffic, descriptors))
            }
            Some(_) => Err(not_understood(&"an unknown kind of message")),
        }
    }
}

impl Channel {
    pub fn new(socket: PacketSocket) -> io::Result<Self> {
        socket.limit_send(SEND_TIME_MAX)?;
        Ok(Self { socket, room: vec![0; MESSAGE_BYTES_MAX] })
    }

    pub fn send_step(&self, step: &Step, descriptors: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let bytes = serde_json::to_vec(step).map_err(io::Error::other)?;
        Ok(self.socket.send(&bytes, descriptors)?)
    }

    pub fn send(&self, traffic: &Traffic, descriptors: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        Ok(self.socket.send(&encoded(traffic)?, descriptors)?)
    }

    /// Sends encoded traffic without a wait. Returns whether there was room.
    pub fn send_now(&self, encoded: &[u8]) -> Result<bool, ChannelError> {
        match self.socket.send_now(encoded) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for a message; see [`PacketSocket::wait`].
    pub fn wait(
        &self,
        wake: Option<BorrowedFd<'_>>,
        wants_room: bool,
        time: Duration,
    ) -> Result<bool, ChannelError> {
        Ok(self.socket.wait(wake, wants_room, time)?)
    }

    /// The next message, once [`wait`](Self::wait) says that there is one.
    pub fn receive(&mut self) -> Result<Message, ChannelError> {
        let (len, descriptors) = self.socket.receive(&mut self.room)?;
        Message::parse(&self.room[..len], descriptors)
    }

    /// Waits until `deadline` for the next step; `is_over` ends the wait early.
    pub fn next_step(
        &mut self,
        deadline: Instant,
        mut is_over: impl FnMut() -> bool,
    ) -> Result<(Step, Vec<OwnedFd>), ChannelError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ChannelError::Late);
            }
            if self.wait(None, false, left.min(LOOK_EVERY))? {
                return match self.receive()? {
                    Message::Step(step, descriptors) => Ok((step, descriptors)),
                    Message::Traffic(..) => {
                        Err(ChannelError::NotUnderstood("traffic before its time".to_owned()))
                    }
                };
            }
            if is_over() {
                return Err(ChannelError::Ended);
            }
        }
    }
}

/// Traffic as it is sent.
pub(super) fn encoded(traffic: &impl Serialize) -> Result<Vec<u8>, ChannelError> {
    let bytes = postcard::to_extend(traffic, vec![TRAFFIC]).map_err(io::Error::other)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is longer than agreed").into());
    }
    Ok(bytes)
}

/// First byte of traffic; a step begins with a brace.
const TRAFFIC: u8 = 1;

/// Time that the other process has to make room for a message.
const SEND_TIME_MAX: Duration = Duration::from_secs(5);

/// Time between two looks at whether a wait is over.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::super::message::Abilities;
    use super::*;

    fn pair() -> (Channel, Channel) {
        let (one, other) = PacketSocket::pair().unwrap();
        (Channel::new(one).unwrap(), Channel::new(PacketSocket::new(other)).unwrap())
    }

    #[test]
    fn steps_of_a_later_version_are_understood_as_far_as_they_are_known() {
        let (one, mut other) = pair();
        let hello = br#"{"step":"hello","format":7,"version":"9.9","pid":3,"mood":"good"}"#;
        one.socket.send(hello, &[]).unwrap();
        let (step, _) = other.next_step(Instant::now() + Duration::from_secs(1), || false).unwrap();
        let (version, abilities) = ("9.9".to_owned(), Abilities::default());
        assert_eq!(step, Step::Hello { format: 7, version, pid: 3, takes_history: false, abilities });
        one.socket.send(br#"{"step":"somersault"}"#, &[]).unwrap();
        let error = other.next_step(Instant::now() + Duration::from_secs(1), || false).unwrap_err();
        assert!(matches!(error, ChannelError::NotUnderstood(_)), "{error}");
    }

    #[test]
    fn a_silent_process_is_late_and_one_that_is_gone_has_ended() {
        let (one, mut other) = pair();
        let late = other.next_step(Instant::now() + Duration::from_millis(20), || false).unwrap_err();
        assert!(matches!(late, ChannelError::Late), "{late}");
        other.send_step(&Step::Checked, &[]).unwrap();
        // It has not read the last message.
        drop(one);
        let ended = other.next_step(Instant::now() + Duration::from_secs(9), || false).unwrap_err();
        assert!(matches!(ended, ChannelError::Ended), "{ended}");
    }

    #[test]
    fn traffic_that_is_longer_than_agreed_is_not_sent() {
        let (one, _other) = pair();
        let long = Traffic::Unsent { direction: super::super::message::FlowName::Up, bytes: vec![0; 70_000] };
        assert!(one.send(&long, &[]).is_err());
    }
}
