//! Tables of Markdown, and which columns each kind of work has.

use std::fmt;

use super::{Measure, OURS, Report, number};
use crate::works::Work;

/// A table of Markdown.
pub(super) struct Table {
    cells: Cells,
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// The kind of cells right of the first column, which sets their alignment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cells {
    /// Text, aligned to the left.
    Text,
    /// Numbers, aligned to the right.
    Numbers,
}

/// A column of a table about a contender's runs.
#[derive(Clone, Copy)]
enum Column {
    Median(Measure),
    /// The lowest and the highest run.
    Range(Measure),
    /// Our median divided by theirs.
    Ratio(Measure),
    /// Over all runs together.
    Sum(Measure),
}

impl Table {
    pub fn new(cells: Cells, headings: &[&str]) -> Self {
        Self { cells, headings: headings.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        // A bar would end its cell.
        self.rows.push(cells.into_iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect());
    }

    /// The table of the contenders in `work`.
    pub fn of_work(report: &Report, work: Work) -> Self {
        let columns = columns_of(work);
        let mut table = Self::new(Cells::Numbers, &["contender"]);
        table.headings.extend(columns.iter().map(|column| column.heading()));
        for name in report.entrants_of(work) {
            let cells = columns.iter().map(|column| column.cell(report, work, name));
            table.row(std::iter::once(name.to_owned()).chain(cells));
        }
        table
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| {} |", self.headings.join(" | "))?;
        let rule = match self.cells {
            Cells::Text => ":--|",
            Cells::Numbers => "--:|",
        };
        writeln!(f, "|:--|{}", rule.repeat(self.headings.len().saturating_sub(1)))?;
        self.rows.iter().try_for_each(|row| writeln!(f, "| {} |", row.join(" | ")))
    }
}

impl Column {
    fn heading(self) -> String {
        match self {
            Self::Median(measure) => measure.unit().to_owned(),
            Self::Range(_) => "lowest – highest".to_owned(),
            Self::Ratio(_) => format!("{OURS} ÷ it"),
            Self::Sum(measure) => measure.unit().to_owned(),
        }
    }

    fn cell(self, report: &Report, work: Work, contender: &str) -> String {
        let text = match self {
            Self::Median(measure) => {
                report.spread(work, contender, measure).map(|spread| number(spread.median))
            }
            Self::Range(measure) => report
                .spread(work, contender, measure)
                .map(|spread| format!("{} – {}", number(spread.min), number(spread.max))),
            Self::Ratio(_) if contender == OURS => None,
            Self::Ratio(measure) => report.ratio(work, measure, contender).map(number),
            Self::Sum(measure) => {
                let values = report.runs_of(work, contender).filter_map(|run| measure.of(run));
                values.reduce(|sum, value| sum + value).map(number)
            }
        };
        text.unwrap_or_else(|| NOTHING.to_owned())
    }
}

fn columns_of(work: Work) -> Vec<Column> {
    let main = Measure::main_of(work);
    let mut columns = vec![Column::Median(main), Column::Range(main), Column::Ratio(main)];
    columns.extend(match work {
        Work::Bulk { .. } => vec![
            Column::Median(Measure::RelayCpuPercent),
            Column::Median(Measure::CpuPerGigabyte),
            Column::Ratio(Measure::CpuPerGigabyte),
            Column::Median(Measure::UserPerGigabyte),
            Column::Median(Measure::SystemPerGigabyte),
        ],
        Work::Exchange { .. } | Work::NewTunnels { .. } => exchange_columns(),
        Work::Idle { .. } => vec![Column::Median(Measure::IdleCpuPercent)],
        Work::Mixed { .. } => {
            let mut columns = vec![Column::Median(Measure::GigabytesPerSecond)];
            columns.extend(exchange_columns());
            columns
        }
    });
    columns.extend([
        Column::Median(Measure::RssMib),
        Column::Median(Measure::VoluntarySwitchesPerSecond),
        Column::Median(Measure::InvoluntarySwitchesPerSecond),
        Column::Sum(Measure::Errors),
    ]);
    columns
}

fn exchange_columns() -> Vec<Column> {
    vec![
        Column::Median(Measure::RelayCpuPercent),
        Column::Median(Measure::P50),
        Column::Ratio(Measure::P50),
        Column::Median(Measure::P90),
        Column::Median(Measure::P99),
        Column::Median(Measure::P999),
        Column::Median(Measure::CpuPerExchanges),
        Column::Median(Measure::UserPerExchanges),
        Column::Median(Measure::SystemPerExchanges),
        Column::Median(Measure::ExchangesPerCpuSecond),
        Column::Ratio(Measure::ExchangesPerCpuSecond),
    ]
}

/// A cell that a contender has no number for.
pub(super) const NOTHING: &str = "–";
