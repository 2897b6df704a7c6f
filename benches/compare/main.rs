//! sluicegate beside its peers: the same works for each, one relay core, one generator core, in turns.
//!
//! `make compare` runs it; `benches/README.md` says how it measures and what it cannot tell.

mod contender;
mod generator;
mod machine;
mod network;
mod options;
mod plan;
mod process;
mod progress;
mod record;
mod report;
mod rounds;
mod works;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use jiff::Timestamp;
use signal_hook::consts::{SIGINT, SIGTERM};
use sluicegate::sys::cpu::{self, Cpu};

use contender::{Contender, ContendersError};
use generator::Backend;
use options::Options;
use plan::Plan;
use report::{Entrant, LeftOut, Part, Report, ReportError, Settings};
use rounds::Rounds;

fn main() -> ExitCode {
    let options = Options::parse();
    match compare(&options) {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::SluicegateFailed) => {
            eprintln!("sluicegate itself failed; the report says where");
            ExitCode::FAILURE
        }
        Ok(Outcome::Interrupted) => {
            eprintln!("ended before the plan was done");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

enum Outcome {
    Good,
    SluicegateFailed,
    Interrupted,
}

/// Nothing was measured, or it could not be written.
#[derive(Debug, thiserror::Error)]
enum CompareError {
    #[error(transparent)]
    Contenders(#[from] ContendersError),
    #[error("there is no contender `{name}`; there are {known}")]
    UnknownContender { name: String, known: String },
    #[error("no work is named `{only}`; `--list` names all")]
    NoWork { only: String },
    #[error("this needs two CPUs, one for the relay and one for clients and backend; {0} may be used here")]
    OneCpu(usize),
    #[error("the machine does not let it: {0}")]
    Machine(#[from] io::Error),
    #[error(transparent)]
    Report(#[from] ReportError),
}

fn compare(options: &Options) -> Result<Outcome, CompareError> {
    if let Some(report) = Report::read_together(&options.from)? {
        tell(&report, options)?;
        return Ok(Outcome::Good);
    }
    let plan = options.plan();
    if plan.works.is_empty() {
        return Err(CompareError::NoWork { only: options.only.join("` or `") });
    }
    let contenders = chosen(contender::all(options.peers.as_deref())?, &options.contenders)?;
    if options.list {
        list(&plan, &contenders);
        return Ok(Outcome::Good);
    }
    if cfg!(debug_assertions) {
        // `cargo test --benches` comes here too, and has nothing to complain about.
        eprintln!("nothing is measured: this is a debug build; `make compare` builds a release");
        return Ok(Outcome::Good);
    }
    let cpus = cpu::allowed()?;
    let &[relay_cpu, generator_cpu, ..] = cpus.as_slice() else {
        return Err(CompareError::OneCpu(cpus.len()));
    };
    if let Err(error) = network::isolate() {
        eprintln!("{error}");
    }
    let interrupted = watch_signals()?;
    // Threads that start from now on share it; relays are put elsewhere.
    cpu::pin_thread(generator_cpu)?;
    let mut report = Report {
        machine: machine::look(),
        settings: settings(&plan, relay_cpu, generator_cpu),
        contenders: Vec::new(),
        left_out: Vec::new(),
        runs: Vec::new(),
        failures: Vec::new(),
    };
    let contenders = present(contenders, &mut report);
    let backend = Backend::start()?;
    Rounds { plan: &plan, contenders: &contenders, relay_cpu, backend, interrupted: &interrupted }
        .run(&mut report);
    tell(&report, options)?;
    Ok(if report.sluicegate_failed() {
        Outcome::SluicegateFailed
    } else if report.settings.complete {
        Outcome::Good
    } else {
        Outcome::Interrupted
    })
}

/// Writes the report, and shows its figures.
fn tell(report: &Report, options: &Options) -> Result<(), ReportError> {
    report.write(&options.out)?;
    println!("\n{}\n{}", report::figures_table(report), options.out.join("report.md").display());
    Ok(())
}

/// Those of `all` that are `wanted`; without a wish all.
fn chosen(
    mut all: Vec<Box<dyn Contender>>,
    wanted: &[String],
) -> Result<Vec<Box<dyn Contender>>, CompareError> {
    let names: Vec<String> = all.iter().map(|contender| contender.name().to_owned()).collect();
    if let Some(name) = wanted.iter().find(|name| !names.contains(name)) {
        return Err(CompareError::UnknownContender { name: name.clone(), known: names.join(", ") });
    }
    all.retain(|contender| wanted.is_empty() || wanted.iter().any(|name| name == contender.name()));
    Ok(all)
}

/// Those that can run here; `report` tells of the others.
fn present(contenders: Vec<Box<dyn Contender>>, report: &mut Report) -> Vec<Box<dyn Contender>> {
    let mut present = Vec::new();
    for contender in contenders {
        let name = contender.name().to_owned();
        match contender.facts() {
            Ok(facts) => {
                report.contenders.push(Entrant { name, version: facts.version, settings: facts.settings });
                present.push(contender);
            }
            Err(missing) => {
                eprintln!("left out: {name}: {missing}");
                report.left_out.push(LeftOut { contender: name, reason: missing.to_string() });
            }
        }
    }
    present
}

fn settings(plan: &Plan, relay_cpu: Cpu, generator_cpu: Cpu) -> Settings {
    Settings {
        parts: vec![Part {
            arguments: std::env::args().skip(1).filter(|argument| argument != "--bench").collect(),
            started_at: Timestamp::now().to_string(),
        }],
        rounds: plan.rounds,
        warm_up_seconds: plan.warm_up.as_secs_f64(),
        measure_seconds: plan.measure.as_secs_f64(),
        relay_cpu: relay_cpu.0,
        generator_cpu: generator_cpu.0,
        complete: true,
    }
}

/// The first signal ends the comparison after the run that is on, the second at once.
fn watch_signals() -> io::Result<Arc<AtomicBool>> {
    let came = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the second signal finds the flag that the first one set.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&came))?;
        signal_hook::flag::register(signal, Arc::clone(&came))?;
    }
    Ok(came)
}

fn list(plan: &Plan, contenders: &[Box<dyn Contender>]) {
    for &work in &plan.works {
        let team = contenders.iter().filter(|contender| contender.joins(work, plan.extent));
        let team: Vec<&str> = team.map(|contender| contender.name()).collect();
        println!("{work}: {}", team.join(", "));
    }
}
