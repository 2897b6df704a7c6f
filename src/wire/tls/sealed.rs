//! Records to be sent, in memory that is used again.

use rustls::unbuffered::{EncodeError, EncryptError};

use super::TlsError;

/// Grows where it has to, and stays as large: what is behind `len` is from before, so that room for the next
/// records need not be cleared.
#[derive(Default)]
pub struct Sealed {
    memory: Vec<u8>,
    len: usize,
}

/// Why the library wrote nothing.
pub(super) enum Unwritten {
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

    /// Has `write` put something behind what is there, with `room` for it, or as much as `write` asks for.
    pub(super) fn append(
        &mut self,
        room: usize,
        mut write: impl FnMut(&mut [u8]) -> Result<usize, Unwritten>,
    ) -> Result<(), TlsError> {
        let written = match write(self.room(room)) {
            Err(Unwritten::TooSmall { wanted }) => write(self.room(wanted)),
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

impl From<EncodeError> for Unwritten {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::InsufficientSize(size) => Self::TooSmall { wanted: size.required_size },
            EncodeError::AlreadyEncoded => Self::Exhausted,
        }
    }
}

impl From<EncryptError> for Unwritten {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(size) => Self::TooSmall { wanted: size.required_size },
            EncryptError::EncryptExhausted => Self::Exhausted,
        }
    }
}
