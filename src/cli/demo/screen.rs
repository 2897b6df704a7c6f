//! Output of the demo: a line for each step, and a progress bar on a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::output;

pub(super) struct Screen {
    reader: StdoutReader,
}

/// Kind of stdout.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StdoutReader {
    /// A terminal. `colours` is false where `NO_COLOR` is set.
    Terminal { colours: bool },
    /// A file or another program.
    Log,
}

/// A transfer that runs.
pub(super) struct TransferProgress<'a> {
    screen: &'a Screen,
    /// Hidden where stdout is a log.
    bar: ProgressBar,
    /// Number of bytes at which a log gets the next line.
    next_logged: u64,
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

    /// Prints a remark that is neither a success nor a failure.
    pub fn note(&self, name: &str, detail: &str) {
        self.print(&format!("  - {name:<NAME_WIDTH$}  {detail}"));
    }

    pub fn text(&self, text: &str) {
        self.print(text);
    }

    /// Starts to show the progress of `bytes`.
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
        TransferProgress { screen, bar, next_logged: bytes / LOG_PARTS }
    }

    fn coloured(&self, colour: &str, text: &str) -> String {
        match self.reader {
            StdoutReader::Terminal { colours: true } => format!("{colour}{text}{RESET}"),
            _ => text.to_owned(),
        }
    }

    fn print(&self, text: &str) {
        // Output that cannot be printed is lost. The exit code still reports the result.
        let _nobody_reads = output::print(&format!("{text}\n"));
    }
}

impl TransferProgress<'_> {
    /// Shows that `moved` bytes have been transferred.
    pub fn advance(&mut self, moved: u64) {
        self.bar.set_position(moved);
        let total = self.bar.length().unwrap_or(moved);
        if self.screen.reader == StdoutReader::Log && moved >= self.next_logged && moved < total {
            let (moved, total) = (indicatif::BinaryBytes(moved), indicatif::BinaryBytes(total));
            self.screen.print(&format!("    {moved} of {total}"));
            self.next_logged += self.bar.length().unwrap_or(0) / LOG_PARTS;
        }
    }
}

impl Drop for TransferProgress<'_> {
    /// Removes the bar, so that the step's line takes its place.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Columns for the name of a step. With a status line and a slug, a line has 100 columns.
pub(super) const NAME_WIDTH: usize = 30;

const BAR_TEMPLATE: &str = "[{bar:24}] {binary_bytes} of {binary_total_bytes}, {decimal_bytes_per_sec}";

const TICK: Duration = Duration::from_millis(100);

/// Number of progress lines in a log.
const LOG_PARTS: u64 = 4;

const BOLD: &str = "\x1b[1m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";
