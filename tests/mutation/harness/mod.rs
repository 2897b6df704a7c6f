//! Faults of queries, derived from the contract: each operator on each column of each relation, on a part of the rows.
//!
//! A relay in this process reads a real database. A fault gets in underneath its queries, through the views that they
//! read, or by statements on the rows. While it lasts, every row is asked for, clients go on, and one credential, one
//! grant and one device are ended for good. Then the fault is mended. What must hold:
//!
//! - H1: no more rows are decided wrongly than the budgets of the groups that the fault touches.
//! - H2: at the second read after the mend nothing is decided wrongly.
//! - H3: what was ended is refused, stays refused, and its tunnels are closed.
//! - H4: a relay that is started again decides as it did before.
//! - H5: nobody reaches another device than the one that was asked for.
//!
//! The integration tests run a sample. `make mutate` runs each fault in all parts and sizes and on both stores, and
//! `make mutate ARGS="WORD..."` every case that has these words, such as `grants.principal shift 30% 40 sqlite`.
#![allow(dead_code, unused_imports, reason = "each test program uses a part of this")]

mod bed;
mod case;
mod law;
mod operator;
mod pool;
mod relay;
mod rights;
mod run;
mod store;
mod table;
mod traffic;
mod witness;

pub use case::Case;
pub use pool::run_all;
pub use relay::Guard;
pub use run::Outcome;
pub use store::StoreKind;
pub use table::{of_cases, of_faults, write};
