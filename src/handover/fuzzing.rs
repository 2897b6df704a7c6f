//! Ways into the messages of a hand-over, for the targets in `fuzz/`.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use super::channel::{Message, encoded};
use super::message::{FlowFields, FlowName, MESSAGE_BYTES_MAX, Traffic, TunnelFields, UnsentFields};
use super::tunnels::ComingTunnel;
use crate::authz::{DeviceId, DeviceUuid, GrantId, KeyHash, PrincipalId, Query, Subject};
use crate::engine::{MovedFacts, MovedTunnel, SESSION_BYTES_MAX, Unsent};

/// Parses a packet and encodes it again.
pub fn reencoded(packet: &[u8]) -> Result<Vec<u8>, String> {
    match Message::parse(packet, Vec::new()).map_err(|error| error.to_string())? {
        Message::Step(step, _) => serde_json::to_vec(&step).map_err(|error| error.to_string()),
        Message::Traffic(traffic, _) => encoded(&traffic).map_err(|error| error.to_string()),
    }
}

/// Takes packets as a new process does until its first batch ends. Each packet comes with what `descriptors` gives.
/// Returns the unsent bytes of each direction of each tunnel.
pub fn arrived<'a>(
    packets: impl IntoIterator<Item = &'a [u8]>,
    mut descriptors: impl FnMut() -> Vec<OwnedFd>,
) -> Result<Vec<usize>, String> {
    let listeners = [SocketAddr::from((Ipv4Addr::LOCALHOST, 3128))];
    let mut coming: Vec<ComingTunnel> = Vec::new();
    for packet in packets {
        let step = match Message::parse(packet, descriptors()).map_err(|error| error.to_string())? {
            Message::Traffic(Traffic::Tunnel(fields), descriptors) => {
                ComingTunnel::new(*fields, descriptors, &listeners).map(|tunnel| coming.push(tunnel))
            }
            Message::Traffic(Traffic::Unsent { direction, bytes }, _) => match coming.last_mut() {
                Some(tunnel) => tunnel.add(direction, &bytes),
                None => return Err("bytes without a tunnel".to_owned()),
            },
            Message::Traffic(Traffic::BatchEnd(_), _) => break,
            _ => Ok(()),
        };
        step.map_err(|error| error.to_string())?;
    }
    let tunnels: Vec<MovedTunnel> = coming
        .into_iter()
        .map(ComingTunnel::finish)
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let unsent = |unsent: &Unsent| match unsent {
        Unsent::Nothing => 0,
        Unsent::Bytes(bytes) => bytes.len(),
        Unsent::Pipe(pipe) => pipe.held_bytes(),
    };
    Ok(tunnels.iter().flat_map(|tunnel| [unsent(&tunnel.up.unsent), unsent(&tunnel.down.unsent)]).collect())
}

/// Packets of each kind, as this version sends them.
pub fn packets() -> Vec<Vec<u8>> {
    let uuid = "0123456789abcdef0123456789abcdef";
    let subject = Some(Subject::Key(KeyHash::of_token(b"token")));
    let query = Query { subject, device: DeviceUuid::parse(uuid), port: 22 };
    let flow = |unsent| FlowFields { bytes: 300, source_ended: false, finished: false, unsent };
    let tunnel = TunnelFields {
        facts: MovedFacts {
            session: 7,
            listener: 0,
            client_address: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 40_000))),
            accepted_at_us: 1,
            query,
            principal: PrincipalId(1),
            grant: GrantId(2),
            device: DeviceId(3),
            generation: None,
            active_at_ms: 4,
            has_sent: true,
            settle_at_ms: 5,
            expires_at: None,
            stalled_at_ms: 6,
            reprieved_until_ms: 0,
            handshake_us: 900,
        },
        listener: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 3128))),
        client_has_tls: false,
        device_has_tls: false,
        up: flow(UnsentFields::Bytes(4)),
        down: flow(UnsentFields::Pipe(0)),
    };
    let traffic = [
        Traffic::Tunnel(Box::new(tunnel)),
        Traffic::Unsent { direction: FlowName::Up, bytes: b"1234".to_vec() },
        Traffic::BatchEnd(1),
        Traffic::Yours(1),
        Traffic::Gone(vec![1, 2, 3]),
        Traffic::List { request: 9 },
    ];
    let mut packets: Vec<Vec<u8>> = traffic.iter().filter_map(|traffic| encoded(traffic).ok()).collect();
    packets.push(br#"{"step":"hello","format":1,"version":"0.1.0","pid":4711}"#.to_vec());
    packets.push(br#"{"step":"listener","address":"[::1]:3128"}"#.to_vec());
    packets.push(br#"{"step":"history","points":["{\"at\":1}","{}"]}"#.to_vec());
    packets
}

/// Bytes of a packet, and of one direction of a tunnel, at most.
pub const BOUNDS: [usize; 2] = [MESSAGE_BYTES_MAX, SESSION_BYTES_MAX];
