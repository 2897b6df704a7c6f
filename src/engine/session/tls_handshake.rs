//! The TLS handshake with a client.

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;

use super::State;
use super::core::SessionCore;
use super::reject::Rejection;
use crate::engine::kernel::Kernel;
use crate::engine::kernel::io::{Outcome, errno, give_back, is_transient};
use crate::engine::tls::handshake_pool::{HandshakeDone, HandshakeOwner};
use crate::engine::tls::stream::TlsStream;
use crate::engine::tls::transport::Endpoint;
use crate::engine::turn::TurnCx;
use crate::engine::user_data::Purpose;
use crate::engine::worker::signals::ServicePhase;
use crate::telemetry::{Cause, TlsHandshakeOutcome};
use crate::wire::{HttpVersion, Reply, TlsConnection, TlsError};

/// A handshake that is under way.
pub(super) struct TlsHandshake<K: Kernel> {
    pub client: K::Socket,
    /// `None` while a handshake thread has it.
    stream: Option<Box<TlsStream>>,
    received_bytes: usize,
}

impl<K: Kernel> TlsHandshake<K> {
    /// Begins the handshake; `records` came behind a PROXY header.
    pub fn start(
        client: K::Socket,
        tls: Arc<ServerConfig>,
        records: Vec<u8>,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        let stream = match TlsConnection::accept(tls) {
            Ok(tls) => Box::new(TlsStream::new(tls)),
            Err(error) => {
                core.record_lost_client(Cause::TlsHandshake, Some(io::Error::other(error)), cx);
                return State::close_sockets(client, None, core, cx);
            }
        };
        let handshake = Self { client, stream: None, received_bytes: 0 };
        if records.is_empty() {
            handshake.receive(stream, core, cx)
        } else {
            handshake.go_on(stream, records, core, cx)
        }
    }

    pub fn on_received(
        mut self,
        outcome: Outcome,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        let Outcome { result, buffer, .. } = outcome;
        match (self.stream.take(), result, buffer) {
            (Some(stream), len @ 1.., Some(buffer)) => {
                let records = cx.kernel.received(&buffer, len as usize).to_vec();
                cx.kernel.give_back(buffer);
                self.go_on(stream, records, core, cx)
            }
            (stream, result, buffer) => {
                give_back(buffer, cx.kernel);
                match (stream, errno(result)) {
                    (Some(stream), error) if is_transient(&error) => self.receive(stream, core, cx),
                    (_, error) if result < 0 => {
                        self.wait().lose_client(Cause::ClientError, Some(error), core, cx)
                    }
                    _ => self.wait().lose_client(Cause::ClientClosed, None, core, cx),
                }
            }
        }
    }

    /// The client has sent nothing.
    pub fn has_no_word(&self) -> bool {
        self.received_bytes == 0
    }

    /// Has a handshake thread take the next step.
    fn go_on(
        mut self,
        stream: Box<TlsStream>,
        records: Vec<u8>,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        if self.received_bytes == 0 && records.first() != Some(&HANDSHAKE_RECORD) {
            return self.reject_plain_client(core, cx);
        }
        self.received_bytes += records.len();
        if self.received_bytes > HANDSHAKE_BYTES_MAX {
            cx.counters.tls_handshakes.add(TlsHandshakeOutcome::TooLarge);
            return self.wait().lose_client(Cause::TlsHandshakeTooLarge, None, core, cx);
        }
        match cx.handshakes.start(HandshakeOwner::Session(core.slot), stream, records) {
            Ok(()) => {
                core.in_flight.begin(Purpose::TlsHandshake);
                self.wait()
            }
            Err(_full) => {
                cx.counters.tls_handshakes.add(TlsHandshakeOutcome::TurnedAway);
                self.wait().lose_client(Cause::TlsHandshakesFull, None, core, cx)
            }
        }
    }

    /// A handshake thread has taken a step.
    pub fn on_step(self, done: HandshakeDone, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        let HandshakeDone { mut stream, plain, outcome, .. } = done;
        // After a failure, this sends the alert.
        let flushed = stream.outgoing().flush(cx.kernel, &self.client).outcome;
        if let Err(error) = outcome {
            return State::fail_tls(Endpoint::plain(self.client), &error, core, cx);
        }
        match flushed {
            Err(error) => return self.wait().lose_client(Cause::ClientError, Some(error), core, cx),
            Ok(_) if !stream.outgoing().is_empty() => {
                return self.wait().lose_client(Cause::ClientStalled, None, core, cx);
            }
            Ok(_) => {}
        }
        if !stream.is_open() {
            return self.receive(stream, core, cx);
        }
        cx.counters.tls_handshakes.add(if stream.is_resumed() {
            TlsHandshakeOutcome::Resumed
        } else {
            TlsHandshakeOutcome::Full
        });
        cx.counters.accept_to_secured.record_us(cx.now.us_since(core.accepted_at_us));
        let client = Endpoint::tls(self.client, stream);
        if let Some(reason) = core.no_place {
            let rejection = Rejection::no_place(reason);
            return State::reject(client, HttpVersion::default(), rejection, core, cx);
        }
        if core.comes_from_peer(cx) {
            if cx.shared.phase() == ServicePhase::Leaving && plain.is_empty() {
                return State::close_sockets(client.socket, None, core, cx);
            }
            // A peer may connect before it has a request, and its certificate says who it is.
            core.release_head();
            core.deadline = Some(cx.now.after(PEER_IDLE_MAX));
        }
        State::read_request(client, plain, core, cx)
    }

    fn receive(mut self, stream: Box<TlsStream>, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        core.receive_from_client(&self.client, cx);
        self.stream = Some(stream);
        self.wait()
    }

    fn wait(self) -> State<K> {
        State::TlsHandshake(Box::new(self))
    }

    /// Replies in plain text to a client that does not use TLS.
    fn reject_plain_client(self, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        cx.counters.tls_handshakes.add(TlsHandshakeOutcome::NotTls);
        let detail = Some("the listener speaks TLS only".to_owned());
        let rejection = Rejection { reply: Reply::Malformed, cause: Cause::NotTls, detail };
        State::reject(Endpoint::plain(self.client), HttpVersion::default(), rejection, core, cx)
    }
}

/// Records that TLS with the client failed.
pub(super) fn record_tls_failure<K: Kernel>(error: &TlsError, core: &SessionCore, cx: &TurnCx<'_, K>) {
    cx.counters.tls_handshakes.add(TlsHandshakeOutcome::Failed);
    core.audit_refusal(None, Cause::TlsHandshake, Some(error.to_string()), cx);
}

/// Time that a peer may keep a connection ready before it sends a request.
const PEER_IDLE_MAX: Duration = Duration::from_secs(60);

/// The first byte of every handshake (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// Bytes that a client may send before its handshake is over; a chain of certificates has a few thousand.
const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;
