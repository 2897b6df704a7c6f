//! One fault: a call, its error, and when it comes.

use std::fmt;

use nix::errno::Errno;

use super::calls::{CALLS, Call};

#[derive(Clone, Copy)]
pub struct Case {
    pub call: &'static Call,
    pub error: Errno,
    pub moment: Moment,
}

/// When a call fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// Every call of its kind, from the beginning of the program on, for up to a second.
    Start,
    /// Every call in the first half second after the relay is ready.
    FirstSecond,
    /// The next call, once the relay has served for some time.
    Once,
    /// Every call for half a second, once the relay has served for some time.
    Burst,
}

impl Moment {
    pub const ALL: [Self; 4] = [Self::Start, Self::FirstSecond, Self::Once, Self::Burst];
}

impl Case {
    pub fn all() -> Vec<Self> {
        Moment::ALL.into_iter().flat_map(Self::of).collect()
    }

    /// All cases of a moment.
    pub fn of(moment: Moment) -> Vec<Self> {
        let errors = |call: &'static Call| call.errors.iter().map(move |&error| Self { call, error, moment });
        CALLS.iter().flat_map(errors).collect()
    }

    /// True where each of `words` is the call, the error or the moment.
    pub fn matches(&self, words: &[String]) -> bool {
        let own = self.to_string();
        words.iter().all(|word| own.split(' ').any(|part| part.eq_ignore_ascii_case(word)))
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, error, moment } = self;
        write!(f, "{} {error:?} {moment:?}", call.name)
    }
}
