//! The bytes of simulated streams: each direction of each tunnel has its own, so that a byte that is lost, doubled, out
//! of its order or another tunnel's does not compare.

use std::sync::LazyLock;

/// The content of one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Content {
    key: usize,
}

impl Content {
    /// The content of stream number `number`.
    pub fn new(number: usize) -> Self {
        Self { key: number * 7919 + 13 }
    }

    /// The longest part from `offset` on that lies in one piece, of at most `len` bytes.
    pub fn at(self, offset: u64, len: usize) -> &'static [u8] {
        let from = (offset as usize + self.key) % PERIOD;
        &PATTERN[from..from + len.min(PERIOD)]
    }

    /// Compares `bytes` with the content from `offset` on.
    pub fn matches(self, mut offset: u64, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let expected = self.at(offset, bytes.len());
            let (front, rest) = bytes.split_at(expected.len());
            if front != expected {
                return false;
            }
            offset += front.len() as u64;
            bytes = rest;
        }
        true
    }
}

/// A prime, so that no size of a buffer or a pipe divides it.
const PERIOD: usize = 65_521;

/// Two periods, so that each part lies in one piece.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x1234_5678_9abc_def1_u64;
    let period: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    })
    .take(PERIOD)
    .collect();
    [period.as_slice(), period.as_slice()].concat()
});
