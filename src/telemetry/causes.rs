//! Counts by cause, kept by one thread and read by any other.

use std::sync::OnceLock;

use super::Counter;

/// Causes are words of the program's own, so there are never many; what is beyond the table counts as
/// one that they share.
#[derive(Debug)]
pub struct CauseCounts {
    /// Filled from the front, and never emptied.
    counts: [(OnceLock<&'static str>, Counter); CAUSES_MAX],
}

impl CauseCounts {
    /// Only the owning thread may call this.
    pub fn add(&self, cause: &'static str) {
        for (name, count) in &self.counts {
            if *name.get_or_init(|| cause) == cause {
                return count.add(1);
            }
        }
        self.counts[CAUSES_MAX - 1].1.add(1);
    }

    pub fn get(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let last = CAUSES_MAX - 1;
        self.counts.iter().enumerate().map_while(move |(place, (name, count))| {
            let name = name.get()?;
            Some((if place == last { OTHER } else { name }, count.get()))
        })
    }
}

impl Default for CauseCounts {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| Default::default()) }
    }
}

const CAUSES_MAX: usize = 64;

const OTHER: &str = "other";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_apart_and_added_up() {
        let causes = CauseCounts::default();
        for cause in ["a", "b", "a", "c", "a"] {
            causes.add(cause);
        }
        assert_eq!(causes.get().collect::<Vec<_>>(), [("a", 3), ("b", 1), ("c", 1)]);
    }

    #[test]
    fn more_causes_than_there_is_room_for_are_counted_all_the_same() {
        let causes = CauseCounts::default();
        for number in 0..CAUSES_MAX + 10 {
            causes.add(Box::leak(number.to_string().into_boxed_str()));
        }
        let counts: Vec<_> = causes.get().collect();
        assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>() as usize, CAUSES_MAX + 10);
        assert_eq!(counts.last(), Some(&(OTHER, 11)));
    }
}
