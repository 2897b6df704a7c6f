//! The trace of a history: a hash of everything that happened, and the lines for a person where they are wanted.

/// See the module.
pub struct Trace {
    hash: u64,
    events: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    pub fn new(has_lines: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, events: 0, lines: has_lines.then(Vec::new) }
    }

    /// Records an event by its name and two numbers.
    pub fn record(&mut self, now_us: u64, name: &'static str, a: u64, b: u64) {
        for part in [now_us, name.len() as u64 ^ u64::from(name.as_bytes()[0]), a, b] {
            self.hash = (self.hash ^ part).wrapping_mul(0x100_0000_01b3).rotate_left(29);
        }
        self.events += 1;
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>12.3} ms  {name} {a} {}", now_us as f64 / 1000.0, b as i64));
        }
    }

    /// Adds a line for a person, which is not part of the hash.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(line());
        }
    }

    /// The hash and the number of events.
    pub fn summary(&self) -> (u64, u64) {
        (self.hash, self.events)
    }

    pub fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }
}
