//! A tunnel as messages, and back.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::channel::{Channel, ChannelError};
use super::message::{FlowFields, FlowName, Traffic, TunnelFields, UNSENT_BYTES_MAX, UnsentFields};
use crate::engine::{MovedEnd, MovedFlow, MovedTunnel, SESSION_BYTES_MAX, Unsent};
use crate::sys::pipe::Pipe;

/// Sends a tunnel with copies of its descriptors, and then the bytes that it holds. `listeners` are the addresses of
/// this process's listeners.
pub(super) fn send_tunnel(
    channel: &Channel,
    tunnel: &MovedTunnel,
    listeners: &[SocketAddr],
) -> Result<(), ChannelError> {
    let mut descriptors = vec![tunnel.client.socket.as_fd(), tunnel.device.socket.as_fd()];
    let fields = TunnelFields {
        facts: tunnel.facts,
        listener: listeners.get(tunnel.facts.listener as usize).copied(),
        client_has_tls: tunnel.client.has_kernel_tls,
        device_has_tls: tunnel.device.has_kernel_tls,
        up: flow_fields(&tunnel.up, &mut descriptors),
        down: flow_fields(&tunnel.down, &mut descriptors),
    };
    channel.send(&Traffic::Tunnel(Box::new(fields)), &descriptors)?;
    for (direction, flow) in [(FlowName::Up, &tunnel.up), (FlowName::Down, &tunnel.down)] {
        let Unsent::Bytes(bytes) = &flow.unsent else { continue };
        for part in bytes.chunks(UNSENT_BYTES_MAX) {
            channel.send(&Traffic::Unsent { direction, bytes: part.to_vec() }, &[])?;
        }
    }
    Ok(())
}

fn flow_fields<'a>(flow: &'a MovedFlow, descriptors: &mut Vec<BorrowedFd<'a>>) -> FlowFields {
    let unsent = match &flow.unsent {
        Unsent::Nothing => UnsentFields::Nothing,
        Unsent::Bytes(bytes) => UnsentFields::Bytes(bytes.len() as u32),
        Unsent::Pipe(pipe) => {
            descriptors.extend([pipe.read_end(), pipe.write_end()]);
            UnsentFields::Pipe(pipe.held_bytes() as u32)
        }
    };
    let MovedFlow { bytes, source_ended, finished, .. } = *flow;
    FlowFields { bytes, source_ended, finished, unsent }
}

/// A tunnel that has come. Its bytes are to follow.
pub(super) struct ComingTunnel {
    tunnel: MovedTunnel,
    /// Bytes of each direction that have not come yet.
    awaited: [usize; 2],
}

impl ComingTunnel {
    /// Reads a tunnel. `listeners` are the addresses of this process's listeners.
    pub fn new(
        fields: TunnelFields,
        descriptors: Vec<OwnedFd>,
        listeners: &[SocketAddr],
    ) -> Result<Self, ChannelError> {
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or_else(|| wrong("a tunnel lacks a descriptor"));
        let TunnelFields { mut facts, listener, client_has_tls, device_has_tls, up, down } = fields;
        // Its settings count for what happens before a tunnel, so that another one's do no harm.
        let place = listeners.iter().position(|address| Some(*address) == listener);
        facts.listener = place.unwrap_or(0) as u32;
        let client = MovedEnd { socket: next()?, has_kernel_tls: client_has_tls };
        let device = MovedEnd { socket: next()?, has_kernel_tls: device_has_tls };
        let (up, up_bytes) = flow(up, &mut next)?;
        let (down, down_bytes) = flow(down, &mut next)?;
        let tunnel = MovedTunnel { facts, client, device, up, down, place: None };
        Ok(Self { tunnel, awaited: [up_bytes, down_bytes] })
    }

    pub fn add(&mut self, direction: FlowName, part: &[u8]) -> Result<(), ChannelError> {
        let (flow, awaited) = match direction {
            FlowName::Up => (&mut self.tunnel.up, &mut self.awaited[0]),
            FlowName::Down => (&mut self.tunnel.down, &mut self.awaited[1]),
        };
        let Unsent::Bytes(bytes) = &mut flow.unsent else { return Err(wrong("bytes that nobody announced")) };
        *awaited = awaited.checked_sub(part.len()).ok_or_else(|| wrong("more bytes than announced"))?;
        bytes.extend_from_slice(part);
        Ok(())
    }

    /// The tunnel, once it is whole.
    pub fn finish(self) -> Result<MovedTunnel, ChannelError> {
        if self.awaited == [0, 0] { Ok(self.tunnel) } else { Err(wrong("a tunnel lacks bytes")) }
    }
}

fn flow(
    fields: FlowFields,
    mut next: impl FnMut() -> Result<OwnedFd, ChannelError>,
) -> Result<(MovedFlow, usize), ChannelError> {
    let FlowFields { bytes, source_ended, finished, unsent } = fields;
    let mut awaited = 0;
    let unsent = match unsent {
        UnsentFields::Nothing => Unsent::Nothing,
        UnsentFields::Bytes(count) if count as usize > SESSION_BYTES_MAX => {
            return Err(wrong("a tunnel holds more bytes than it may"));
        }
        UnsentFields::Bytes(count) => {
            awaited = count as usize;
            Unsent::Bytes(Vec::with_capacity(awaited))
        }
        UnsentFields::Pipe(held) => Unsent::Pipe(Pipe::from_ends(next()?, next()?, held)?),
    };
    Ok((MovedFlow { bytes, source_ended, finished, unsent }, awaited))
}

fn wrong(what: &str) -> ChannelError {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned()).into()
}
