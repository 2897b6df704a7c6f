//! What is running now, how long it will take, and what came of each work, on stderr.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::report::{Failure, Measure, Report, number};
use crate::works::Work;

pub struct Progress {
    /// Hidden where stderr is no terminal.
    bar: ProgressBar,
    works: usize,
    done: usize,
}

impl Progress {
    pub fn start(works: usize, runs: usize) -> Self {
        let style = ProgressStyle::with_template(TEMPLATE).expect("the template is fixed and valid");
        // Without a steady tick: nothing of ours is to run beside a measurement.
        let bar = ProgressBar::new(runs as u64).with_style(style);
        Self { bar, works, done: 0 }
    }

    pub fn begin(&self, work: Work, contender: &str, round: usize) {
        self.bar.set_message(format!("{work}: {contender}, round {}", round + 1));
        self.bar.tick();
    }

    pub fn end(&self) {
        self.bar.inc(1);
    }

    pub fn failed(&self, failure: &Failure) {
        let Failure { contender, work, round, reason } = failure;
        self.say(&format!("{contender} failed at {work} in round {}: {reason}", round + 1));
    }

    /// A work is done: how everybody stands.
    pub fn summarise(&mut self, report: &Report, work: Work) {
        self.done += 1;
        let measure = Measure::main_of(work);
        let standing = report.entrants_of(work).into_iter().map(|name| {
            let median = report.spread(work, name, measure).map(|spread| number(spread.median));
            format!("{name} {}", median.unwrap_or_else(|| "failed".to_owned()))
        });
        let standing: Vec<String> = standing.collect();
        let (done, works, left) = (self.done, self.works, self.bar.eta());
        let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
        self.say(&format!(
            "{done} of {works}, {left} left | {work}, {}: {}",
            measure.unit(),
            standing.join(", ")
        ));
    }

    fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

const TEMPLATE: &str = "[{bar:24}] {pos} of {len} runs, {eta} left | {msg}";
