//! Bytes that tell when one of them is lost, doubled, moved or changed, and how a stream of them ended.

use std::fmt;
use std::io::{self, Read, Write};
use std::time::Duration;

use sha2::Sha256;

/// So many bytes that look like noise, the same for the same seed.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    seed: u64,
    len: u64,
}

/// Length and checksum of the bytes that went through a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    pub len: u64,
    sha256: [u8; 32],
}

/// The way in which a stream of bytes ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Fin,
    Reset,
    /// Nothing came within the longest wait.
    Silence,
}

impl Content {
    pub const fn new(seed: u64, len: u64) -> Self {
        Self { seed, len }
    }

    pub fn digest(self) -> Digest {
        self.send(&mut io::sink()).unwrap()
    }

    /// The digest of bytes that are none of ours.
    pub fn digest_of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::default();
        hasher.add(bytes);
        hasher.digest()
    }

    pub fn to_vec(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.send(&mut bytes).unwrap();
        bytes
    }

    /// Writes all of it, and tells what it wrote.
    pub fn send(self, sink: &mut impl Write) -> io::Result<Digest> {
        let mut block = noise(self.seed);
        let mut hasher = Hasher::default();
        let mut number = 0u64;
        while hasher.len < self.len {
            // Blocks differ, so that one in the wrong place is noticed.
            block[..8].copy_from_slice(&(self.seed ^ number).to_le_bytes());
            let len = (self.len - hasher.len).min(BLOCK_BYTES as u64) as usize;
            sink.write_all(&block[..len])?;
            hasher.add(&block[..len]);
            number += 1;
        }
        Ok(hasher.digest())
    }
}

/// Reads until the stream ends, however it does.
pub fn receive(source: &mut impl Read) -> (Digest, End) {
    receive_slowly(source, BLOCK_BYTES, Duration::ZERO)
}

/// Receives like [`receive`], with small reads and a pause after each.
pub fn receive_slowly(source: &mut impl Read, chunk_bytes: usize, pause: Duration) -> (Digest, End) {
    let mut hasher = Hasher::default();
    let mut chunk = vec![0; chunk_bytes];
    loop {
        match source.read(&mut chunk) {
            Ok(0) => return (hasher.digest(), End::Fin),
            Ok(len) => hasher.add(&chunk[..len]),
            Err(error) => return (hasher.digest(), End::of(&error)),
        }
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
}

impl End {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset => Self::Reset,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silence,
            _ => panic!("a stream ended in a way that no peer brings about: {error}"),
        }
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, sha256 {}", self.len, hex::encode(self.sha256))
    }
}

#[derive(Default)]
struct Hasher {
    len: u64,
    sha256: Sha256,
}

impl Hasher {
    fn add(&mut self, bytes: &[u8]) {
        use sha2::Digest as _;
        self.len += bytes.len() as u64;
        self.sha256.update(bytes);
    }

    fn digest(self) -> Digest {
        use sha2::Digest as _;
        Digest { len: self.len, sha256: self.sha256.finalize().into() }
    }
}

/// One block of xorshift output.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    while block.len() < BLOCK_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        block.extend_from_slice(&state.to_le_bytes());
    }
    block
}

const BLOCK_BYTES: usize = 64 * 1024;
