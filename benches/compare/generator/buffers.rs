//! What connections send from and receive into: one of each, as only one connection is looked at at a time.

use std::fs::File;
use std::io::{self, Write};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::sendfile::sendfile;
use socket2::Socket;

use super::socket::{Done, told};

pub struct Buffers {
    pub received: Box<[u8]>,
    message: Box<[u8]>,
    /// Lies in memory. Its pages are sent themselves: one thread that copied would be slower than relays that
    /// don't, and all of those would look alike.
    bulk: File,
}

impl Buffers {
    /// Makes buffers for messages of up to `message_bytes`.
    pub fn new(message_bytes: usize) -> io::Result<Self> {
        let mut bulk = File::from(memfd_create("bulk", MFdFlags::MFD_CLOEXEC)?);
        bulk.write_all(&noise(BULK_BYTES))?;
        Ok(Self { received: vec![0; RECEIVED_BYTES].into(), message: noise(message_bytes), bulk })
    }

    /// Sends what one turn of a stream may. `socket` must not wait by itself.
    pub fn send_bulk(&self, socket: &Socket) -> io::Result<Done> {
        let mut offset = 0;
        told(sendfile(socket, &self.bulk, Some(&mut offset), BULK_BYTES))
    }

    /// The message of so many bytes that begins with `tag`, as far as that fits.
    pub fn message(&mut self, bytes: usize, tag: u64) -> &[u8] {
        self.message_and_received(bytes, tag).0
    }

    pub fn message_and_received(&mut self, bytes: usize, tag: u64) -> (&[u8], &[u8]) {
        let message = &mut self.message[..bytes];
        for (byte, tag) in message.iter_mut().zip(tag.to_le_bytes()) {
            *byte = tag;
        }
        (message, &self.received)
    }
}

/// Bytes that do not repeat soon, so that none of them can stand in for another one unnoticed.
fn noise(bytes: usize) -> Box<[u8]> {
    (0..bytes as u32).map(|place| (place.wrapping_mul(0x9e37_79b1) >> 15) as u8).collect()
}

/// Bytes of one stream in one turn: the size of a pipe.
const BULK_BYTES: usize = 256 * 1024;

/// More than a stream sends before the other streams have had their turn, so that what is under way stays
/// short and in the CPU's caches. Bulk is never written here, so most of it is never touched.
const RECEIVED_BYTES: usize = 4 * 1024 * 1024;
