//! A thread's memory in which records are opened and sealed, for one direction of one tunnel at a time.

use super::stream::RECORD_BYTES_MAX;
use crate::wire::Sealed;

/// The thread's memory for records; made when it is first needed.
#[derive(Default)]
pub(in crate::engine) struct ScratchMemory(Option<Box<RecordScratch>>);

/// Memory for what one receive gives.
pub(in crate::engine) struct RecordScratch {
    /// Bytes as received; the buffer always has the same length.
    pub incoming: Vec<u8>,
    /// Bytes as opened.
    pub plain: Vec<u8>,
    pub sealed: Sealed,
}

impl ScratchMemory {
    /// Lends the memory; [`put`](Self::put) it back before the call ends.
    pub fn take(&mut self) -> Box<RecordScratch> {
        self.0.take().unwrap_or_default()
    }

    pub fn put(&mut self, scratch: Box<RecordScratch>) {
        self.0 = Some(scratch);
    }
}

impl Default for RecordScratch {
    fn default() -> Self {
        Self {
            incoming: vec![0; RECORD_BYTES_MAX + RECEIVE_RECORDS_BYTES],
            plain: Vec::new(),
            sealed: Sealed::default(),
        }
    }
}

/// Bytes of one receive at most where either end uses TLS: four records.
const RECEIVE_RECORDS_BYTES: usize = 64 * 1024;
