//! A hand-over: a new process takes over from the running one, with its sockets, its state and its live tunnels.
//!
//! The old process starts the program that is on disk now, and speaks with it over a pair of connected sockets:
//!
//! | old process | new process |
//! |---|---|
//! | `hello` with the version of the format | `hello`; checks its configuration: `checked` or `refused` |
//! | stops writing: state folder, directory, VPN reports; sends copies of its listeners, and its queries; `start` | restores the state, compares changed queries with those of the old process, starts its threads, accepts nobody: `ready` or `refused` |
//! | stops accepting; `history` where the new process takes it; `commit` | accepts, and serves the admin side: `running` |
//! | tells the service manager; `main` | reports to the service manager |
//! | moves tunnels, batch by batch | holds a batch until the old process has let go of it, then goes on with it |
//!
//! Up to `running` the old process goes on as if nothing had happened where anything fails: it ends the new one and
//! writes again. Until then the new process has read no byte and accepted no client. Afterwards the old process serves
//! what could not move, and asks the new one about rights.
//!
//! Steps are JSON, so that versions understand each other's. A step that older versions do not know is sent only where the
//! other's `hello` says that it takes it. The format of tunnels is binary and has a version, and tunnels move only between
//! processes with the same.

mod arrivals;
mod channel;
mod departures;
#[doc(hidden)]
pub mod fuzzing;
mod message;
mod other_process;
mod predecessor;
mod program;
mod queries;
mod reloads;
mod successor;
mod tunnels;
mod upgrades;

pub use arrivals::ArrivalsThread;
pub use departures::{DepartureProgress, DeparturesThread};
pub use other_process::OtherProcess;
pub use predecessor::{Predecessor, PredecessorError, TakenOver, Terms};
pub use program::Program;
pub use queries::PassedQueries;
pub use reloads::{PassedReloads, ReloadOutcome};
pub use successor::{Committed, HandoverError, Offer, Successor};
pub use upgrades::{UpgradeOutcome, UpgradeRequest, UpgradeTicket};
