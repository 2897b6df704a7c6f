//! What is run, for how long, how often and in which order.

use std::time::Duration;

use crate::works::{Direction, Pace, Work};

pub struct Plan {
    pub extent: Extent,
    /// A closed loop comes before the open ones that get their rates from it.
    pub works: Vec<Work>,
    pub rounds: usize,
    pub warm_up: Duration,
    pub measure: Duration,
}

/// The size of a comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// Six works, for the main rows of the figures to hold, in under three minutes.
    Quick,
    Full,
}

impl Plan {
    pub fn new(extent: Extent) -> Self {
        let (works, measure) = match extent {
            Extent::Quick => (QUICK.to_vec(), Duration::from_millis(700)),
            Extent::Full => (full(), Duration::from_secs(1)),
        };
        Self { extent, works, rounds: ROUNDS, warm_up: Duration::from_millis(200), measure }
    }

    /// Leaves the works whose names contain one of `parts`, and the closed loops that they rest on.
    pub fn keep(&mut self, parts: &[String]) {
        let is_named = |work: &Work| {
            let name = work.to_string();
            parts.iter().any(|part| name.contains(part))
        };
        let named: Vec<Work> = self.works.iter().copied().filter(is_named).collect();
        self.works.retain(|&work| named.iter().any(|&named| named == work || closed_of(named) == Some(work)));
    }
}

/// The closed loop that tells the rate of an open one.
pub fn closed_of(work: Work) -> Option<Work> {
    match work {
        Work::Exchange { bytes, connections, pace: Pace::Open { .. } } => {
            Some(Work::Exchange { bytes, connections, pace: Pace::Closed })
        }
        _ => None,
    }
}

/// The order of contenders in `round`: each once, and each round begins with another one.
pub fn order(contenders: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..contenders).map(move |turn| (turn + round) % contenders)
}

fn full() -> Vec<Work> {
    let mut works = Vec::new();
    for direction in [Direction::Up, Direction::Down, Direction::Both] {
        works.extend([1, 8, 32, 256].map(|streams| Work::Bulk { direction, streams }));
    }
    for bytes in [64, 128, 1_024, 16_384] {
        for connections in [1, 128, 1_000] {
            let paces = [Pace::Closed, Pace::Open { percent: 50 }, Pace::Open { percent: 80 }];
            works.extend(paces.map(|pace| Work::Exchange { bytes, connections, pace }));
        }
    }
    works.extend([1, 64].map(|in_flight| Work::NewTunnels { in_flight }));
    works.extend([1_000, 5_000].map(|sessions| Work::Idle { sessions }));
    works.extend([1, 8].map(|streams| Work::Mixed { streams, connections: 100 }));
    works
}

const QUICK: [Work; 6] = [
    Work::Bulk { direction: Direction::Down, streams: 1 },
    Work::Bulk { direction: Direction::Down, streams: 32 },
    Work::Exchange { bytes: 128, connections: 1, pace: Pace::Closed },
    Work::Exchange { bytes: 128, connections: 128, pace: Pace::Closed },
    Work::NewTunnels { in_flight: 64 },
    Work::Idle { sessions: 1_000 },
];

/// Fewer say little about a machine that others use too.
const ROUNDS: usize = 5;
