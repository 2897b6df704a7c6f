//! Steps of the demo. Each one shows one property of the relay, and reports what it expected if it failed.

use std::fmt::Display;
use std::io;
use std::num::NonZero;
use std::thread;
use std::time::Instant;

use super::DemoError;
use super::screen::{NAME_WIDTH, Screen, TransferProgress};

/// Results of the steps so far, and their figures.
pub(super) struct Steps {
    screen: Screen,
    began: Instant,
    passed: usize,
    failed: Vec<String>,
    figures: Vec<Figure>,
}

/// An unexpected result of a step.
#[derive(Debug)]
pub(super) struct DemoFailure {
    pub expected: String,
    pub came: String,
}

/// One line of the closing table.
struct Figure {
    name: &'static str,
    value: String,
    remark: String,
}

/// Adds the expected result to the error of a call inside a step.
pub(super) trait Expecting<T> {
    fn expecting(self, expected: impl Display) -> Result<T, DemoFailure>;
}

impl Steps {
    pub fn new(screen: Screen) -> Self {
        Self { screen, began: Instant::now(), passed: 0, failed: Vec::new(), figures: Vec::new() }
    }

    pub fn section(&self, name: &str) {
        self.screen.section(name);
    }

    /// Prints and counts one step with the text of its outcome.
    pub fn record(&mut self, name: &str, outcome: Result<String, DemoFailure>) {
        match outcome {
            Ok(detail) => {
                self.passed += 1;
                self.screen.passed(name, &detail);
            }
            Err(failure) => {
                self.failed.push(name.to_owned());
                self.screen.failed(name, &failure.expected, &failure.came);
            }
        }
    }

    pub fn note(&self, name: &str, detail: &str) {
        self.screen.note(name, detail);
    }

    pub fn progress(&self, name: &str, bytes: u64) -> TransferProgress<'_> {
        self.screen.progress(name, bytes)
    }

    /// Keeps a figure for the closing table.
    pub fn figure(&mut self, name: &'static str, value: impl Into<String>, remark: impl Into<String>) {
        self.figures.push(Figure { name, value: value.into(), remark: remark.into() });
    }

    /// Prints the closing table, and the number of steps that passed.
    pub fn show_figures(&self) {
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        self.section(&format!("Figures of this run; relay, devices and client shared {cpus} CPUs"));
        for Figure { name, value, remark } in &self.figures {
            self.screen.text(&format!("    {name:<NAME_WIDTH$} {value:>10}   {remark}"));
        }
        let (failed, seconds) = (self.failed.len(), self.began.elapsed().as_secs_f64());
        self.screen.text(&match failed {
            0 => format!("\nAll {} steps passed, in {seconds:.1} s.", self.passed),
            _ => format!("\n{failed} of {} steps failed, in {seconds:.1} s.", self.passed + failed),
        });
    }

    pub fn screen(&self) -> &Screen {
        &self.screen
    }

    pub fn outcome(self) -> Result<(), DemoError> {
        if self.failed.is_empty() {
            return Ok(());
        }
        Err(DemoError::Failed { steps: self.passed + self.failed.len(), names: self.failed })
    }
}

impl DemoFailure {
    pub fn new(expected: impl Display, came: impl Display) -> Self {
        Self { expected: expected.to_string(), came: came.to_string() }
    }
}

impl<T> Expecting<T> for io::Result<T> {
    fn expecting(self, expected: impl Display) -> Result<T, DemoFailure> {
        self.map_err(|error| match error.kind() {
            // Error of a socket whose timeout has passed.
            io::ErrorKind::WouldBlock => DemoFailure::new(expected, "nothing in time"),
            _ => DemoFailure::new(expected, error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_fails_with_the_names_of_the_steps_that_did() {
        let mut steps = Steps::new(Screen::of_stdout());
        steps.record("first", Ok("fine".to_owned()));
        steps.record("second", Err(DemoFailure::new("407", "200")));
        steps.record("third", Err(DemoFailure::new("a close", "more bytes")));
        let error = steps.outcome().unwrap_err();
        assert_eq!(error.to_string(), "2 of 3 steps failed: second, third");
    }

    #[test]
    fn a_demo_whose_steps_all_passed_has_not_failed() {
        let mut steps = Steps::new(Screen::of_stdout());
        steps.record("only", Ok(String::new()));
        assert!(steps.outcome().is_ok());
    }

    #[test]
    fn a_timeout_is_told_in_words() {
        let timed_out: io::Result<()> = Err(io::ErrorKind::WouldBlock.into());
        assert_eq!(timed_out.expecting("a reply").unwrap_err().came, "nothing in time");
    }
}
