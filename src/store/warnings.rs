//! Warnings of a source: things that it read and could not use.

/// All warnings of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreWarnings {
    /// Rights whose meaning is not understood. They grant nothing.
    pub not_understood: Examples,
    /// Lines of `vpn.addresses` sources that give no address, each with its file and number.
    pub bad_lines: Examples,
    /// Reasons why a `vpn.addresses` source gives no newer addresses, one for each such source.
    pub stale_addresses: Vec<String>,
}

/// A number of things, and a few of them by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examples {
    pub count: usize,
    pub examples: Vec<String>,
}

impl StoreWarnings {
    /// One line for each kind of thing that a person should look at.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let Examples { count, examples } = &self.not_understood;
        if *count > 0 {
            let examples = examples.join("; ");
            lines.push(format!(
                "{count} permissions grant nothing, since they are not understood: {examples}"
            ));
        }
        let Examples { count, examples } = &self.bad_lines;
        if *count > 0 {
            lines.push(format!("{count} lines give no address: {}", examples.join("; ")));
        }
        lines.extend(self.stale_addresses.iter().cloned());
        lines
    }
}

impl Examples {
    pub(super) fn add(&mut self, describe: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(describe());
        }
    }

    /// Adds those of `others`.
    pub(super) fn append(&mut self, others: &Self) {
        self.count += others.count;
        let room = EXAMPLES_MAX - self.examples.len();
        self.examples.extend(others.examples.iter().take(room).cloned());
    }
}

/// Examples that are kept and shown.
const EXAMPLES_MAX: usize = 5;
