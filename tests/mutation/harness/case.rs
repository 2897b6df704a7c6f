//! Cases: every fault, part, size, store, ground and schedule, and the choice of those that run.

use std::fmt;

use super::bed::Ground;
use super::operator::{Mutator, Operator, Part};
use super::store::StoreKind;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Case {
    pub mutator: Mutator,
    pub part: Part,
    /// Number of devices.
    pub size: usize,
    pub store: StoreKind,
    pub ground: Ground,
    pub schedule: Schedule,
}

/// The course of a fault. Each ends with the mend.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Schedule {
    /// The fault is there at once.
    Once,
    /// The fault touches more rows with each read.
    Drifting,
    /// The query takes a second.
    Slow,
    /// The relay is started again in the middle, and once more after the mend.
    Restart,
}

impl Schedule {
    const ALL: [Self; 4] = [Self::Once, Self::Drifting, Self::Slow, Self::Restart];

    const fn name(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::Drifting => "drifting",
            Self::Slow => "slow",
            Self::Restart => "restart",
        }
    }
}

impl Case {
    /// Each fault, in each part and size, on each store. Grounds and schedules take turns, so that each fault meets
    /// all of them.
    pub fn selected() -> Vec<Self> {
        let mut cases = Vec::new();
        for (number, mutator) in Mutator::all().into_iter().enumerate() {
            let grounds: Vec<_> =
                Ground::ALL.into_iter().filter(|ground| ground.expresses(&mutator)).collect();
            for size in SIZES {
                for part in parts(size) {
                    for store in StoreKind::ALL {
                        // Large installations cost seconds; each fault meets them in one part on one store.
                        let is_turn_of_many = (number % 2 == 0) == (store == StoreKind::Sqlite);
                        if size >= 1000 && (part != MANY_PARTS[number % MANY_PARTS.len()] || !is_turn_of_many)
                        {
                            continue;
                        }
                        let turn = number + cases.len();
                        let schedule = match turn % 16 {
                            7 if size == 40 => Schedule::Slow,
                            turn => [Schedule::Once, Schedule::Drifting, Schedule::Restart][turn % 3],
                        };
                        let ground = grounds[cases.len() / 2 % grounds.len()];
                        cases.push(Self { mutator, part, size, store, ground, schedule });
                    }
                }
            }
        }
        cases
    }

    /// Each fault once, on the foreign ground of SQLite at 40 devices.
    pub fn sample(store: StoreKind) -> Vec<Self> {
        let parts = [30, 100, 10, 60];
        let schedules = [Schedule::Once, Schedule::Restart, Schedule::Drifting];
        let case = |(number, mutator)| Self {
            mutator,
            part: Part::Percent(parts[number % parts.len()]),
            size: 40,
            store,
            ground: Ground::Foreign,
            schedule: schedules[number % schedules.len()],
        };
        Mutator::all().into_iter().enumerate().map(case).collect()
    }

    /// All that there are.
    pub fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for mutator in Mutator::all() {
            for ground in Ground::ALL.into_iter().filter(|ground| ground.expresses(&mutator)) {
                for size in SIZES {
                    for part in parts(size) {
                        for store in StoreKind::ALL {
                            let case = |schedule| Self { mutator, part, size, store, ground, schedule };
                            cases.extend(Schedule::ALL.map(case));
                        }
                    }
                }
            }
        }
        cases
    }

    pub fn has_outbox(&self) -> bool {
        self.ground != Ground::Foreign
    }

    /// True where nothing but the guard keeps many rows from being decided wrongly, whatever the decoder says.
    pub fn is_caught_by_the_guard(&self) -> bool {
        let of_many = self.part >= Part::Percent(60);
        let decodes = matches!(
            (self.mutator.operator, self.mutator.column),
            (Operator::Drop | Operator::Flip, _)
                | (Operator::Shift, Some("principal" | "target" | "address" | "uuid"))
                | (Operator::Narrow, Some("revoked" | "expires_at" | "online"))
        );
        of_many && decodes
    }

    /// True where each of `words` is a word of the case, or its relation.
    pub fn matches(&self, words: &[String]) -> bool {
        let name = self.to_string();
        let has = |word: &String| {
            name.split(' ').any(|part| part == word || part.split('.').next() == Some(word.as_str()))
        };
        words.iter().all(has)
    }

    /// A number that depends on the case alone.
    pub fn number(&self) -> usize {
        self.to_string()
            .bytes()
            .fold(7, |number: usize, byte| number.wrapping_mul(31).wrapping_add(byte.into()))
    }
}

/// Parts that touch different rows in a relation of so many.
fn parts(size: usize) -> Vec<Part> {
    let is_there = |part: &Part| match part {
        Part::One => true,
        Part::Percent(percent) => size * usize::from(*percent) >= 200,
    };
    Part::ALL.into_iter().filter(is_there).collect()
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mutator, part, size, store, ground, schedule } = self;
        write!(f, "{mutator} {part} {size} {} {} {}", store.name(), ground.name(), schedule.name())
    }
}

/// Numbers of devices.
const SIZES: [usize; 4] = [5, 40, 300, 5_000];

/// Parts of a large installation.
const MANY_PARTS: [Part; 3] = [Part::Percent(10), Part::Percent(60), Part::One];
