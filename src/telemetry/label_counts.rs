//! Counters by label, written by one thread and read by any other.

use std::marker::PhantomData;

use super::{Cause, Counter};
use crate::wire::Reply;

/// One counter for each label.
#[derive(Debug)]
pub struct LabelCounts<L> {
    counts: Box<[Counter]>,
    labels: PhantomData<L>,
}

/// A name that events are counted by. All of them are known when the program is compiled, so that no client can
/// make more of them.
pub trait CountLabel: Copy {
    /// Number of labels; every index is below it.
    const COUNT: usize;

    fn index(self) -> usize;

    /// Every label once.
    fn all() -> impl Iterator<Item = Self>;
}

/// A refusal as metrics count it: the reply that the client got, and the true cause.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RefusalLabel {
    pub reply: Reply,
    pub cause: Cause,
}

/// Result of a TLS handshake with a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsHandshakeOutcome {
    /// A new TLS session.
    Full,
    /// A TLS session that the client resumed by a ticket.
    Resumed,
    /// The handshake failed.
    Failed,
    /// The client did not speak TLS.
    NotTls,
    /// The client sent too much before the handshake was complete.
    TooLarge,
    /// Too many handshakes were under way.
    TurnedAway,
}

/// The party that opens and seals the TLS records of a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsRecordsBy {
    Kernel,
    Process,
}

impl<L: CountLabel> LabelCounts<L> {
    /// Counts one event. Only the owning thread may call this.
    pub fn add(&self, label: L) {
        self.counts[label.index()].add(1);
    }

    pub fn get(&self, label: L) -> u64 {
        self.counts[label.index()].get()
    }

    /// The labels that counted anything.
    pub fn nonzero(&self) -> impl Iterator<Item = (L, u64)> {
        L::all().map(|label| (label, self.get(label))).filter(|(_, count)| *count > 0)
    }
}

impl<L: CountLabel> Default for LabelCounts<L> {
    fn default() -> Self {
        Self { counts: (0..L::COUNT).map(|_| Counter::default()).collect(), labels: PhantomData }
    }
}

impl CountLabel for Cause {
    const COUNT: usize = Self::ALL.len();

    fn index(self) -> usize {
        self as usize
    }

    fn all() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied()
    }
}

impl CountLabel for RefusalLabel {
    const COUNT: usize = Reply::ALL.len() * Cause::COUNT;

    fn index(self) -> usize {
        self.reply as usize * Cause::COUNT + self.cause.index()
    }

    fn all() -> impl Iterator<Item = Self> {
        Reply::ALL.into_iter().flat_map(|reply| Cause::all().map(move |cause| Self { reply, cause }))
    }
}

impl TlsHandshakeOutcome {
    const ALL: [Self; 6] =
        [Self::Full, Self::Resumed, Self::Failed, Self::NotTls, Self::TooLarge, Self::TurnedAway];

    /// The value of the metric's label.
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Resumed => "resumed",
            Self::Failed => "failed",
            Self::NotTls => "not-tls",
            Self::TooLarge => "too-large",
            Self::TurnedAway => "turned-away",
        }
    }
}

impl CountLabel for TlsHandshakeOutcome {
    const COUNT: usize = Self::ALL.len();

    fn index(self) -> usize {
        self as usize
    }

    fn all() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter()
    }
}

impl TlsRecordsBy {
    const ALL: [Self; 2] = [Self::Kernel, Self::Process];

    /// The value of the metric's label.
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Process => "process",
        }
    }
}

impl CountLabel for TlsRecordsBy {
    const COUNT: usize = Self::ALL.len();

    fn index(self) -> usize {
        self as usize
    }

    fn all() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_apart_and_added_up() {
        let causes = LabelCounts::<Cause>::default();
        for cause in [Cause::Closed, Cause::Loop, Cause::Closed, Cause::Memory, Cause::Closed] {
            causes.add(cause);
        }
        let mut counts: Vec<_> = causes.nonzero().collect();
        counts.sort_unstable();
        assert_eq!(counts, [(Cause::Closed, 3), (Cause::Loop, 1), (Cause::Memory, 1)]);
    }

    #[test]
    fn every_label_has_a_counter_of_its_own() {
        fn check<L: CountLabel>() {
            let indexes: Vec<_> = L::all().map(CountLabel::index).collect();
            assert_eq!(indexes, (0..L::COUNT).collect::<Vec<_>>());
        }
        check::<Cause>();
        check::<RefusalLabel>();
        check::<TlsHandshakeOutcome>();
        check::<TlsRecordsBy>();
    }
}
