//! Grouped bars with whiskers as SVG. Knows nothing of works and contenders.

use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, ValueFormatter};
use plotters::prelude::*;

use super::standing::Spread;
use super::{ReportError, number};

/// Bars of several series, side by side in groups.
pub(super) struct Chart {
    pub title: String,
    pub unit: &'static str,
    pub scale: Scale,
    pub groups: Vec<Group>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    Linear,
    /// A scale for values that lie orders of magnitude apart.
    Logarithmic,
}

pub(super) struct Group {
    pub label: String,
    pub bars: Vec<Bar>,
}

pub(super) struct Bar {
    /// Index into the names that [`draw`] gets.
    pub series: usize,
    pub value: Spread,
}

/// Draws `charts` one below the other into the file `path`, with one legend of `names` for all.
pub(super) fn draw(path: &Path, charts: &[Chart], names: &[&str]) -> Result<(), ReportError> {
    let height = CHART_HEIGHT * charts.len().max(1) as u32;
    let root = SVGBackend::new(path, (CHART_WIDTH + LEGEND_WIDTH, height)).into_drawing_area();
    paint(&root, charts, names)
        .map_err(|detail| ReportError::Draw { path: path.to_owned(), detail: detail.to_string() })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Painted = Result<(), Box<dyn std::error::Error>>;

fn paint(root: &Area, charts: &[Chart], names: &[&str]) -> Painted {
    // White, so that it can be read on a dark page too.
    root.fill(&WHITE)?;
    let (body, legend) = root.split_horizontally(CHART_WIDTH);
    let mut shown: Vec<usize> = charts
        .iter()
        .flat_map(|chart| &chart.groups)
        .flat_map(|group| &group.bars)
        .map(|bar| bar.series)
        .collect();
    shown.sort_unstable();
    shown.dedup();
    for (area, chart) in body.split_evenly((charts.len().max(1), 1)).iter().zip(charts) {
        paint_chart(area, chart, &shown)?;
    }
    for (line, &series) in shown.iter().enumerate() {
        let top = LEGEND_TOP + LEGEND_STEP * line as i32;
        legend.draw(&Rectangle::new([(8, top), (20, top + 12)], colour(series).filled()))?;
        legend.draw(&Text::new(names[series], (26, top), FONT.into_font()))?;
    }
    root.present()?;
    Ok(())
}

fn paint_chart(area: &Area, chart: &Chart, shown: &[usize]) -> Painted {
    let bars = || chart.groups.iter().flat_map(|group| &group.bars);
    let high = bars().map(|bar| bar.value.max).fold(0.0, f64::max);
    let x = Places(chart.groups.len());
    let mut builder = ChartBuilder::on(area);
    builder.caption(&chart.title, ("sans-serif", 17)).margin(8).x_label_area_size(26).y_label_area_size(72);
    match chart.scale {
        Scale::Linear => {
            let top = if high > 0.0 { high * HEADROOM } else { 1.0 };
            fill(builder.build_cartesian_2d(x, 0.0..top)?, chart, shown, 0.0)
        }
        Scale::Logarithmic => {
            let positive = bars().map(|bar| bar.value.min).filter(|&min| min > 0.0);
            let least = positive.fold(f64::INFINITY, f64::min).min(high.max(1.0));
            // A whole decade below, so that the lowest bar can be seen and the axis is labelled.
            let low = 10_f64.powf((least / 2.0).log10().floor());
            let range = (low..high.max(low * 10.0) * HEADROOM).log_scale();
            fill(builder.build_cartesian_2d(x, range)?, chart, shown, low)
        }
    }
}

/// Puts mesh, bars and whiskers into a prepared chart whose y axis begins at `floor`.
fn fill<Y>(
    mut context: ChartContext<'_, SVGBackend, Cartesian2d<Places, Y>>,
    chart: &Chart,
    shown: &[usize],
    floor: f64,
) -> Painted
where
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    context
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .y_desc(chart.unit)
        .label_style(FONT)
        .y_labels(Y_LABELS_MAX)
        .x_label_formatter(&|x| {
            chart.groups.get(*x as usize).map_or(String::new(), |group| group.label.clone())
        })
        .y_label_formatter(&|y| number(*y))
        .draw()?;
    let width = GROUP_WIDTH / shown.len().max(1) as f64;
    for (place, group) in chart.groups.iter().enumerate() {
        for bar in &group.bars {
            let slot = shown.iter().position(|&series| series == bar.series).unwrap_or(0);
            let left = place as f64 + (1.0 - GROUP_WIDTH) / 2.0 + slot as f64 * width;
            let Spread { median, min, max } = bar.value;
            let corners = [(left, floor), (left + width * BAR_WIDTH, median.max(floor))];
            let middle = left + width * BAR_WIDTH / 2.0;
            context.draw_series([Rectangle::new(corners, colour(bar.series).filled())])?;
            let whisker = vec![(middle, min.max(floor)), (middle, max.max(floor))];
            context.draw_series([PathElement::new(whisker, BLACK.mix(0.7))])?;
        }
    }
    Ok(())
}

/// The x axis: group `n` lies from `n` to `n + 1`, with its label in the middle.
struct Places(usize);

impl Ranged for Places {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (left, right): (i32, i32)) -> i32 {
        let share = value / self.0.max(1) as f64;
        left + (f64::from(right - left) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        (0..self.0).map(|group| group as f64 + 0.5).collect()
    }

    fn range(&self) -> Range<f64> {
        0.0..self.0 as f64
    }
}

/// The colour of a series, by the order of contenders: grey for no relay, warm colours for ours, others for peers.
fn colour(series: usize) -> RGBAColor {
    let (red, green, blue) = COLOURS[series % COLOURS.len()];
    RGBColor(red, green, blue).into()
}

/// Okabe and Ito's, which people who see few colours can tell apart too, and some more.
const COLOURS: [(u8, u8, u8); 13] = [
    (153, 153, 153),
    (213, 94, 0),
    (230, 159, 0),
    (240, 200, 60),
    (204, 121, 167),
    (0, 114, 178),
    (86, 180, 233),
    (30, 60, 120),
    (0, 158, 115),
    (120, 90, 60),
    (110, 70, 160),
    (150, 190, 60),
    (40, 40, 40),
];

const FONT: (&str, i32) = ("sans-serif", 13);

/// Below ten, so that a decade of a logarithmic axis gets one label, not nine.
const Y_LABELS_MAX: usize = 9;

const CHART_WIDTH: u32 = 820;
const CHART_HEIGHT: u32 = 320;
const LEGEND_WIDTH: u32 = 200;
const LEGEND_TOP: i32 = 40;
const LEGEND_STEP: i32 = 20;

/// Part of a group's room that its bars take together, and part of a bar's room that it takes itself.
const GROUP_WIDTH: f64 = 0.84;
const BAR_WIDTH: f64 = 0.9;

/// Length of the axis, as a multiple of the highest whisker.
const HEADROOM: f64 = 1.05;
