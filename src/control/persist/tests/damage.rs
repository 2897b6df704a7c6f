//! What is damaged, foreign or of another version is not used.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn damage_at_any_byte_is_found() {
    let (folder, mut process) = StateFolder::kept(&InForce::new(1..=3).view(), KeptBeside::default());
    process.record(&deletion(1));
    process.outdate();
    process.record(&deletion(2));
    drop(process);
    let offset = match restore::journal_end(&Folder { path: folder.path() }, &folder.process().origin) {
        Ok(Some(end)) => end.place.offset as usize,
        _ => panic!("there is a state"),
    };
    for (path, from) in [(folder.state(), 0), (folder.journal(), 0)] {
        let whole = fs::read(&path).unwrap();
        assert!(path == folder.state() || whole.len() == offset);
        for at in from..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x20;
            fs::write(&path, &damaged).unwrap();
            assert!(folder.restored().is_err(), "byte {at} of {}", path.display());
        }
        fs::write(&path, &whole).unwrap();
    }
    assert!(has_grant(folder.restored(), 3));
}

#[test]
fn zeros_behind_the_end_are_what_a_power_cut_leaves() {
    let (folder, mut process) = StateFolder::kept(&InForce::new(1..=2).view(), KeptBeside::default());
    process.record(&deletion(1));
    drop(process);
    let mut bytes = fs::read(folder.journal()).unwrap();
    bytes.extend([0; 5_000]);
    fs::write(folder.journal(), &bytes).unwrap();
    assert!(!has_grant(folder.restored(), 1));
    // Written on from the last whole entry.
    let mut process = folder.process();
    process.load().unwrap().unwrap();
    process.record(&deletion(2));
    drop(process);
    assert!(!has_grant(folder.restored(), 1) && !has_grant(folder.restored(), 2));
    *bytes.last_mut().unwrap() = 1;
    fs::write(folder.journal(), &bytes).unwrap();
    assert!(matches!(folder.restored(), Err(KeptError::Damaged { .. })));
}

#[test]
fn a_state_without_its_journal_is_not_used() {
    let (folder, process) = StateFolder::kept(&InForce::new(1..=2).view(), KeptBeside::default());
    drop(process);
    let (other, process) = StateFolder::kept(&InForce::new(1..=2).view(), KeptBeside::default());
    drop(process);
    let message = |folder: &StateFolder| folder.restored().err().unwrap().to_string();
    fs::copy(other.journal(), folder.journal()).unwrap();
    assert!(message(&folder).contains("it does not belong to the state"), "{}", message(&folder));
    fs::remove_file(folder.journal()).unwrap();
    assert!(message(&folder).contains("the state needs it"), "{}", message(&folder));
}

#[test]
fn a_state_of_another_version_or_store_is_not_used_and_is_replaced() {
    let in_force = InForce::new(1..=2);
    let (folder, process) = StateFolder::kept(&in_force.view(), KeptBeside::default());
    drop(process);
    let mut bytes = fs::read(folder.state()).unwrap();
    bytes[20] = b'2';
    fs::write(folder.state(), &bytes).unwrap();
    let mut process = folder.process();
    let refused = process.load().err().unwrap();
    assert!(matches!(refused, KeptError::Version { .. }), "{refused}");
    process.keep(&in_force.view(), KeptBeside::default());
    drop(process);
    assert!(has_grant(folder.restored(), 1));

    let mut process = Persistence::new(&folder.path(), "sqlite:/other".to_owned(), digest());
    let refused = process.load().err().unwrap().to_string();
    assert!(refused.contains("was kept of sqlite:/test, this node's store is sqlite:/other"), "{refused}");
    process.keep(&InForce::new(5..=6).view(), KeptBeside::default());
    process.finish_saving();
    process.record(&deletion(6));
    drop(process);
    let mut process = Persistence::new(&folder.path(), "sqlite:/other".to_owned(), digest());
    let kept = InForce::of(process.load().unwrap().unwrap());
    assert_eq!([1, 5, 6].map(|id| kept.has_grant(id)), [false, true, false]);
}

#[test]
fn a_state_that_others_can_write_is_not_used_nor_left_to_a_later_start() {
    let (folder, process) = StateFolder::kept(&InForce::new(1..=2).view(), KeptBeside::default());
    drop(process);
    for path in [folder.path(), folder.state()] {
        let before = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o722)).unwrap();
        let refused = folder.process().load().err().unwrap().to_string();
        assert!(refused.contains("can be written by other users (mode 722)"), "{refused}");
        fs::set_permissions(&path, before).unwrap();
        assert!(folder.restored().unwrap().is_some());
    }
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut process = folder.process();
    assert!(process.load().is_err());
    process.record(&deletion(1));
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(folder.restored().unwrap().is_none(), "it would have given the grant back");
}
