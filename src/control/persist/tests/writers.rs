//! One process writes; another one waits for its turn.

use std::fs;

use super::*;

#[test]
fn a_second_process_begins_with_the_state_and_becomes_the_writer_when_the_first_ends() {
    let (folder, mut first) = StateFolder::kept(&InForce::new(1..=4).view(), KeptBeside::default());
    let mut second = folder.process();
    assert!(InForce::of(second.load().unwrap().unwrap()).has_grant(1));
    let trouble = second.trouble().unwrap();
    assert!(trouble.contains("another process keeps its state there"), "{trouble}");
    assert!(!second.wants_state());

    // The first goes on, which the second does not see; what the second records is not the first's.
    first.record(&deletion(1));
    second.record(&deletion(2));
    assert_eq!([1, 2].map(|id| has_grant(folder.restored(), id)), [false, true]);

    drop(first);
    second.schedule.open_at = Instant::now();
    second.turn();
    assert_eq!(second.trouble(), None);
    assert!(second.wants_state(), "what is in force does not descend from what is there");
    let inferred = vec![Change::GrantGone(GrantId(4))];
    second.record(&JournalRecord { inferred, ..deletion(3) });
    let kept = InForce::of(folder.restored().unwrap().unwrap());
    assert_eq!([1, 2, 3, 4].map(|id| kept.has_grant(id)), [false, true, false, true], "words alone count");

    second.stop(Some(&InForce::new(4..=4).view()), KeptBeside::default());
    drop(second);
    let kept = InForce::of(folder.restored().unwrap().unwrap());
    assert_eq!([1, 2, 3, 4].map(|id| kept.has_grant(id)), [false, false, false, true]);
}

#[test]
fn a_process_that_stops_writes_what_the_files_do_not_lead_to() {
    let (folder, mut process) = StateFolder::kept(&InForce::new(1..=2).view(), KeptBeside::default());
    let written = fs::metadata(folder.state()).unwrap().modified().unwrap();
    process.record(&deletion(1));
    process.stop(Some(&InForce::new(2..=2).view()), KeptBeside::default());
    assert_eq!(fs::metadata(folder.state()).unwrap().modified().unwrap(), written, "the journal leads there");
    process.outdate();
    process.stop(Some(&InForce::new(3..=3).view()), KeptBeside::default());
    assert!(has_grant(folder.restored(), 3));
}

#[test]
fn what_is_no_folder_is_reported_and_costs_nothing_else() {
    let folder = StateFolder::new();
    fs::write(folder.path(), b"no folder").unwrap();
    let mut process = folder.process();
    assert!(process.load().is_err());
    process.record(&deletion(1));
    process.keep(&InForce::new(1..=1).view(), KeptBeside::default());
    let trouble = process.trouble().unwrap();
    assert!(trouble.contains("name a folder in authz.state"), "{trouble}");
}
