//! A disk that is slow, hangs or fails when it is asked to keep what was written.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::channel::{self, Receiver};

use super::*;

/// A process on a folder with a state, whose disk syncs a journal each time that the test sends something.
fn process_that_waits(folder: &StateFolder, allowed: Receiver<()>) -> (Persistence, Arc<AtomicUsize>) {
    let mut process = folder.process();
    process.load().unwrap();
    let syncs = Arc::<AtomicUsize>::default();
    let begun = Arc::clone(&syncs);
    process.syncing = SyncThread::new(Box::new(move |file| {
        begun.fetch_add(1, Ordering::SeqCst);
        // Without a sender the disk has never hung.
        let _sender_is_gone = allowed.recv();
        file.sync_data()
    }));
    (process, syncs)
}

fn folder() -> StateFolder {
    let (folder, process) = StateFolder::kept(&InForce::new(0..300).view(), KeptBeside::default());
    drop(process);
    folder
}

#[test]
fn ends_are_recorded_while_the_disk_hangs_and_are_synced_together_afterwards() {
    let folder = folder();
    let (allow, allowed) = channel::unbounded();
    let (mut process, syncs) = process_that_waits(&folder, allowed);
    process.record(&deletion(0));
    process.sync();
    while syncs.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let began = Instant::now();
    for id in 1..200 {
        process.record(&deletion(id));
        process.sync();
        process.turn();
        assert!(!process.wants_state(), "no state is begun on a disk that hangs");
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(syncs.load(Ordering::SeqCst), 1, "one hangs");
    assert!(!has_grant(folder.restored(), 199), "a crash loses nothing");

    drop(allow);
    assert!(process.syncing.wait(Duration::from_secs(20)));
    assert_eq!(syncs.load(Ordering::SeqCst), 2, "all others are one");
}

#[test]
fn the_end_of_the_process_waits_for_the_disk_and_not_for_ever() {
    let folder = folder();
    let (allow, allowed) = channel::unbounded();
    let (mut process, _) = process_that_waits(&folder, allowed);
    let view = InForce::new(1..300).view();
    process.record(&deletion(0));
    process.sync();
    process.outdate();
    let began = Instant::now();
    process.stop(Some(&view), KeptBeside::default());
    let lasted = began.elapsed();
    assert!(lasted >= STOP_SYNC_MAX && lasted < STOP_SYNC_MAX * 4, "{lasted:?}");
    assert!(!has_grant(folder.restored(), 0));

    drop(allow);
    process.stop(Some(&view), KeptBeside::default());
    let kept = folder.restored().unwrap().unwrap();
    assert!(!kept.has_gap, "the state was written");
}

#[test]
fn a_record_that_the_disk_refuses_to_keep_leaves_no_state_without_it() {
    let folder = folder();
    let mut process = folder.process();
    process.load().unwrap();
    process.syncing = SyncThread::new(Box::new(|_| Err(io::Error::other("the disk is broken"))));
    process.record(&deletion(0));
    process.sync();
    assert!(process.syncing.wait(Duration::from_secs(20)));
    process.turn();
    let trouble = process.trouble().unwrap();
    assert!(trouble.contains("the disk is broken"), "{trouble}");
    assert!(folder.restored().unwrap().is_none());
}
