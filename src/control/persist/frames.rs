//! Frames of a journal: a length and its CRC-32, the content and its CRC-32.
//!
//! The length has a checksum of its own, so that damage to it is not taken for a torn end: a last frame that is too
//! short was torn off by a crash and is none, and a whole one that is wrong is damage.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

/// Builds the frame of `content`.
pub(super) fn frame(content: &[u8]) -> Vec<u8> {
    let len = u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut frame = Vec::with_capacity(FRAME_OVERHEAD + content.len());
    frame.extend_from_slice(&len);
    frame.extend_from_slice(&crc32fast::hash(&len).to_le_bytes());
    frame.extend_from_slice(content);
    frame.extend_from_slice(&crc32fast::hash(content).to_le_bytes());
    frame
}

/// Reads the frames of a file in their order.
pub(super) struct FrameReader<R> {
    source: BufReader<R>,
    /// Bytes up to the end of the last whole frame.
    offset: u64,
    bytes: u64,
}

/// The outcome of reading a frame.
pub(super) enum FrameRead {
    Content(Vec<u8>),
    /// The file ends here, or within a frame that was not written whole.
    End,
    Damaged,
}

impl<R: Read + Seek> FrameReader<R> {
    /// Begins at `offset` of a file that has `bytes`.
    pub(super) fn new(mut file: R, bytes: u64, offset: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(offset))?;
        Ok(Self { source: BufReader::new(file), offset, bytes })
    }

    pub(super) fn next(&mut self) -> io::Result<FrameRead> {
        let left = self.bytes.saturating_sub(self.offset);
        let mut head = [0; 8];
        if left < head.len() as u64 {
            return Ok(FrameRead::End);
        }
        self.source.read_exact(&mut head)?;
        let [a, b, c, d, checksum @ ..] = head;
        let len = [a, b, c, d];
        if crc32fast::hash(&len).to_le_bytes() != checksum {
            // A file system may leave zeros where a power cut kept it from writing.
            let is_unwritten = head == [0; 8] && self.is_zero_from_here()?;
            return Ok(if is_unwritten { FrameRead::End } else { FrameRead::Damaged });
        }
        let content_bytes = u32::from_le_bytes(len) as usize;
        if content_bytes > CONTENT_BYTES_MAX {
            return Ok(FrameRead::Damaged);
        }
        if left < (FRAME_OVERHEAD + content_bytes) as u64 {
            return Ok(FrameRead::End);
        }
        let mut content = vec![0; content_bytes];
        self.source.read_exact(&mut content)?;
        let mut checksum = [0; 4];
        self.source.read_exact(&mut checksum)?;
        if crc32fast::hash(&content).to_le_bytes() != checksum {
            return Ok(FrameRead::Damaged);
        }
        self.offset += (FRAME_OVERHEAD + content_bytes) as u64;
        Ok(FrameRead::Content(content))
    }

    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    fn is_zero_from_here(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        loop {
            match self.source.read(&mut buffer)? {
                0 => return Ok(true),
                len if buffer[..len].iter().any(|byte| *byte != 0) => return Ok(false),
                _ => {}
            }
        }
    }
}

/// Bytes of a frame beside its content.
pub(super) const FRAME_OVERHEAD: usize = 12;

/// Largest content of a frame. What does not fit waits for the next state, which is due at once then; a read of a
/// damaged file allocates no more.
pub(super) const CONTENT_BYTES_MAX: usize = 256 * 1024;
