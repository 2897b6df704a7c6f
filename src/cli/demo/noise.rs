//! Data of a bulk transfer: noise in which no two blocks are the same, and its checksum.

use std::fmt;
use std::io::{self, Read, Write};

/// Checksum of the bytes at one end of a transfer.
///
/// It is CRC-32, which runs at tens of GB/s. SHA-256 runs at 1 GB/s and would limit the measured throughput.
#[derive(Clone, Default)]
pub(super) struct Checksum {
    crc: crc32fast::Hasher,
    bytes: u64,
}

impl Checksum {
    /// Last line that a device sends to its client.
    pub fn to_line(&self) -> String {
        format!("{self} of {} bytes", self.bytes)
    }

    fn add(&mut self, bytes: &[u8]) {
        self.crc.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.crc.clone().finalize())
    }
}

/// Sends `bytes` of noise. `on_block` gets the number of bytes sent, and may stop the transfer with an error.
pub(super) fn send(
    sink: &mut impl Write,
    bytes: u64,
    mut on_block: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<Checksum> {
    let mut block = vec![0; BLOCK_BYTES];
    getrandom::fill(&mut block).map_err(|error| io::Error::other(error.to_string()))?;
    let mut checksum = Checksum::default();
    let mut number = 0_u64;
    while checksum.bytes < bytes {
        // Each block holds its number, so that a lost, doubled or misplaced block changes the checksum.
        block[..8].copy_from_slice(&number.to_be_bytes());
        number += 1;
        let block = &block[..block_len(bytes - checksum.bytes)];
        sink.write_all(block)?;
        checksum.add(block);
        on_block(checksum.bytes)?;
    }
    Ok(checksum)
}

/// Receives `bytes`, or fewer if the stream ends earlier.
pub(super) fn receive(
    source: &mut impl Read,
    bytes: u64,
    mut on_block: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<Checksum> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut checksum = Checksum::default();
    while checksum.bytes < bytes {
        let len = source.read(&mut block[..block_len(bytes - checksum.bytes)])?;
        if len == 0 {
            break;
        }
        checksum.add(&block[..len]);
        on_block(checksum.bytes)?;
    }
    Ok(checksum)
}

fn block_len(bytes_left: u64) -> usize {
    usize::try_from(bytes_left).unwrap_or(usize::MAX).min(BLOCK_BYTES)
}

/// Size of the relay's splice pipe, so that neither end slows the stream down.
const BLOCK_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(bytes: u64) -> (Vec<u8>, Checksum) {
        let mut stream = Vec::new();
        let checksum = send(&mut stream, bytes, |_| Ok(())).unwrap();
        (stream, checksum)
    }

    fn checksum_of(stream: &[u8]) -> String {
        receive(&mut &*stream, u64::MAX, |_| Ok(())).unwrap().to_line()
    }

    #[test]
    fn both_ends_of_a_whole_stream_have_one_checksum() {
        for bytes in [0, 1, BLOCK_BYTES as u64, 3 * BLOCK_BYTES as u64 + 7] {
            let (stream, checksum) = sent(bytes);
            assert_eq!(stream.len() as u64, bytes);
            assert_eq!(checksum_of(&stream), checksum.to_line());
        }
    }

    #[test]
    fn a_block_that_is_lost_doubled_or_out_of_place_shows() {
        let (stream, checksum) = sent(3 * BLOCK_BYTES as u64);
        let blocks: Vec<&[u8]> = stream.chunks(BLOCK_BYTES).collect();
        for order in [&[0, 1][..], &[0, 1, 1, 2], &[0, 1, 1], &[1, 0, 2]] {
            let changed: Vec<u8> = order.iter().flat_map(|&block| blocks[block]).copied().collect();
            assert_ne!(checksum_of(&changed), checksum.to_line(), "{order:?}");
        }
    }

    #[test]
    fn an_interrupt_ends_a_transfer() {
        let interrupt = |_| Err(io::Error::other("an interrupt"));
        assert!(send(&mut io::sink(), 1 << 30, interrupt).is_err());
        assert!(receive(&mut io::repeat(0), 1 << 30, interrupt).is_err());
    }
}
