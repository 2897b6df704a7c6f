//! Engine threads that sleep, and what they are told meanwhile. A waking that is lost is a deadlock here.
#![cfg(crossbeam_loom)]

use std::time::Duration;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use sluicegate_loom::authz::{Authority, Query, UnixMillis};
use sluicegate_loom::engine::{Busy, EngineThread, Shared, WorkerRequest};
use sluicegate_loom::explore;

const NOW: UnixMillis = UnixMillis(0);
const TUNNEL: Query = Query { subject: None, device: None, port: 0 };

fn shared() -> Arc<Shared> {
    Shared::new(Authority::new(Duration::from_secs(60), None))
}

#[test]
fn a_recheck_is_heard_whatever_else_wakes_the_thread() {
    explore(|| {
        let shared = shared();
        let engine = thread::spawn({
            let mut engine = EngineThread::new(&shared);
            move || while engine.turn(&TUNNEL, NOW).recheck.is_none() {}
        });
        let nudger = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.nudge()
        });
        shared.recheck();
        nudger.join().unwrap();
        engine.join().unwrap();
    });
}

#[test]
fn who_hears_of_a_recheck_sees_all_that_was_done_before_it() {
    explore(|| {
        let shared = shared();
        let done = Arc::new(AtomicU32::new(0));
        let engine = thread::spawn({
            let (mut engine, done) = (EngineThread::new(&shared), Arc::clone(&done));
            move || {
                if engine.hears_recheck() {
                    assert_eq!(done.load(Ordering::Relaxed), 1);
                }
            }
        });
        done.store(1, Ordering::Relaxed);
        shared.recheck();
        engine.join().unwrap();
    });
}

#[test]
fn every_request_that_found_room_is_served() {
    explore(|| {
        let shared = shared();
        let subject = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.ask(WorkerRequest(1)).expect("there is room for two")
        });
        shared.ask(WorkerRequest(2)).expect("there is room for two");
        let mut engine = EngineThread::new(&shared);
        let mut served = Vec::new();
        while served.len() < 2 {
            served.extend(engine.turn(&TUNNEL, NOW).request);
        }
        assert!(served.contains(&WorkerRequest(1)) && served.contains(&WorkerRequest(2)), "{served:?}");
        subject.join().unwrap();
    });
}

#[test]
fn a_full_queue_of_requests_costs_neither_a_recheck_nor_what_is_in_it() {
    explore(|| {
        let shared = shared();
        let accepted = Arc::new(AtomicU32::new(0));
        let engine = thread::spawn({
            let (mut engine, accepted) = (EngineThread::new(&shared), Arc::clone(&accepted));
            move || {
                let (mut served, mut is_rechecked) = (0, false);
                // Only who has heard of the recheck knows how many there are.
                while !is_rechecked || served < accepted.load(Ordering::Relaxed) {
                    let turn = engine.turn(&TUNNEL, NOW);
                    served += u32::from(turn.request.is_some());
                    is_rechecked |= turn.recheck.is_some();
                }
            }
        });
        let asked = [1, 2, 3].map(|number| shared.ask(WorkerRequest(number)));
        let found_room = asked.iter().filter(|asked| !matches!(asked, Err(Busy))).count();
        accepted.store(found_room as u32, Ordering::Relaxed);
        shared.recheck();
        engine.join().unwrap();
    });
}

#[test]
fn a_stop_is_heard_whatever_else_wakes_the_thread() {
    explore(|| {
        let shared = shared();
        let engine = thread::spawn({
            let mut engine = EngineThread::new(&shared);
            move || while !engine.turn(&TUNNEL, NOW).is_last {}
        });
        shared.recheck();
        shared.stop();
        engine.join().unwrap();
    });
}
