//! Which plots a report has: what they show, and in which section they stand.

use std::path::Path;

use super::chart::{self, Bar, Chart, Group, Scale};
use super::{Measure, Report, ReportError};
use crate::works::{Direction, Pace, Work};

/// A plot that was drawn.
pub(super) struct Plot {
    pub section: Section,
    pub title: String,
    /// Name of the picture's file, in the folder of the report's pictures.
    pub file: String,
}

/// A part of the report, by kind of work.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Bulk,
    Closed,
    Open,
    NewTunnels,
    Idle,
    Mixed,
}

/// A plot that is drawn where a report has runs for it. Each measure gets a chart; the works are its groups.
struct Sketch {
    section: Section,
    title: String,
    file: String,
    measures: Vec<(Measure, Scale)>,
    /// The label of a work in this picture; `None` if it does not belong there.
    label: Box<dyn Fn(Work) -> Option<String>>,
}

impl Section {
    pub const ALL: [Self; 6] =
        [Self::Bulk, Self::Closed, Self::Open, Self::NewTunnels, Self::Idle, Self::Mixed];

    pub fn of(work: Work) -> Self {
        match work {
            Work::Bulk { .. } => Self::Bulk,
            Work::Exchange { pace: Pace::Closed, .. } => Self::Closed,
            Work::Exchange { pace: Pace::Open { .. }, .. } => Self::Open,
            Work::NewTunnels { .. } => Self::NewTunnels,
            Work::Idle { .. } => Self::Idle,
            Work::Mixed { .. } => Self::Mixed,
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Bulk => "Bulk",
            Self::Closed => "Exchanges in a closed loop",
            Self::Open => "Exchanges in an open loop",
            Self::NewTunnels => "New tunnels",
            Self::Idle => "Idle sessions",
            Self::Mixed => "Exchanges beside bulk",
        }
    }
}

/// Draws every plot that `report` has runs for.
pub(super) fn draw(report: &Report, folder: &Path) -> Result<Vec<Plot>, ReportError> {
    let names: Vec<&str> = report.contenders.iter().map(|entrant| entrant.name.as_str()).collect();
    let mut plots = Vec::new();
    for sketch in sketches(&report.works()) {
        let charts: Vec<Chart> = sketch.charts(report, &names).collect();
        if charts.iter().any(|chart| !chart.groups.is_empty()) {
            chart::draw(&folder.join(&sketch.file), &charts, &names)?;
            plots.push(Plot { section: sketch.section, title: sketch.title, file: sketch.file });
        }
    }
    Ok(plots)
}

impl Sketch {
    fn charts<'a>(&'a self, report: &'a Report, names: &'a [&str]) -> impl Iterator<Item = Chart> + 'a {
        self.measures.iter().map(move |&(measure, scale)| {
            let labelled = report.works().into_iter().filter_map(|work| Some((work, (self.label)(work)?)));
            let groups = labelled.map(|(work, label)| {
                let spreads = names.iter().enumerate().filter_map(|(series, name)| {
                    Some(Bar { series, value: report.spread(work, name, measure)? })
                });
                Group { label, bars: spreads.collect() }
            });
            let groups = groups.filter(|group| !group.bars.is_empty()).collect();
            Chart {
                title: format!("{}: {}", self.title, measure.unit()),
                unit: measure.unit(),
                scale,
                groups,
            }
        })
    }
}

fn sketches(works: &[Work]) -> Vec<Sketch> {
    let bulk = [Direction::Up, Direction::Down, Direction::Both].map(bulk);
    let mut sizes: Vec<usize> = works
        .iter()
        .filter_map(|work| if let Work::Exchange { bytes, .. } = work { Some(*bytes) } else { None })
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    let closed = sizes.iter().map(|&size| exchanges(size, Section::Closed));
    let open = sizes.iter().map(|&size| exchanges(size, Section::Open));
    bulk.into_iter().chain(closed).chain(open).chain([new_tunnels(), idle(), mixed()]).collect()
}

fn bulk(wanted: Direction) -> Sketch {
    Sketch {
        section: Section::Bulk,
        title: format!("Bulk {wanted}"),
        file: format!("bulk-{}.svg", wanted.to_string().replace(' ', "-")),
        measures: vec![
            (Measure::GigabytesPerSecond, Scale::Linear),
            (Measure::CpuPerGigabyte, Scale::Linear),
        ],
        label: Box::new(move |work| match work {
            Work::Bulk { direction, streams } if direction == wanted => Some(format!("streams: {streams}")),
            _ => None,
        }),
    }
}

fn exchanges(size: usize, section: Section) -> Sketch {
    let (kind, mut measures) = match section {
        Section::Open => ("open", Vec::new()),
        _ => ("closed", vec![(Measure::ExchangesPerCpuSecond, Scale::Linear)]),
    };
    measures.extend([(Measure::P50, Scale::Logarithmic), (Measure::P99, Scale::Logarithmic)]);
    Sketch {
        section,
        title: format!("{size} B exchanges, {kind} loop"),
        file: format!("exchanges-{size}-{kind}.svg"),
        measures,
        label: Box::new(move |work| match work {
            Work::Exchange { bytes, connections, pace } if bytes == size && Section::of(work) == section => {
                Some(match pace {
                    Pace::Closed => format!("connections: {connections}"),
                    Pace::Open { percent } => format!("{connections} at {percent} %"),
                })
            }
            _ => None,
        }),
    }
}

fn new_tunnels() -> Sketch {
    Sketch {
        section: Section::NewTunnels,
        title: "New tunnels".to_owned(),
        file: "new-tunnels.svg".to_owned(),
        measures: vec![
            (Measure::ExchangesPerSecond, Scale::Linear),
            (Measure::ExchangesPerCpuSecond, Scale::Linear),
        ],
        label: Box::new(|work| match work {
            Work::NewTunnels { in_flight } => Some(format!("{in_flight} in flight")),
            _ => None,
        }),
    }
}

fn idle() -> Sketch {
    Sketch {
        section: Section::Idle,
        title: "Idle, once used sessions".to_owned(),
        file: "idle.svg".to_owned(),
        measures: vec![(Measure::RssKibPerSession, Scale::Linear)],
        label: Box::new(|work| match work {
            Work::Idle { sessions } => Some(format!("{sessions} sessions")),
            _ => None,
        }),
    }
}

fn mixed() -> Sketch {
    Sketch {
        section: Section::Mixed,
        title: "128 B exchanges beside bulk".to_owned(),
        file: "mixed.svg".to_owned(),
        measures: vec![(Measure::GigabytesPerSecond, Scale::Linear), (Measure::P99, Scale::Logarithmic)],
        label: Box::new(|work| match work {
            Work::Mixed { streams, connections } => Some(format!("{connections} beside {streams} streams")),
            _ => None,
        }),
    }
}
