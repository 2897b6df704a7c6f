//! TLS in the kernel: when a tunnel leaves its records to it, and the records that come back as read errors.
//!
//! The kernel takes a connection only between two records of either direction, when the tunnel opens; until then
//! this process opens and seals all records. The kernel takes both connections that use TLS or neither, so that no
//! tunnel is half copied.

use std::io;

use super::transport::{Endpoint, Transport};
use crate::engine::kernel::Kernel;
use crate::engine::kernel::io::retrying;
use crate::sys::kernel_tls::Record;

/// A record that is no data, and on which a read failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) enum NoData {
    /// The alert `close_notify`: nothing follows.
    End,
    /// A record that needs no action.
    Nothing,
}

/// Leaves the records of both connections to the kernel, where they use TLS. Returns false where a record of
/// theirs is under way or the kernel has no TLS. After an error neither connection can be used.
pub(in crate::engine) fn give_to_kernel<K: Kernel>(
    ends: [&mut Endpoint<K>; 2],
    kernel: &K,
) -> io::Result<bool> {
    let is_ready = |end: &&mut Endpoint<K>| match &end.transport {
        Transport::UserTls(stream) => stream.is_between_records() && kernel.prepare_tls(&end.socket).is_ok(),
        Transport::Plain | Transport::KernelTls => true,
    };
    if !ends.iter().all(is_ready) {
        return Ok(false);
    }
    for end in ends {
        match std::mem::replace(&mut end.transport, Transport::KernelTls) {
            Transport::UserTls(stream) => {
                kernel.give_tls(&end.socket, &stream.into_keys().map_err(io::Error::other)?)?;
            }
            other => end.transport = other,
        }
    }
    Ok(true)
}

/// Takes the record behind `error`, a read error of a connection whose records the kernel opens. Returns the error
/// where it is a real one.
pub(in crate::engine) fn look_at_record<K: Kernel>(
    error: io::Error,
    kernel: &K,
    socket: &K::Socket,
) -> io::Result<NoData> {
    match error.raw_os_error() {
        // The errors of receiving and splicing for a record that is no data.
        Some(libc::EIO | libc::EINVAL) => {}
        // The errors for a record that does not open, or is too long.
        Some(libc::EBADMSG | libc::EMSGSIZE) => return Err(bad_record("a record does not open")),
        _ => return Err(error),
    }
    let mut record = Record::Other;
    let taken = retrying(|| {
        record = kernel.receive_record(socket)?;
        Ok(0)
    })?;
    match record {
        _ if taken.is_none() => Ok(NoData::Nothing),
        Record::Alert(CLOSE_NOTIFY) => Ok(NoData::End),
        Record::Alert(USER_CANCELED) | Record::Handshake(NEW_SESSION_TICKET) => Ok(NoData::Nothing),
        Record::Alert(description) => Err(bad_record(&format!("the peer sent alert {description}"))),
        Record::Handshake(KEY_UPDATE) => {
            Err(bad_record("the peer changed its keys, which the kernel does not follow"))
        }
        Record::Handshake(_) | Record::Other => Err(bad_record("a record that does not belong there")),
    }
}

fn bad_record(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Alerts and messages by their numbers (RFC 8446, sections 6 and 4).
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
