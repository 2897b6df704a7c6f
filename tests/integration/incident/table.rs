//! What became of each change, for people to read.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use super::changes::{CaughtBy, Change};
use super::installation::Size;

pub struct Table {
    size: Size,
    rows: Vec<Row>,
}

pub struct Row {
    pub change: Change,
    pub caught_by: CaughtBy,
    /// Time from the commit of the change to its catch.
    pub caught_after: Duration,
    /// Time from the commit of the mend to the end of the hold.
    pub healed_after: Duration,
}

impl Table {
    pub fn new(size: Size) -> Self {
        Self { size, rows: Vec::new() }
    }

    pub fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Prints it, and leaves it in the build's folder for tests.
    pub fn write(&self) {
        let devices = self.size.0;
        let mut text = String::from(
            "| change | relation | devices | caught by | caught after | healed after |\n|---|---|--:|---|--:|--:|\n",
        );
        for Row { change, caught_by, caught_after, healed_after } in &self.rows {
            let Change { kind, relation } = change;
            let (kind, relation) = (kind.name(), relation.name());
            let (caught, healed) = (caught_after.as_millis(), healed_after.as_millis());
            writeln!(text, "| {kind} | {relation} | {devices} | {caught_by} | {caught} ms | {healed} ms |")
                .unwrap();
        }
        println!("{text}");
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("incident-{devices}.md"));
        std::fs::write(file, text).unwrap();
    }
}
