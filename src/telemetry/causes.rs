//! Counts by cause, kept by one thread and read by any other.

use std::sync::OnceLock;

use super::Counter;

/// Causes are words of the program's own, so there are never many; what is beyond the table counts as
/// one that they share.
#[derive(Debug)]
pub struct CauseCounts<C = &'static str> {
    /// Filled from the front, and never emptied.
    counts: [(OnceLock<C>, Counter); CAUSES_MAX],
}

/// Why a client was refused: what it was told, and what is true.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RefusalCause {
    pub slug: &'static str,
    pub cause: &'static str,
}

/// What stands for all causes beyond the table.
pub trait Cause: Copy + PartialEq {
    const OTHER: Self;
}

impl Cause for &'static str {
    const OTHER: Self = "other";
}

impl Cause for RefusalCause {
    const OTHER: Self = Self { slug: "other", cause: "other" };
}

impl<C: Cause> CauseCounts<C> {
    /// Only the owning thread may call this.
    pub fn add(&self, cause: C) {
        for (name, count) in &self.counts {
            if *name.get_or_init(|| cause) == cause {
                return count.add(1);
            }
        }
        self.counts[CAUSES_MAX - 1].1.add(1);
    }

    pub fn get(&self) -> impl Iterator<Item = (C, u64)> {
        let last = CAUSES_MAX - 1;
        self.counts.iter().enumerate().map_while(move |(place, (name, count))| {
            let name = *name.get()?;
            Some((if place == last { C::OTHER } else { name }, count.get()))
        })
    }
}

impl<C> Default for CauseCounts<C> {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| Default::default()) }
    }
}

const CAUSES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_apart_and_added_up() {
        let causes = CauseCounts::<&str>::default();
        for cause in ["a", "b", "a", "c", "a"] {
            causes.add(cause);
        }
        assert_eq!(causes.get().collect::<Vec<_>>(), [("a", 3), ("b", 1), ("c", 1)]);
    }

    #[test]
    fn more_causes_than_there_is_room_for_are_counted_all_the_same() {
        let causes = CauseCounts::default();
        for number in 0..CAUSES_MAX + 10 {
            causes.add(&*Box::leak(number.to_string().into_boxed_str()));
        }
        let counts: Vec<_> = causes.get().collect();
        assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>() as usize, CAUSES_MAX + 10);
        assert_eq!(counts.last(), Some(&(Cause::OTHER, 11)));
    }
}
