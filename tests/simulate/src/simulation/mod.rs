//! Whole workers on a simulated kernel and network, with virtual time.
//!
//! A worker is the real one: its loop, listener, sessions, forwarding, limits and timers. [`kernel`] takes the place of
//! the ring and the system, [`world`] has everything that is around it, and a [`tape`] decides what happens next. So a
//! seed is a history, which can be played again to the bit, and be made shorter where it fails. docs/simulation.md says
//! how to run it, what it checks, and what it does not.

mod checks;
pub mod command;
mod connection;
mod content;
mod kernel;
mod operations;
mod panics;
mod plan;
mod remote;
mod rights;
mod run;
mod shrink;
mod tape;
mod tls;
mod trace;
mod world;
