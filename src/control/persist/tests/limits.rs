//! Every bound of the files, at the bound.

use std::fs;

use super::frames::CONTENT_BYTES_MAX;
use super::*;

fn step_of(memory_bytes: usize) -> JournalRecord {
    JournalRecord {
        inferred: vec![Change::Grant(grant(9, false))],
        memory: Some(vec![7; memory_bytes]),
        ..deletion(1)
    }
}

#[test]
fn a_step_that_does_not_fit_keeps_its_words_and_a_state_is_due_at_once() {
    let largest = CONTENT_BYTES_MAX - overhead();
    for (memory_bytes, fits) in [(largest, true), (largest + 1, false)] {
        let (folder, mut process) = StateFolder::kept(&InForce::new(1..=3).view(), KeptBeside::default());
        assert!(!process.wants_state());
        process.record(&step_of(memory_bytes));
        process.record(&deletion(2));
        let kept = folder.restored().unwrap().unwrap();
        assert_eq!((kept.has_gap, kept.memory.is_empty()), (!fits, !fits));
        let kept = InForce::of(kept);
        assert_eq!([1, 2, 3, 9].map(|id| kept.has_grant(id)), [false, false, true, fits]);
        process.schedule.urgent_at = Instant::now();
        assert_eq!(process.wants_state(), !fits);
    }
}

/// Bytes of the step beside its memory, where that takes three bytes for its length.
fn overhead() -> usize {
    step_of(100_000).contents(UnixMillis(0)).unwrap()[0].len() - 100_000
}

#[test]
fn a_mass_of_words_is_recorded_whatever_its_size() {
    let (folder, mut process) = StateFolder::kept(&InForce::new(1..=30_000).view(), KeptBeside::default());
    let words = (1..=29_999).map(|id| Change::GrantGone(GrantId(id))).collect();
    let ended = (1..=29_999).map(grant_end).collect();
    process.record(&JournalRecord { words, ended, ..JournalRecord::default() });
    let kept = InForce::of(folder.restored().unwrap().unwrap());
    assert_eq!((kept.snapshot.row_counts().grants, kept.ends.len()), (1, 29_999));
    assert!(kept.has_grant(30_000));
}

#[test]
fn a_row_too_large_for_the_journal_leaves_no_state_without_it() {
    let (folder, mut process) = StateFolder::kept(&InForce::new(1..=2).view(), KeptBeside::default());
    let node = Some("n".repeat(CONTENT_BYTES_MAX).into());
    let words = vec![Change::Device(Device { node, ..device(1, 1) })];
    process.record(&JournalRecord { words, ..deletion(1) });
    assert!(process.trouble().unwrap().contains("too large"));
    assert!(folder.restored().unwrap().is_none());
}

#[test]
fn a_long_journal_is_continued_by_another_and_goes_with_the_next_state() {
    let in_force = InForce::new(1..=2);
    let (folder, mut process) = StateFolder::kept(&in_force.view(), KeptBeside::default());
    process.limits = JournalLimits { due: 200, file: 200, max: 100_000 };
    assert!(!process.wants_state());
    while process.unsaved_bytes <= 200 {
        process.record(&deletion(1));
    }
    assert!(!process.wants_state(), "there is a pause between two states");
    process.schedule.save_at = Instant::now();
    assert!(process.wants_state());
    process.keep(&in_force.view(), KeptBeside::default());
    process.finish_saving();
    assert!(!folder.journal().exists() && folder.path().join("last-good.journal.2").exists());
    process.schedule.save_at = Instant::now();
    assert!(!process.wants_state() && process.unsaved_bytes == 0);
}

#[test]
fn a_journal_that_no_state_could_relieve_for_long_is_given_up() {
    let (folder, mut process) = StateFolder::kept(&InForce::new(1..=2).view(), KeptBeside::default());
    process.record(&deletion(1));
    let step = process.unsaved_bytes;
    process.limits.max = 3 * step;
    process.record(&deletion(1));
    process.record(&deletion(1));
    assert_eq!(process.trouble(), None);
    assert!(folder.restored().unwrap().is_some());
    process.record(&deletion(1));
    assert!(process.trouble().unwrap().contains("the journal is full"));
    assert!(folder.restored().unwrap().is_none());
}

#[test]
fn what_is_forgotten_is_in_no_file_any_more() {
    let mut in_force = InForce::new(1..=2);
    let (folder, mut process) = StateFolder::kept(&in_force.view(), KeptBeside::default());
    let bytes = || {
        fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    let before = bytes();
    let key = |n: u32| End::Credential(KeyHash::of_token(&n.to_le_bytes()));
    let ends: Vec<End> = (0..200_000).map(key).collect();
    for part in ends.chunks(1_000) {
        process.record(&JournalRecord { ended: part.to_vec(), ..JournalRecord::default() });
    }
    in_force.ends = ends.into_iter().collect();
    process.keep(&in_force.view(), KeptBeside::default());
    process.finish_saving();
    assert!(bytes() > before + 6_000_000, "as long as the guard remembers them: {}", bytes());
    assert_eq!(InForce::of(folder.restored().unwrap().unwrap()).ends.len(), 200_000);

    in_force.ends.clear();
    process.keep(&in_force.view(), KeptBeside::default());
    process.finish_saving();
    assert!(bytes() < before + 100, "{} of {before}", bytes());
    assert_eq!(process.trouble(), None);
}
