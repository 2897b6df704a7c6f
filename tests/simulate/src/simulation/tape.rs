//! The choices of a simulated history: drawn from a seed, or played again, shorter, by the shrinker.
//!
//! Choice 0 is always the harmless one: nothing fails, nothing is short, and what can happen happens. So a tape whose
//! choices are mostly 0, and that ends early, is a simple history.

/// The choices of one history, in their order.
pub struct Tape {
    source: Source,
    taken: Vec<u32>,
}

enum Source {
    /// The state of an xorshift64* generator.
    Seed(u64),
    /// Choices to be made again; after the last one, each is 0.
    Choices { choices: Vec<u32>, next: usize },
}

impl Tape {
    pub fn of_seed(seed: u64) -> Self {
        // One round of splitmix64: seeds that follow each other have nothing in common.
        let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self { source: Source::Seed((mixed ^ (mixed >> 31)) | 1), taken: Vec::new() }
    }

    pub fn of_choices(choices: Vec<u32>) -> Self {
        Self { source: Source::Choices { choices, next: 0 }, taken: Vec::new() }
    }

    /// The choices that were made.
    pub fn into_choices(self) -> Vec<u32> {
        self.taken
    }

    /// A number below `sides`.
    pub fn roll(&mut self, sides: usize) -> usize {
        if sides <= 1 {
            return 0;
        }
        let choice = match &mut self.source {
            Source::Seed(state) => {
                *state ^= *state >> 12;
                *state ^= *state << 25;
                *state ^= *state >> 27;
                (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
            }
            Source::Choices { choices, next } => {
                let choice = choices.get(*next).copied().unwrap_or(0) as usize;
                *next += 1;
                choice.min(sides - 1)
            }
        };
        self.taken.push(choice as u32);
        choice
    }

    /// True once in `times`.
    pub fn chance(&mut self, times: usize) -> bool {
        times > 0 && self.roll(times) == times - 1
    }

    /// A number from 1 to `most`, mostly all of it.
    pub fn most_of(&mut self, most: usize) -> usize {
        match self.roll(4) {
            0..=2 => most,
            _ => most - self.roll(most),
        }
    }
}
