//! The models that loom runs in every order of their threads, in one test program.
#![cfg(crossbeam_loom)]

mod epoch_cell;
mod revocations;
mod wake_ups;
