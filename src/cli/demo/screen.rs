//! What the demo prints: a line per step as it happens, and a progress bar where somebody watches.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::output;

pub(super) struct Screen {
    reader: StdoutReader,
}

/// Who reads stdout.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StdoutReader {
    /// A person; `colours` unless `NO_COLOR` is set.
    Terminal { colours: bool },
    /// A file or another program.
    Log,
}

/// A transfer under way.
pub(super) struct TransferProgress<'a> {
    screen: &'a Screen,
    /// Hidden where the reader is a log.
    bar: ProgressBar,
    /// In a log: told when this many bytes have moved.
    next_told: u64,
}

impl Screen {
    pub fn of_stdout() -> Self {
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let is_terminal = std::io::stdout().is_terminal();
        Self { reader: if is_terminal { StdoutReader::Terminal { colours } } else { StdoutReader::Log } }
    }

    pub fn title(&self, text: &str) {
        self.print(&self.coloured(BOLD, text));
    }

    pub fn section(&self, name: &str) {
        self.print(&format!("\n{}", self.coloured(BOLD, name)));
    }

    pub fn passed(&self, name: &str, detail: &str) {
        let mark = self.coloured(GREEN, "✓");
        self.print(format!("  {mark} {name:<NAME_WIDTH$}  {detail}").trim_end());
    }

    pub fn failed(&self, name: &str, expected: &str, came: &str) {
        let mark = self.coloured(RED, "✗");
        self.print(&format!("  {mark} {name}\n      expected  {expected}\n      came      {came}"));
    }

    /// Something that is neither shown to work nor not to.
    pub fn note(&self, name: &str, detail: &str) {
        self.print(&format!("  - {name:<NAME_WIDTH$}  {detail}"));
    }

    pub fn text(&self, text: &str) {
        self.print(text);
    }

    /// Starts to tell how far `bytes` have come.
    pub fn progress(&self, name: &str, bytes: u64) -> TransferProgress<'_> {
        let target = match self.reader {
            StdoutReader::Terminal { .. } => ProgressDrawTarget::stdout(),
            StdoutReader::Log => ProgressDrawTarget::hidden(),
        };
        let template = format!("  {{spinner}} {name:<NAME_WIDTH$}  {BAR_TEMPLATE}");
        let style = ProgressStyle::with_template(&template).expect("the template is fixed and valid");
        let bar = ProgressBar::with_draw_target(Some(bytes), target).with_style(style);
        bar.enable_steady_tick(TICK);
        let screen = self;
        TransferProgress { screen, bar, next_told: bytes / TOLD_PARTS }
    }

    fn coloured(&self, colour: &str, text: &str) -> String {
        match self.reader {
            StdoutReader::Terminal { colours: true } => format!("{colour}{text}{RESET}"),
            _ => text.to_owned(),
        }
    }

    fn print(&self, text: &str) {
        // What cannot be printed is lost; the exit code still tells how the demo went.
        let _nobody_reads = output::print(&format!("{text}\n"));
    }
}

impl TransferProgress<'_> {
    /// `moved` bytes have come so far.
    pub fn tell(&mut self, moved: u64) {
        self.bar.set_position(moved);
        let total = self.bar.length().unwrap_or(moved);
        if self.screen.reader == StdoutReader::Log && moved >= self.next_told && moved < total {
            let (moved, total) = (indicatif::BinaryBytes(moved), indicatif::BinaryBytes(total));
            self.screen.print(&format!("    {moved} of {total}"));
            self.next_told += self.bar.length().unwrap_or(0) / TOLD_PARTS;
        }
    }
}

impl Drop for TransferProgress<'_> {
    /// The step's own line takes the bar's place.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Columns for the name of a step. With a reply's status line and its reason, 100 in all.
pub(super) const NAME_WIDTH: usize = 30;

const BAR_TEMPLATE: &str = "[{bar:24}] {binary_bytes} of {binary_total_bytes}, {decimal_bytes_per_sec}";

const TICK: Duration = Duration::from_millis(100);

/// How many times a log is told of a transfer, its end included.
const TOLD_PARTS: u64 = 4;

const BOLD: &str = "\x1b[1m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";
