//! What the ends of a tunnel speak, and how the kernel is given an end that speaks TLS.
//!
//! The kernel gets a connection only between two records of either direction, when the tunnel opens: until then
//! all records are this process's. It gets both ends that speak TLS or neither, so that no tunnel is half copied.

use std::io;

use crate::engine::kernel::Kernel;
use crate::engine::kernel::io::retrying;
use crate::engine::tls::stream::TlsStream;
use crate::sys::kernel_tls::Record;

/// What one end of a tunnel speaks, lent for one call.
pub(in crate::engine) enum Speech<'a> {
    /// Bytes come and go as they are.
    Plain,
    /// TLS, whose records are opened and sealed here.
    Records(&'a mut TlsStream),
    /// TLS, whose records the kernel opens and seals.
    KernelTls,
}

/// Who opens and seals the records of an end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) enum Records {
    /// There are none, or they are this process's.
    Ours,
    Kernel,
}

/// The same for both ends of a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) struct KeptBy {
    pub client: Records,
    pub device: Records,
}

/// What a record was that reading had failed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) enum NoData {
    /// The peer has said that nothing follows.
    End,
    /// Nothing to act on.
    Nothing,
}

impl<'a> Speech<'a> {
    pub fn of(secured: Option<&'a mut TlsStream>, records: Records) -> Self {
        match (secured, records) {
            (_, Records::Kernel) => Self::KernelTls,
            (Some(secured), Records::Ours) => Self::Records(secured),
            (None, Records::Ours) => Self::Plain,
        }
    }

    pub fn lend(&mut self) -> Speech<'_> {
        match self {
            Self::Plain => Speech::Plain,
            Self::Records(secured) => Speech::Records(secured),
            Self::KernelTls => Speech::KernelTls,
        }
    }

    pub fn records(&mut self) -> Option<&mut TlsStream> {
        match self {
            Self::Records(secured) => Some(secured),
            Self::Plain | Self::KernelTls => None,
        }
    }
}

impl Default for KeptBy {
    fn default() -> Self {
        Self { client: Records::Ours, device: Records::Ours }
    }
}

/// Gives the kernel both ends, as far as they speak TLS. `Ok(false)` where it is not the time for that, or the
/// kernel will not; after an error the connections are of no use.
pub(in crate::engine) fn give_to_kernel<K: Kernel>(
    ends: [(&K::Socket, &mut Option<Box<TlsStream>>); 2],
    kernel: &K,
) -> io::Result<bool> {
    let is_ready = |(socket, secured): &(&K::Socket, &mut Option<Box<TlsStream>>)| match secured.as_deref() {
        Some(secured) => secured.is_between_records() && kernel.prepare_tls(socket).is_ok(),
        None => true,
    };
    if !ends.iter().all(is_ready) {
        return Ok(false);
    }
    for (socket, secured) in ends {
        if let Some(secured) = secured.take() {
            kernel.give_tls(socket, &secured.into_keys().map_err(io::Error::other)?)?;
        }
    }
    Ok(true)
}

/// What stands behind an `error` of reading from a connection whose records the kernel opens.
pub(in crate::engine) fn look_at_record<K: Kernel>(
    error: io::Error,
    kernel: &K,
    socket: &K::Socket,
) -> io::Result<NoData> {
    match error.raw_os_error() {
        // What receiving and splicing say of a record that is no data.
        Some(libc::EIO | libc::EINVAL) => {}
        // What the kernel says of one that does not open, or is too long.
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
