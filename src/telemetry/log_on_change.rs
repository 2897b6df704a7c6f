//! Logs that say a thing once: when it begins, when it turns into something else, and when it ends.

/// The value that was logged last, for a caller that logs each change of it once.
#[derive(Debug)]
pub struct LogOnChange<T = String> {
    logged: Option<T>,
}

impl<T: PartialEq> LogOnChange<T> {
    /// Records `value`. Returns whether it differs from the one logged last, so that the caller has to log it.
    #[must_use]
    pub fn changes_to(&mut self, value: T) -> bool {
        let is_new = self.logged.as_ref() != Some(&value);
        self.logged = Some(value);
        is_new
    }

    /// Forgets the value. Returns whether there was one, so that the caller has to log its end.
    #[must_use]
    pub fn ends(&mut self) -> bool {
        self.logged.take().is_some()
    }

    /// The value that was logged last and has not ended.
    pub const fn get(&self) -> Option<&T> {
        self.logged.as_ref()
    }
}

impl<T: PartialEq + Clone> LogOnChange<Vec<T>> {
    /// Records `values`. Returns those that were not among the ones recorded last, which the caller has to log.
    #[must_use]
    pub fn new_among(&mut self, values: Vec<T>) -> Vec<T> {
        let before = self.logged.take().unwrap_or_default();
        let new = values.iter().filter(|value| !before.contains(value)).cloned().collect();
        self.logged = Some(values);
        new
    }
}

impl<T> Default for LogOnChange<T> {
    fn default() -> Self {
        Self { logged: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_logged_when_it_begins_when_it_changes_and_when_it_ends() {
        let mut trouble = LogOnChange::default();
        assert!(!trouble.ends());
        let changes = ["a", "a", "b", "a"].map(|text| trouble.changes_to(text));
        assert_eq!(changes, [true, false, true, true]);
        assert_eq!(trouble.get(), Some(&"a"));
        assert!(trouble.ends() && !trouble.ends());
        assert!(trouble.changes_to("a"), "it begins anew");
    }

    #[test]
    fn of_a_list_only_the_new_ones_are_logged() {
        let mut bad = LogOnChange::default();
        assert_eq!(bad.new_among(vec![1, 2]), [1, 2]);
        assert_eq!(bad.new_among(vec![2, 3]), [3]);
        assert_eq!(bad.new_among(vec![1]), [1], "it was good meanwhile");
    }
}
