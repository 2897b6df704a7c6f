//! The figures that forwarding is held to, and whether a report meets them.
//!
//! A peer is taken at its best: of several HAProxys, one added by hand included, that one counts which did
//! best in the row's own measure.

use super::standing::{Better, Measure, Spread};
use super::{OURS, Report};
use crate::works::{Direction, Pace, Work};

/// One row: what is asked, and what came of it.
#[derive(Clone, PartialEq, Debug)]
pub struct Figure {
    pub work: Work,
    pub measure: Measure,
    pub bound: Bound,
    pub peer: Peer,
    pub measured: Option<Measured>,
}

/// The bound of a figure: a number, or a multiple of a peer's figure.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

/// The peer that a figure compares us with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    Nobody,
    /// HAProxy as it comes: it sleeps when there is nothing to do.
    HaProxy,
    HaProxyBusyPolling,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Measured {
    pub ours: f64,
    pub reference: Option<Reference>,
}

/// The peer's side of a figure.
#[derive(Clone, PartialEq, Debug)]
pub struct Reference {
    pub contender: String,
    pub theirs: f64,
    pub ratio: f64,
    pub by_round: Option<Spread>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Met,
    Missed,
    NotMeasured,
}

impl Figure {
    /// The value that `bound` limits.
    pub fn value(&self) -> Option<f64> {
        let measured = self.measured.as_ref()?;
        Some(measured.reference.as_ref().map_or(measured.ours, |reference| reference.ratio))
    }

    pub fn verdict(&self) -> Verdict {
        match self.value() {
            None => Verdict::NotMeasured,
            Some(value) if self.bound.holds(value) => Verdict::Met,
            Some(_) => Verdict::Missed,
        }
    }

    fn look_up(report: &Report, work: Work, row: Row) -> Self {
        let Row { measure, bound, peer } = row;
        let measured = report.spread(work, OURS, measure).and_then(|ours| {
            let reference = match peer {
                Peer::Nobody => None,
                _ => Some(report.best(work, measure, peer)?),
            };
            Some(Measured { ours: ours.median, reference })
        });
        Self { work, measure, bound, peer, measured }
    }
}

impl Bound {
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
            Self::Below(limit) => value < limit,
        }
    }
}

impl Peer {
    /// True if this contender is such a peer, by its name.
    fn is(self, contender: &str) -> bool {
        let is_haproxy = contender.starts_with(HAPROXY);
        match self {
            Self::Nobody => false,
            Self::HaProxy => is_haproxy && !contender.contains(BUSY_POLLING),
            Self::HaProxyBusyPolling => is_haproxy && contender.contains(BUSY_POLLING),
        }
    }
}

impl Report {
    /// Every figure of a work that was measured, and those that a whole comparison has to show.
    pub fn figures(&self) -> Vec<Figure> {
        let mut works = self.works();
        works.extend(NEEDED.iter().filter(|needed| !works.contains(needed)).copied().collect::<Vec<_>>());
        let rows = works.into_iter().flat_map(|work| asked_of(work).into_iter().map(move |row| (work, row)));
        rows.map(|(work, row)| Figure::look_up(self, work, row)).collect()
    }

    fn best(&self, work: Work, measure: Measure, peer: Peer) -> Option<Reference> {
        let mut peers: Vec<_> = self
            .entrants_of(work)
            .into_iter()
            .filter(|name| peer.is(name))
            .filter_map(|name| Some((name, self.spread(work, name, measure)?.median)))
            .collect();
        peers.sort_by(|(_, one), (_, other)| match measure.better() {
            Better::More => other.total_cmp(one),
            Better::Less => one.total_cmp(other),
        });
        let &(contender, theirs) = peers.first()?;
        Some(Reference {
            contender: contender.to_owned(),
            theirs,
            ratio: self.ratio(work, measure, contender)?,
            by_round: self.ratio_by_round(work, measure, contender),
        })
    }
}

/// One figure to hold in one work.
#[derive(Clone, Copy)]
struct Row {
    measure: Measure,
    bound: Bound,
    peer: Peer,
}

/// The figures to hold, as the design sets them.
fn asked_of(work: Work) -> Vec<Row> {
    let row = |measure, bound, peer| Row { measure, bound, peer };
    match work {
        Work::Bulk { streams: 32, .. } => vec![
            row(Measure::GigabytesPerSecond, Bound::AtLeast(1.6), Peer::HaProxy),
            row(Measure::CpuPerGigabyte, Bound::AtMost(0.6), Peer::HaProxy),
        ],
        Work::Bulk { streams: 1, .. } => {
            vec![row(Measure::GigabytesPerSecond, Bound::AtLeast(1.1), Peer::HaProxy)]
        }
        Work::Exchange { bytes: 128, connections: 1, pace: Pace::Closed } => vec![
            row(Measure::P50, Bound::AtMost(0.45), Peer::HaProxy),
            row(Measure::P50, Bound::AtMost(1.05), Peer::HaProxyBusyPolling),
        ],
        Work::Exchange { bytes: 128, connections: 128, pace: Pace::Closed } => {
            vec![row(Measure::ExchangesPerCpuSecond, Bound::AtLeast(1.25), Peer::HaProxy)]
        }
        Work::NewTunnels { in_flight: 64 } => {
            vec![row(Measure::ExchangesPerCpuSecond, Bound::AtLeast(1.0), Peer::HaProxy)]
        }
        Work::Idle { .. } => vec![
            row(Measure::RssKibPerSession, Bound::AtMost(0.6), Peer::Nobody),
            row(Measure::IdleCpuPercent, Bound::Below(1.0), Peer::Nobody),
        ],
        _ => Vec::new(),
    }
}

/// Works without which figures are open.
const NEEDED: [Work; 6] = [
    Work::Bulk { direction: Direction::Down, streams: 1 },
    Work::Bulk { direction: Direction::Down, streams: 32 },
    Work::Exchange { bytes: 128, connections: 1, pace: Pace::Closed },
    Work::Exchange { bytes: 128, connections: 128, pace: Pace::Closed },
    Work::NewTunnels { in_flight: 64 },
    Work::Idle { sessions: 1_000 },
];

const HAPROXY: &str = "haproxy";
const BUSY_POLLING: &str = "busy-polling";
