//! TLS in the kernel: a connection whose records the kernel opens and seals (Linux,
//! Documentation/networking/tls.rst). Such a socket is read, written and spliced in plain bytes.
//!
//! Unsafe because no library in use here writes the control message of a record that is not data.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::sockopt::{TcpTlsRx, TcpTlsTx, TcpUlp, TlsCryptoInfo};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, TlsGetRecordType, recvmsg, setsockopt};
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets, ProtocolVersion};

/// The keys by which the kernel continues a connection after its handshake.
pub struct Keys {
    pub version: ProtocolVersion,
    pub secrets: ExtractedSecrets,
}

/// A record that carries no data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record {
    /// An alert and its description (RFC 8446, section 6).
    Alert(u8),
    /// A handshake message and its kind (RFC 8446, section 4).
    Handshake(u8),
    Other,
}

/// Checks that the kernel has TLS and every cipher that a handshake may agree on. Tries each cipher on a
/// loopback connection of its own. Fails with the kernel's error.
pub fn probe() -> io::Result<()> {
    let (key, iv) = ([1; 32], [1; 12]);
    let version = libc::TLS_1_3_VERSION;
    for info in [
        aes_128_gcm(version, &key[..16], &iv, 0),
        aes_256_gcm(version, &key, &iv, 0),
        chacha20_poly1305(version, &key, &iv, 0),
    ] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let socket = TcpStream::connect(listener.local_addr()?)?;
        prepare(&socket)?;
        setsockopt(&socket, TcpTlsTx, &info.ok_or(io::ErrorKind::InvalidData)?)?;
    }
    Ok(())
}

/// Prepares a connection for [`give_keys`]. Until the keys are set, bytes pass unchanged.
pub fn prepare(socket: &impl AsFd) -> io::Result<()> {
    Ok(setsockopt(socket, TcpUlp::default(), b"tls")?)
}

/// Lets the kernel open and seal all records from the next one on. After an error the connection is unusable.
pub fn give_keys(socket: &impl AsFd, keys: &Keys) -> io::Result<()> {
    let ExtractedSecrets { tx, rx } = &keys.secrets;
    let info = |(sequence, secrets): &(u64, ConnectionTrafficSecrets)| {
        crypto_info(keys.version, secrets, *sequence).ok_or(io::ErrorKind::Unsupported)
    };
    setsockopt(socket, TcpTlsTx, &info(tx)?)?;
    setsockopt(socket, TcpTlsRx, &info(rx)?)?;
    Ok(())
}

/// Receives the next record after a read failed because that record carries no data. Never waits.
pub fn receive_record(socket: BorrowedFd<'_>) -> io::Result<Record> {
    let mut bytes = vec![0; RECORD_BYTES_MAX];
    let mut room = [IoSliceMut::new(&mut bytes)];
    let mut control = nix::cmsg_space!(u8);
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut room, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let kind = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::TlsGetRecordType(kind) => Some(kind),
        _ => None,
    });
    let len = received.bytes;
    Ok(match (kind, &bytes[..len]) {
        (Some(TlsGetRecordType::Alert), [_level, description, ..]) => Record::Alert(*description),
        (Some(TlsGetRecordType::Handshake), [message, ..]) => Record::Handshake(*message),
        _ => Record::Other,
    })
}

/// Sends the alert that ends this direction (RFC 8446, section 6.1). `WouldBlock` where there is no room.
pub fn send_close_notify(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut alert = [ALERT_WARNING, CLOSE_NOTIFY];
    let mut bytes = libc::iovec { iov_base: alert.as_mut_ptr().cast(), iov_len: alert.len() };
    let mut control = ControlMessage {
        header: libc::cmsghdr {
            // SAFETY: `CMSG_LEN` computes a number from a number.
            cmsg_len: unsafe { libc::CMSG_LEN(1) } as usize,
            cmsg_level: libc::SOL_TLS,
            cmsg_type: libc::TLS_SET_RECORD_TYPE,
        },
        record: [ALERT_RECORD, 0, 0, 0, 0, 0, 0, 0],
    };
    // SAFETY: all zeros are a valid message: one without an address, bytes or control message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut bytes, 1);
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: `message` points to `bytes`, which points to `alert`, and to `control`; all three outlive the
    // call, and their lengths are those of the values.
    let sent = unsafe {
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A control message of one byte, padded to the size that the kernel expects.
#[repr(C)]
struct ControlMessage {
    header: libc::cmsghdr,
    record: [u8; 8],
}

fn crypto_info(
    version: ProtocolVersion,
    secrets: &ConnectionTrafficSecrets,
    sequence: u64,
) -> Option<TlsCryptoInfo> {
    let version = match version {
        ProtocolVersion::TLSv1_2 => libc::TLS_1_2_VERSION,
        ProtocolVersion::TLSv1_3 => libc::TLS_1_3_VERSION,
        _ => return None,
    };
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => {
            aes_128_gcm(version, key.as_ref(), iv.as_ref(), sequence)
        }
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => {
            aes_256_gcm(version, key.as_ref(), iv.as_ref(), sequence)
        }
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
            chacha20_poly1305(version, key.as_ref(), iv.as_ref(), sequence)
        }
        _ => None,
    }
}

fn aes_128_gcm(version: u16, key: &[u8], iv: &[u8], sequence: u64) -> Option<TlsCryptoInfo> {
    let (salt, iv) = iv.split_first_chunk()?;
    Some(TlsCryptoInfo::Aes128Gcm(libc::tls12_crypto_info_aes_gcm_128 {
        info: libc::tls_crypto_info { version, cipher_type: libc::TLS_CIPHER_AES_GCM_128 },
        iv: iv.try_into().ok()?,
        key: key.try_into().ok()?,
        salt: *salt,
        rec_seq: sequence.to_be_bytes(),
    }))
}

fn aes_256_gcm(version: u16, key: &[u8], iv: &[u8], sequence: u64) -> Option<TlsCryptoInfo> {
    let (salt, iv) = iv.split_first_chunk()?;
    Some(TlsCryptoInfo::Aes256Gcm(libc::tls12_crypto_info_aes_gcm_256 {
        info: libc::tls_crypto_info { version, cipher_type: libc::TLS_CIPHER_AES_GCM_256 },
        iv: iv.try_into().ok()?,
        key: key.try_into().ok()?,
        salt: *salt,
        rec_seq: sequence.to_be_bytes(),
    }))
}

fn chacha20_poly1305(version: u16, key: &[u8], iv: &[u8], sequence: u64) -> Option<TlsCryptoInfo> {
    Some(TlsCryptoInfo::Chacha20Poly1305(libc::tls12_crypto_info_chacha20_poly1305 {
        info: libc::tls_crypto_info { version, cipher_type: libc::TLS_CIPHER_CHACHA20_POLY1305 },
        iv: iv.try_into().ok()?,
        key: key.try_into().ok()?,
        salt: [],
        rec_seq: sequence.to_be_bytes(),
    }))
}

/// Plain bytes of one record at most (RFC 8446, section 5.1).
const RECORD_BYTES_MAX: usize = 16 * 1024;

const ALERT_RECORD: u8 = 21;
const ALERT_WARNING: u8 = 1;
const CLOSE_NOTIFY: u8 = 0;
