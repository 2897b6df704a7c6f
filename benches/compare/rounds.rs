//! Goes through a plan: every work, every round, every contender, a fresh relay each.

use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};

use sluicegate::sys::cpu::Cpu;

use crate::contender::{Contender, Relay, StartError};
use crate::generator::{Backend, MeasureError, Timing, measure};
use crate::plan::{Plan, closed_of, order};
use crate::progress::Progress;
use crate::record::{Cost, Load, Run};
use crate::report::{Failure, Measure, Report};
use crate::works::{Pace, Work};

/// Everything that a comparison runs on.
pub struct Rounds<'a> {
    pub plan: &'a Plan,
    pub contenders: &'a [Box<dyn Contender>],
    pub relay_cpu: Cpu,
    pub backend: Backend,
    /// Set when somebody wants it to end.
    pub interrupted: &'a AtomicBool,
}

/// The error of a contender that did not finish a work.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("not started: {0}")]
    Start(#[from] StartError),
    #[error("{source}; it said: {said}")]
    Measure { source: MeasureError, said: String },
    #[error("it ended by itself ({status}) while it was measured; it said: {said}")]
    Ended { status: ExitStatus, said: String },
    #[error("it has no closed loop of `{closed}` to take the rate from")]
    NoRate { closed: Work },
}

impl<'a> Rounds<'a> {
    /// Adds what happens to `report`. Returns when the plan is done, or somebody has ended it.
    pub fn run(&mut self, report: &mut Report) {
        let teams: Vec<_> = self.plan.works.iter().map(|&work| (work, self.team(work))).collect();
        let runs = teams.iter().map(|(_, team)| team.len()).sum::<usize>() * self.plan.rounds;
        let mut progress = Progress::start(teams.len(), runs);
        for (work, team) in teams {
            for round in 0..self.plan.rounds {
                for turn in order(team.len(), round) {
                    if self.interrupted.load(Ordering::Relaxed) {
                        report.settings.complete = false;
                        return;
                    }
                    let contender = team[turn];
                    progress.begin(work, contender.name(), round);
                    match self.run_once(work, contender, report) {
                        Ok((load, cost)) => {
                            let contender = contender.name().to_owned();
                            report.runs.push(Run { contender, work, round, load, cost });
                        }
                        Err(error) => {
                            let (contender, reason) = (contender.name().to_owned(), error.to_string());
                            let failure = Failure { contender, work, round, reason };
                            progress.failed(&failure);
                            report.failures.push(failure);
                        }
                    }
                    progress.end();
                }
            }
            progress.summarise(report, work);
        }
    }

    fn team(&self, work: Work) -> Vec<&'a dyn Contender> {
        let joins = |contender: &&dyn Contender| contender.joins(work, self.plan.extent);
        self.contenders.iter().map(AsRef::as_ref).filter(joins).collect()
    }

    fn run_once(
        &mut self,
        work: Work,
        contender: &dyn Contender,
        report: &Report,
    ) -> Result<(Load, Option<Cost>), RunError> {
        let rate = rate_of(work, contender.name(), report)?;
        let mut started = contender.start(work, self.backend.address(), self.relay_cpu)?;
        let timing = Timing { warm_up: self.plan.warm_up, measure: self.plan.measure };
        let relay = started.relay.as_ref().map(Relay::id);
        let measured = measure(work, rate, &started.target, &mut self.backend, relay, timing);
        if let Some((status, said)) = started.relay.as_mut().and_then(Relay::ended) {
            return Err(RunError::Ended { status, said });
        }
        let said = || started.relay.as_ref().map_or_else(String::new, Relay::said);
        let (load, mut cost) = measured.map_err(|source| RunError::Measure { source, said: said() })?;
        if let Some(grown) = cost.as_mut().and_then(|cost| cost.rss_kib_per_session.as_mut()) {
            *grown += started.rss_ahead_kib;
        }
        Ok((load, cost))
    }
}

/// Exchanges per second that are due in an open loop: a share of what the same contender managed in the
/// closed one. `None` where a work goes as fast as it can.
fn rate_of(work: Work, contender: &str, report: &Report) -> Result<Option<f64>, RunError> {
    let (Work::Exchange { pace: Pace::Open { percent }, .. }, Some(closed)) = (work, closed_of(work)) else {
        return Ok(None);
    };
    let most = report.spread(closed, contender, Measure::ExchangesPerSecond);
    let most = most.ok_or(RunError::NoRate { closed })?.median;
    Ok(Some(most * f64::from(percent) / 100.0))
}
