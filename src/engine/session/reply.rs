//! A reply to a client, in one write.

use std::io;

use super::core::SessionCore;
use crate::engine::kernel::Kernel;
use crate::engine::kernel::io::send_until_full;
use crate::engine::tls::transport::{Endpoint, Transport};
use crate::engine::turn::TurnCx;
use crate::telemetry::{Cause, RequestTiming};
use crate::wire::Sealed;

/// The thing that follows the reply.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterReply {
    Tunnel,
    End,
}

/// Sends `bytes` to the client. Returns whether its socket took all of them.
pub(super) fn send_reply<K: Kernel>(
    client: &mut Endpoint<K>,
    bytes: &[u8],
    after: AfterReply,
    kernel: &K,
) -> io::Result<bool> {
    let Transport::UserTls(stream) = &mut client.transport else {
        return Ok(send_until_full(kernel, &client.socket, bytes).unless_failed()? == bytes.len());
    };
    let mut sealed = Sealed::default();
    stream.seal(bytes, &mut sealed).map_err(io::Error::other)?;
    if after == AfterReply::End {
        stream.end(&mut sealed).map_err(io::Error::other)?;
    }
    stream.outgoing().send(sealed.bytes(), kernel, &client.socket).unless_failed()?;
    Ok(stream.outgoing().is_empty())
}

impl SessionCore {
    /// Records the time from accept to the reply; `refused` is the cause of a refusal.
    pub fn record_reply<K: Kernel>(&self, refused: Option<Cause>, cx: &TurnCx<'_, K>) {
        let us = cx.now.us_since(self.accepted_at_us);
        cx.counters.accept_to_reply.record_us(us);
        cx.counters.slowest_requests.record(RequestTiming {
            at: cx.now.wall,
            us,
            session: self.id,
            refused,
            uuid: self.query.and_then(|query| query.device),
            port: self.query.map(|query| query.port),
        });
    }
}
