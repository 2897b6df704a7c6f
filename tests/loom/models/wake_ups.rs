//! An engine thread sleeps while other threads send it signals and requests. A lost wake-up is a deadlock.

use std::time::Duration;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use sluicegate_loom::authz::{Authority, Query, UnixMillis};
use sluicegate_loom::engine::{EngineThread, QueueFull, Shared, WorkerRequest};
use sluicegate_loom::explore;

const NOW: UnixMillis = UnixMillis(0);
const TUNNEL: Query = Query { subject: None, device: None, port: 0 };

fn shared() -> Arc<Shared> {
    Shared::new(Authority::new(Duration::from_secs(60), None))
}

#[test]
fn a_recheck_is_seen_whatever_else_wakes_the_thread() {
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
fn a_thread_that_sees_a_recheck_sees_all_writes_before_it() {
    explore(|| {
        let shared = shared();
        let done = Arc::new(AtomicU32::new(0));
        let engine = thread::spawn({
            let (mut engine, done) = (EngineThread::new(&shared), Arc::clone(&done));
            move || {
                if engine.sees_recheck() {
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
fn every_request_that_the_queue_accepted_is_served() {
    explore(|| {
        let shared = shared();
        let requester = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.submit(WorkerRequest(1)).expect("the queue holds two requests")
        });
        shared.submit(WorkerRequest(2)).expect("the queue holds two requests");
        let mut engine = EngineThread::new(&shared);
        let mut served = Vec::new();
        while served.len() < 2 {
            served.extend(engine.turn(&TUNNEL, NOW).request);
        }
        assert!(served.contains(&WorkerRequest(1)) && served.contains(&WorkerRequest(2)), "{served:?}");
        requester.join().unwrap();
    });
}

#[test]
fn a_full_queue_loses_neither_a_recheck_nor_an_accepted_request() {
    explore(|| {
        let shared = shared();
        let accepted = Arc::new(AtomicU32::new(0));
        let engine = thread::spawn({
            let (mut engine, accepted) = (EngineThread::new(&shared), Arc::clone(&accepted));
            move || {
                let (mut served, mut is_rechecked) = (0, false);
                // `accepted` is final once the recheck is visible.
                while !is_rechecked || served < accepted.load(Ordering::Relaxed) {
                    let turn = engine.turn(&TUNNEL, NOW);
                    served += u32::from(turn.request.is_some());
                    is_rechecked |= turn.recheck.is_some();
                }
            }
        });
        let replies = [1, 2, 3].map(|number| shared.submit(WorkerRequest(number)));
        let accepted_count = replies.iter().filter(|reply| !matches!(reply, Err(QueueFull))).count();
        accepted.store(accepted_count as u32, Ordering::Relaxed);
        shared.recheck();
        engine.join().unwrap();
    });
}

#[test]
fn a_stop_is_seen_whatever_else_wakes_the_thread() {
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
