//! Fuzz targets: one for each parser that reads what others wrote.
//!
//! A target is a function that panics where a promise is broken. libFuzzer calls it (`make fuzz`), and so does the test
//! program, with the corpus and with mutations of it (`make test`).

mod allocations;
pub mod corpus;
mod input;
pub mod mutate;
mod targets;

use allocations::Peak;

/// One target.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    /// Gives the parser an input and checks what comes out.
    run: fn(&[u8]),
    /// Inputs that encoders make, so that they never become old. Others are in `corpus/`.
    seeds: fn() -> Vec<Vec<u8>>,
    /// Words of the format, for mutations.
    pub words: &'static [&'static str],
    /// Length of the longest input.
    pub bytes_max: usize,
    /// Memory that an input may take: so many bytes, and so many for each of its own.
    memory: Memory,
}

/// A bound of memory.
#[derive(Clone, Copy)]
struct Memory {
    fixed: usize,
    per_byte: usize,
}

impl Target {
    /// Finds a target.
    pub fn named(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|target| target.name == name)
    }

    /// Makes what the target keeps between inputs, which is not the memory of an input.
    pub fn warm_up(&self) {
        (self.run)(b"");
        self.seeds().iter().for_each(|seed| (self.run)(seed));
    }

    /// Runs one input. Panics where a promise is broken, the bound of memory included.
    pub fn run(&self, input: &[u8]) {
        let input = &input[..input.len().min(self.bytes_max)];
        let peak = Peak::begin();
        (self.run)(input);
        let taken = peak.bytes();
        let Memory { fixed, per_byte } = self.memory;
        let bound = fixed + per_byte * input.len();
        assert!(taken <= bound, "{} bytes took {taken} bytes of memory, more than {bound}", input.len());
    }

    /// The corpus: what encoders make, and the files.
    pub fn seeds(&self) -> Vec<Vec<u8>> {
        let mut seeds = (self.seeds)();
        seeds.extend(corpus::inputs(self.name));
        seeds
    }
}

pub use targets::TARGETS;
