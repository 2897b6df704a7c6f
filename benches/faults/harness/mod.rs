//! Faults of system calls in a running relay: what fails, how it is brought about, what must hold, and a table of what
//! happens.

#![allow(unused_imports, dead_code, reason = "the long run and the sample each use a part of this")]

mod bed;
mod calls;
mod case;
mod control;
mod outcome;
mod run;
mod table;

pub use calls::census_misses;
pub use case::{Case, Moment};
pub use control::supervisor_or_skip;
pub use outcome::Outcome;
pub use run::{census, run_all};
pub use table::{of_outcomes, put_into_page};
