//! TLS with the client: its handshake, and what it is told before there is a tunnel.

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;

use super::reject::Rejection;
use super::{Outcome, Session, Stage, Turn, give_back};
use crate::engine::kernel::Kernel;
use crate::engine::kernel::io::send_until_full;
use crate::engine::tls::handshake_pool::{HandshakeDone, HandshakeOwner};
use crate::engine::tls::stream::TlsStream;
use crate::engine::user_data::Purpose;
use crate::telemetry::{Cause, TlsHandshakeOutcome};
use crate::wire::{HttpVersion, Reply, Sealed, TlsConnection, TlsError};

/// What follows what a client is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Tunnel,
    End,
}

/// A handshake that is under way.
pub(super) struct Securing {
    /// `None` while its next step is being taken elsewhere.
    secured: Option<Box<TlsStream>>,
    received_bytes: usize,
}

impl<K: Kernel> Session<K> {
    /// The client is to begin a handshake, or has with `records`.
    pub(super) fn secure(&mut self, tls: Arc<ServerConfig>, records: Vec<u8>, turn: &mut Turn<'_, K>) {
        match TlsConnection::accept(tls) {
            Ok(tls) => {
                let secured = Some(Box::new(TlsStream::new(tls)));
                self.stage = Stage::Securing(Securing { secured, received_bytes: 0 });
            }
            Err(error) => {
                return self.note_lost_client(Cause::TlsHandshake, Some(io::Error::other(error)), turn);
            }
        }
        if records.is_empty() {
            self.submit_on_client(Purpose::Head, turn);
        } else {
            self.on_handshake_records(records, turn);
        }
    }

    pub(super) fn on_handshake_bytes(&mut self, outcome: Outcome, turn: &mut Turn<'_, K>) {
        match (outcome.result, outcome.buffer) {
            (len @ 1.., Some(buffer)) => {
                let records = turn.kernel.received(buffer, len as usize).to_vec();
                turn.kernel.give_back(buffer);
                self.on_handshake_records(records, turn);
            }
            (0.., _) => self.note_lost_client(Cause::ClientClosed, None, turn),
            (error, _) => {
                give_back(outcome, turn.kernel);
                self.on_receive_error(error, turn);
            }
        }
    }

    fn on_handshake_records(&mut self, records: Vec<u8>, turn: &mut Turn<'_, K>) {
        let Stage::Securing(securing) = &mut self.stage else { return };
        if securing.received_bytes == 0 && records.first() != Some(&HANDSHAKE_RECORD) {
            return self.refuse_plain_client(turn);
        }
        securing.received_bytes += records.len();
        if securing.received_bytes > HANDSHAKE_BYTES_MAX {
            turn.counters.tls_handshakes.add(TlsHandshakeOutcome::TooLarge);
            return self.note_lost_client(Cause::TlsHandshakeTooLarge, None, turn);
        }
        let Some(secured) = securing.secured.take() else { return };
        match turn.handshakes.start(HandshakeOwner::Session(self.slot), secured, records) {
            Ok(()) => self.in_flight.begin(Purpose::TlsHandshake),
            Err(_full) => {
                turn.counters.tls_handshakes.add(TlsHandshakeOutcome::TurnedAway);
                self.note_lost_client(Cause::TlsHandshakesFull, None, turn);
            }
        }
    }

    /// A step of the handshake was taken.
    pub fn on_shaken(&mut self, shaken: HandshakeDone, turn: &mut Turn<'_, K>) {
        self.in_flight.end(Purpose::TlsHandshake);
        if let Stage::Handing(_) = self.stage {
            return self.on_shaken_with_node(shaken, turn);
        }
        let Stage::Securing(securing) = &mut self.stage else { return };
        let HandshakeDone { stream: mut secured, plain, outcome, .. } = shaken;
        // After a failure, it is the alert that tells the client.
        let flushed = secured.outgoing().flush(turn.kernel, &self.client);
        if let Err(error) = outcome {
            return self.fail_handshake(&error, turn);
        }
        match flushed {
            Err(error) => return self.note_lost_client(Cause::ClientError, Some(error), turn),
            Ok(_) if !secured.outgoing().is_empty() => {
                return self.note_lost_client(Cause::ClientStalled, None, turn);
            }
            Ok(_) => {}
        }
        if !secured.is_open() {
            securing.secured = Some(secured);
            return self.submit_on_client(Purpose::Head, turn);
        }
        let outcome =
            if secured.is_resumed() { TlsHandshakeOutcome::Resumed } else { TlsHandshakeOutcome::Full };
        turn.counters.tls_handshakes.add(outcome);
        turn.counters.accept_to_secured.record_us(turn.now.us_since(self.accepted_at_us));
        self.client_tls = Some(secured);
        if self.is_told_full() {
            return self.refuse_full_node(turn);
        }
        if self.comes_from_node(turn) {
            if turn.shared.is_draining() && plain.is_empty() {
                return self.end(turn);
            }
            // It may be there before the request is.
            self.deadline = Some(turn.now.after(NODE_PATIENCE));
        }
        self.on_head(plain, turn);
    }

    /// What the client sent does not open, or no connection comes of it; it is told as far as that goes.
    pub(super) fn fail_handshake(&mut self, error: &TlsError, turn: &mut Turn<'_, K>) {
        turn.counters.tls_handshakes.add(TlsHandshakeOutcome::Failed);
        self.note(None, Cause::TlsHandshake, Some(error.to_string()), turn);
        self.linger(turn);
    }

    /// A client that speaks no TLS understands what others are told.
    fn refuse_plain_client(&mut self, turn: &mut Turn<'_, K>) {
        turn.counters.tls_handshakes.add(TlsHandshakeOutcome::NotTls);
        let detail = Some("the listener speaks TLS only".to_owned());
        self.refuse(
            HttpVersion::default(),
            Rejection { reply: Reply::Malformed, cause: Cause::NotTls, detail },
            turn,
        );
    }

    /// Sends `bytes` in one write; whether the client's socket took all of them.
    pub(super) fn tell_client(
        &mut self,
        bytes: &[u8],
        then: Then,
        turn: &mut Turn<'_, K>,
    ) -> io::Result<bool> {
        let Some(secured) = &mut self.client_tls else {
            return Ok(send_until_full(turn.kernel, &self.client, bytes)? == bytes.len());
        };
        let mut sealed = Sealed::default();
        secured.seal(bytes, &mut sealed).map_err(io::Error::other)?;
        if then == Then::End {
            secured.end(&mut sealed).map_err(io::Error::other)?;
        }
        secured.outgoing().send(sealed.bytes(), turn.kernel, &self.client)?;
        Ok(secured.outgoing().is_empty())
    }
}

/// How long another node may keep a connection ready that it has no request for yet.
const NODE_PATIENCE: Duration = Duration::from_secs(60);

/// The first byte of every handshake (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// Bytes that a client may send before its handshake is over; a chain of certificates has a few thousand.
const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;
