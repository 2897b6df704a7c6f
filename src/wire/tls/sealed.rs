//! Records to be sent, in a buffer that is reused.

use rustls::unbuffered::{EncodeError, EncryptError};

use super::TlsError;

/// A buffer of sealed records. It grows where necessary and keeps its size. The bytes after `len` are left from
/// earlier records, so that space for the next ones need not be cleared.
#[derive(Default)]
pub struct Sealed {
    memory: Vec<u8>,
    len: usize,
}

/// The reason why the library wrote nothing.
pub(super) enum SealError {
    TooSmall { wanted: usize },
    Exhausted,
}

impl Sealed {
    pub fn clear(&mut self) {
        self.len = 0;
    }

    pub fn bytes(&self) -> &[u8] {
        &self.memory[..self.len]
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Calls `write` to append records, with `room` bytes of space, or once more with as many as `write` needs.
    pub(super) fn append(
        &mut self,
        room: usize,
        mut write: impl FnMut(&mut [u8]) -> Result<usize, SealError>,
    ) -> Result<(), TlsError> {
        let written = match write(self.room(room)) {
            Err(SealError::TooSmall { wanted }) => write(self.room(wanted)),
            written => written,
        };
        match written {
            Ok(written) => {
                self.len += written;
                Ok(())
            }
            Err(_) => Err(TlsError::Exhausted),
        }
    }

    fn room(&mut self, bytes: usize) -> &mut [u8] {
        let end = self.len + bytes;
        if self.memory.len() < end {
            self.memory.resize(end, 0);
        }
        &mut self.memory[self.len..end]
    }
}

impl From<EncodeError> for SealError {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::InsufficientSize(size) => Self::TooSmall { wanted: size.required_size },
            EncodeError::AlreadyEncoded => Self::Exhausted,
        }
    }
}

impl From<EncryptError> for SealError {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(size) => Self::TooSmall { wanted: size.required_size },
            EncryptError::EncryptExhausted => Self::Exhausted,
        }
    }
}
