//! Full disks, folders that cannot be written, and files that cannot be removed: no older state is left for a start.
//!
//! Each test runs in a mount namespace of its thread, so that nothing of it is left.

use std::fs;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use super::*;

/// A state folder on a small disk of its own.
struct SmallDisk {
    folder: StateFolder,
}

impl SmallDisk {
    fn new(size: &str) -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("root is there");
        run(&["mount", "--make-rprivate", "/"]);
        let disk = Self { folder: StateFolder::new() };
        fs::create_dir(disk.folder.path()).unwrap();
        run(&["mount", "-t", "tmpfs", "-o", &format!("size={size},mode=700"), "tmpfs", &disk.mount_point()]);
        disk
    }

    fn mount_point(&self) -> String {
        self.folder.path().display().to_string()
    }

    fn process_with_state(&self, in_force: &InForce) -> Persistence {
        let mut process = self.folder.process();
        assert!(process.load().unwrap().is_none());
        process.keep(&in_force.view(), KeptBeside::default());
        process.finish_saving();
        assert_eq!(process.trouble(), None);
        process
    }

    fn fill(&self) {
        let full = fs::write(self.folder.path().join("filler"), vec![1; 64 << 20]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    }

    fn empty(&self) {
        fs::remove_file(self.folder.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run(&["umount", "--recursive", &self.mount_point()]);
    }
}

fn run(command: &[&str]) {
    let done = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Records steps until one does not fit.
fn record_until_trouble(process: &mut Persistence) -> usize {
    for number in 0.. {
        process.record(&JournalRecord { memory: Some(vec![1; 4_096]), ..deletion(1) });
        if process.trouble().is_some() {
            return number;
        }
    }
    unreachable!("the loop ends by returning");
}

#[test]
fn a_full_disk_does_not_lose_the_next_ends() {
    let disk = SmallDisk::new("1m");
    let mut process = disk.process_with_state(&InForce::new(1..=2));
    disk.fill();
    process.record(&deletion(1));
    assert_eq!(process.trouble(), None);
    drop(process);
    assert_eq!([1, 2].map(|id| has_grant(disk.folder.restored(), id)), [false, true]);
}

#[test]
fn an_end_that_a_full_disk_does_not_keep_leaves_no_state_until_there_is_room() {
    let disk = SmallDisk::new("1m");
    let mut in_force = InForce::new(1..=2);
    let mut process = disk.process_with_state(&in_force);
    disk.fill();
    let recorded = record_until_trouble(&mut process);
    assert!(recorded > 40, "{recorded}: space is reserved");
    let trouble = process.trouble().unwrap();
    assert!(trouble.contains("make room on its disk: until then a restart needs the store"), "{trouble}");
    assert!(disk.folder.restored().unwrap().is_none());

    // The room that the state gave back goes as well.
    disk.fill();
    in_force.apply(&deletion(1));
    process.keep(&in_force.view(), KeptBeside::default());
    process.finish_saving();
    assert!(process.trouble().is_some() && disk.folder.restored().unwrap().is_none());
    assert!(!disk.folder.path().join("last-good.new").exists(), "what was written in part takes no space");
    assert!(!process.wants_state(), "there is a pause between attempts");
    process.schedule.save_at = Instant::now();
    assert!(process.wants_state());

    disk.empty();
    process.keep(&in_force.view(), KeptBeside::default());
    process.finish_saving();
    assert_eq!(process.trouble(), None);
    assert_eq!([1, 2].map(|id| has_grant(disk.folder.restored(), id)), [false, true]);
}

#[test]
fn a_state_that_does_not_fit_leaves_the_old_one_and_its_journal() {
    let disk = SmallDisk::new("1m");
    let mut process = disk.process_with_state(&InForce::new(1..=2));
    process.record(&deletion(1));
    process.keep(&InForce::new(2..=50_000).view(), KeptBeside::default());
    process.record(&deletion(2));
    process.finish_saving();
    assert!(process.trouble().is_some() && process.schedule.is_needed);
    let kept = InForce::of(disk.folder.restored().unwrap().unwrap());
    assert_eq!((kept.snapshot.row_counts().grants, kept.has_grant(1), kept.has_grant(2)), (0, false, false));
}

#[test]
fn a_disk_that_cannot_be_written_is_reported_and_its_state_goes_when_it_can() {
    let disk = SmallDisk::new("1m");
    drop(disk.process_with_state(&InForce::new(1..=2)));
    run(&["mount", "-o", "remount,ro", &disk.mount_point()]);
    let mut process = disk.folder.process();
    assert!(InForce::of(process.load().unwrap().unwrap()).has_grant(1), "it is read all the same");
    let trouble = process.trouble().unwrap();
    assert!(trouble.contains("make it writable for the relay's user"), "{trouble}");

    process.record(&deletion(1));
    process.turn();
    let trouble = process.trouble().unwrap();
    assert!(
        trouble.contains("lacks rights that have ended, and can be neither replaced nor removed"),
        "{trouble}"
    );

    run(&["mount", "-o", "remount,rw", &disk.mount_point()]);
    process.turn();
    assert!(disk.folder.restored().unwrap().is_none());
    process.schedule.open_at = Instant::now();
    process.turn();
    process.keep(&InForce::new(2..=2).view(), KeptBeside::default());
    process.finish_saving();
    assert_eq!(process.trouble(), None);
    assert_eq!([1, 2].map(|id| has_grant(disk.folder.restored(), id)), [false, true]);
}

#[test]
fn a_state_that_cannot_be_removed_is_emptied_or_reported() {
    let disk = SmallDisk::new("1m");
    let mut process = disk.process_with_state(&InForce::new(1..=2));
    let state = disk.folder.state().display().to_string();
    // A mount point cannot be unlinked.
    run(&["mount", "--bind", &state, &state]);
    process.lose(&io::Error::from(io::ErrorKind::StorageFull));
    assert_eq!(fs::metadata(&state).unwrap().len(), 0);
    assert!(disk.folder.restored().unwrap().is_none());
    run(&["umount", &state]);

    let mut process = {
        drop(process);
        fs::remove_file(&state).unwrap();
        disk.process_with_state(&InForce::new(1..=2))
    };
    run(&["mount", "--bind", &state, &state]);
    run(&["mount", "-o", "remount,bind,ro", &state]);
    process.lose(&io::Error::from(io::ErrorKind::StorageFull));
    let trouble = process.trouble().unwrap();
    assert!(trouble.contains("can be neither replaced nor removed"), "{trouble}");
    run(&["umount", &state]);
    process.turn();
    assert!(disk.folder.restored().unwrap().is_none());
    assert!(process.trouble().unwrap().contains("make room"), "{:?}", process.trouble());
}

#[test]
fn a_state_that_was_begun_before_a_lost_end_does_not_come_after_it() {
    let (folder, mut process) = StateFolder::kept(&InForce::new(1..=2).view(), KeptBeside::default());
    for rows in [1, 30_000] {
        process.keep(&InForce::new(1..=rows).view(), KeptBeside::default());
        process.lose(&io::Error::from(io::ErrorKind::StorageFull));
        process.finish_saving();
        assert!(folder.restored().unwrap().is_none());
        assert!(process.trouble().is_some() && process.schedule.is_needed);
    }
}
