//! Makes the history of a failure as short as it can: fewer choices, and more of them harmless.

use std::time::{Duration, Instant};

use super::run::{Outcome, play};
use super::tape::Tape;

/// Finds the shortest history that fails, within `time`. Returns its choices.
pub fn shrink(choices: Vec<u32>, violation: &str, time: Duration) -> Vec<u32> {
    let failing = |choices| failing(choices, violation);
    let until = Instant::now() + time;
    let mut best = trimmed(choices);
    let mut has_gained = true;
    while has_gained && Instant::now() < until {
        has_gained = false;
        let mut size = best.len().next_power_of_two() / 2;
        while size > 0 && Instant::now() < until {
            let mut at = 0;
            while at < best.len() && Instant::now() < until {
                let end = (at + size).min(best.len());
                let removed = [&best[..at], &best[end..]].concat();
                let mut zeroed = best.clone();
                zeroed[at..end].fill(0);
                let tries = [removed, zeroed];
                let shorter = tries.into_iter().filter(|tried| is_simpler(tried, &best)).find_map(failing);
                match shorter {
                    Some(shorter) => {
                        best = shorter;
                        has_gained = true;
                    }
                    None => at = end,
                }
            }
            size /= 2;
        }
        for at in 0..best.len() {
            if Instant::now() >= until {
                break;
            }
            for less in
                [best.get(at).map(|choice| choice / 2), best.get(at).map(|choice| choice.saturating_sub(1))]
            {
                let Some(less) = less.filter(|less| best.get(at).is_some_and(|choice| less < choice)) else {
                    continue;
                };
                let mut lowered = best.clone();
                lowered[at] = less;
                if let Some(shorter) = failing(lowered) {
                    best = shorter;
                    has_gained = true;
                }
            }
        }
    }
    best
}

/// The choices, as far as they were made, where this history fails too.
fn failing(choices: Vec<u32>, violation: &str) -> Option<Vec<u32>> {
    let outcome = play(Tape::of_choices(choices.clone()), false);
    let Outcome { violation: found, choices: mut made, .. } = outcome;
    if !is_alike(&found?, violation) {
        return None;
    }
    made.truncate(choices.len());
    Some(trimmed(made))
}

/// Two violations are of one kind where they differ in numbers alone.
fn is_alike(one: &str, other: &str) -> bool {
    let words = |text: &str| text.chars().filter(|each| !each.is_ascii_digit()).collect::<String>();
    words(one) == words(other)
}

/// Without the harmless choices at the end, which are made anyway.
fn trimmed(mut choices: Vec<u32>) -> Vec<u32> {
    choices.truncate(choices.iter().rposition(|choice| *choice != 0).map_or(0, |last| last + 1));
    choices
}

fn is_simpler(tried: &[u32], best: &[u32]) -> bool {
    let sum = |choices: &[u32]| choices.iter().map(|choice| u64::from(*choice)).sum::<u64>();
    (tried.len(), sum(tried)) < (best.len(), sum(best))
}
