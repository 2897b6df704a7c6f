//! Mutations of inputs, for where no coverage guides them. The same seed gives the same inputs.

/// A source of numbers (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`; 0 where that is 0.
    fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next() >> 16) as usize % end }
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }
}

/// The next input: one of `seeds`, changed in some places.
pub fn mutated(random: &mut Random, seeds: &[Vec<u8>], words: &[&str], bytes_max: usize) -> Vec<u8> {
    let mut bytes = random.pick(seeds).cloned().unwrap_or_default();
    for _ in 0..=random.below(5) {
        change(random, &mut bytes, seeds, words);
    }
    bytes.truncate(bytes_max);
    bytes
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[&str]) {
    let at = random.below(bytes.len());
    let end = (at + 1 + random.below(bytes.len().min(32))).min(bytes.len());
    match random.below(10) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        1 if !bytes.is_empty() => bytes[at] = random.next() as u8,
        2 if !bytes.is_empty() => bytes[at] = *random.pick(&EDGES).unwrap_or(&0),
        3 => bytes.insert(at, *random.pick(&EDGES).unwrap_or(&0)),
        4 if at < end => drop(bytes.drain(at..end)),
        5 if at < end => {
            let part = bytes[at..end].to_vec();
            for _ in 0..=random.below(8) {
                bytes.splice(at..at, part.iter().copied());
            }
        }
        6 => bytes.truncate(at),
        7 => {
            let other = random.pick(seeds).cloned().unwrap_or_default();
            bytes.truncate(at);
            bytes.extend_from_slice(&other[random.below(other.len())..]);
        }
        8 if at + 4 <= bytes.len() => {
            let number = *random.pick(&NUMBERS).unwrap_or(&0);
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        _ => {
            let word = random.pick(words).copied().unwrap_or_default();
            bytes.splice(at..at, word.bytes());
        }
    }
}

/// Bytes that stand at the edges of formats.
const EDGES: [u8; 14] = [0, 1, 9, 10, 13, 32, b',', b'.', b':', b'0', 0x7f, 0x80, 0xfe, 0xff];

/// Numbers that stand at the edges of types.
const NUMBERS: [u32; 8] = [0, 1, 0xff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff];
