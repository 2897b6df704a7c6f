//! What a source has to say beside its rows: what it met and could make nothing of.

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreWarnings {
    /// Rights whose words are not understood, and that therefore grant nothing.
    pub not_understood: Noted,
    /// Lines of `vpn.addresses` sources that give no address, each with its file and number.
    pub bad_lines: Noted,
    /// Why addresses of a `vpn.addresses` source are those that it gave last, one text for each such source.
    pub stale_addresses: Vec<String>,
}

/// Things that are counted, and a few of them by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Noted {
    pub count: usize,
    pub examples: Vec<String>,
}

impl StoreWarnings {
    /// One line for each kind of thing that a person should look at.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let Noted { count, examples } = &self.not_understood;
        if *count > 0 {
            let examples = examples.join("; ");
            lines.push(format!(
                "{count} permissions grant nothing, since they are not understood: {examples}"
            ));
        }
        let Noted { count, examples } = &self.bad_lines;
        if *count > 0 {
            lines.push(format!("{count} lines give no address: {}", examples.join("; ")));
        }
        lines.extend(self.stale_addresses.iter().cloned());
        lines
    }
}

impl Noted {
    pub(super) fn add(&mut self, describe: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(describe());
        }
    }

    /// Takes those of `others` as well.
    pub(super) fn append(&mut self, others: &Self) {
        self.count += others.count;
        let room = EXAMPLES_MAX - self.examples.len();
        self.examples.extend(others.examples.iter().take(room).cloned());
    }
}

/// That are kept and shown.
const EXAMPLES_MAX: usize = 5;
