//! The audit log as a test reads it.

use std::path::PathBuf;

use serde_json::Value;

use super::wait_for;

pub struct Audit {
    path: PathBuf,
}

impl Audit {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Every event so far, in the order in which they were written.
    pub fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        // A line without its end is still being written.
        text.split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The events, once there are `count`; fewer when patience has run out.
    pub fn wait_for_events(&self, count: usize) -> Vec<Value> {
        wait_for(|| Some(self.events()).filter(|events| events.len() >= count))
            .unwrap_or_else(|| self.events())
    }

    /// Waits for an event that `is_wanted`; false if none comes.
    #[must_use]
    pub fn has(&self, is_wanted: impl Fn(&Value) -> bool) -> bool {
        !self.wait_for(is_wanted).is_null()
    }

    /// The first event that `is_wanted`; null when patience has run out.
    #[must_use]
    pub fn wait_for(&self, is_wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(|| self.events().into_iter().find(&is_wanted)).unwrap_or_default()
    }
}
