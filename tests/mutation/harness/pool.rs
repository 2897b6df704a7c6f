//! Runs many cases side by side, each thread on databases of its own.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use sluicegate::authz::UnixMillis;

use super::bed::{Bed, Ground};
use super::case::Case;
use super::relay::Guard;
use super::rights::Installation;
use super::run::{Outcome, run};
use super::store::StoreKind;
use super::traffic::DEVICE_PORT;

/// Runs `cases` by `threads` threads; shows each outcome to `each` as it comes. Cases on PostgreSQL are left out where
/// it is not installed.
pub fn run_all(cases: &[Case], guard: Guard, threads: usize, each: impl Fn(&Outcome) + Sync) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut beds: HashMap<(StoreKind, Ground, usize), Option<Bed>> = HashMap::new();
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let bed = beds.entry((case.store, case.ground, case.size)).or_insert_with(|| {
                        let (devices, port, now) = (case.size, *DEVICE_PORT, UnixMillis::now());
                        Bed::new(case.store, case.ground, Installation { devices, port, now })
                    });
                    let Some(of_case) = bed else { continue };
                    // A case that does not run leaves the others to run.
                    match catch_unwind(AssertUnwindSafe(|| run(*case, of_case, guard))) {
                        Ok(outcome) => {
                            each(&outcome);
                            outcomes.lock().push(outcome);
                        }
                        Err(_) => {
                            let outcome = Outcome::not_run(*case);
                            each(&outcome);
                            outcomes.lock().push(outcome);
                            *bed = None;
                            beds.remove(&(case.store, case.ground, case.size));
                        }
                    }
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner();
    outcomes.sort_by_key(|outcome| cases.iter().position(|case| *case == outcome.case));
    outcomes
}
