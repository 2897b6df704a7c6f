//! `sluicegate demo`: runs a complete relay with embedded parts, sends traffic through real tunnels, and prints
//! figures.
//!
//! The devices, the relay and the client all run in this process and on loopback. Each step prints what it saw, and
//! every figure was measured in this run.

mod admin;
mod answer;
mod bulk;
mod client;
mod devices;
mod echo;
mod incident;
mod interrupt;
mod latency;
mod memory;
mod noise;
mod page;
mod paste;
mod refusals;
mod revocation;
mod rights;
mod screen;
mod second_node;
mod steps;
mod world;

use std::io;
use std::path::PathBuf;

use clap::Args;

use super::output::CommandError;
use crate::node::NodeError;
use crate::store::StoreError;
use crate::store::admin::AdminError;
use interrupt::Interrupt;
use screen::Screen;
use steps::Steps;
use world::DemoWorld;

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Exit after the last step instead of keeping the relay up.
    #[arg(long)]
    once: bool,
}

/// Reason why a demo failed.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("the demo's {what} cannot be set up: {source}")]
    SetUp { what: &'static str, source: io::Error },
    #[error("the demo's store: {0}")]
    Store(#[from] AdminError),
    #[error("the demo's view: {0}")]
    View(rusqlite::Error),
    #[error("the demo's relay: {0}")]
    Node(#[from] NodeError),
    #[error("{} cannot be removed: {source}; remove it by hand", .path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("{failed} of {steps} steps failed: {names}", failed = .names.len(), names = .names.join(", "))]
    Failed { steps: usize, names: Vec<String> },
    #[error("interrupted before the last step; what ran until then is shown above")]
    Interrupted,
}

pub fn run(args: &DemoArgs) -> Result<(), CommandError> {
    show(args).map_err(CommandError::failed)
}

fn show(args: &DemoArgs) -> Result<(), DemoError> {
    let mut interrupt = Interrupt::watch().map_err(|source| DemoError::SetUp { what: "Ctrl-C", source })?;
    let screen = Screen::of_stdout();
    screen.title("sluicegate demo: devices, a relay and a client in one process, and tunnels between them");
    let mut steps = Steps::new(screen);
    let world = DemoWorld::set_up(&mut steps)?;
    let shown = show_world(&world, &mut steps, &interrupt);
    if shown.is_ok() {
        steps.show_figures();
        if !args.once {
            paste::show(&world, steps.screen());
            interrupt.wait();
        }
    }
    shown.and(world.take_down())?;
    steps.outcome()
}

fn show_world(world: &DemoWorld, steps: &mut Steps, interrupt: &Interrupt) -> Result<(), DemoError> {
    page::show(world, steps);
    interrupt.check()?;
    refusals::show(world, steps);
    interrupt.check()?;
    bulk::show(world, steps, interrupt);
    interrupt.check()?;
    latency::show(world, steps);
    interrupt.check()?;
    revocation::show(world, steps);
    interrupt.check()?;
    admin::show(world, steps);
    interrupt.check()?;
    second_node::show(world, steps)?;
    interrupt.check()?;
    incident::show(world, steps, interrupt)?;
    interrupt.check()?;
    memory::show(steps);
    Ok(())
}

impl From<StoreError> for DemoError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.into())
    }
}
