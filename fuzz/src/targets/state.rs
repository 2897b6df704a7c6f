//! The state and the journal on disk.

use std::cell::OnceCell;
use std::collections::BTreeSet;

use sluicegate::control::fuzzing::{
    Restored, StateFolder, entries, framed, reencoded_entry, sealed_state, state_content, unframed,
};

use super::tokens::folder;
use super::{KIB, Memory, Target};
use crate::input::{Input, long};

pub const JOURNAL_FRAMES: Target = Target {
    name: "journal_frames",
    run: journal_frames,
    seeds: frame_seeds,
    words: &["\0\0\0\0", "memory"],
    bytes_max: 4 * KIB,
    // A damaged length makes a frame of up to 256 KiB; it is not read where the file is shorter.
    memory: Memory { fixed: 24 * KIB, per_byte: 40 },
};

pub const KEPT_STATE: Target = Target {
    name: "kept_state",
    run: kept_state,
    seeds: state_seeds,
    words: &["sqlite:/fuzz", "memory", "node", "\0\0\0\0"],
    bytes_max: 8 * KIB,
    // Two buffers for a file, and the tables of a snapshot.
    memory: Memory { fixed: 2048 * KIB, per_byte: 200 },
};

fn frame_seeds() -> Vec<Vec<u8>> {
    let entries = entries();
    let all: Vec<u8> = entries.iter().flat_map(|entry| framed(entry)).collect();
    let mut seeds = vec![[&[0], &all[..]].concat()];
    seeds.push([vec![1], entries.iter().flat_map(|entry| long(entry)).collect()].concat());
    seeds.extend(entries.iter().map(|entry| [&[2], &entry[..]].concat()));
    seeds
}

fn journal_frames(input: &[u8]) {
    let mut input = Input(input);
    match input.byte() % 3 {
        // Frames as they are.
        0 => {
            let bytes = input.0;
            let (contents, _) = unframed(bytes).expect("a memory can be read");
            let whole: Vec<u8> = contents.iter().flat_map(|content| framed(content)).collect();
            assert!(bytes.starts_with(&whole), "what was read is what stands there");
        }
        // What was written comes back, whatever the crash tore off.
        1 => {
            let mut contents = Vec::new();
            while !input.is_empty() {
                contents.push(input.long().to_vec());
            }
            let bytes: Vec<u8> = contents.iter().flat_map(|content| framed(content)).collect();
            assert_eq!(unframed(&bytes).expect("a memory can be read"), (contents.clone(), true));
            let torn = contents.len() * 37 % (bytes.len() + 1);
            let (left, is_whole) = unframed(&bytes[..torn]).expect("a memory can be read");
            assert!(is_whole && contents.starts_with(&left), "a torn end is no damage");
        }
        _ => {
            if let Some(encoded) = reencoded_entry(input.0) {
                let again = reencoded_entry(&encoded).expect("what was encoded decodes");
                assert_eq!(again, encoded, "encoded, decoded and encoded again");
            }
        }
    }
}

struct Scene {
    folder: StateFolder,
    state: Vec<u8>,
    journal: Vec<u8>,
}

thread_local!(static SCENE: OnceCell<Scene> = const { OnceCell::new() });

fn with_scene<T>(act: impl FnOnce(&Scene) -> T) -> T {
    SCENE.with(|scene| {
        act(scene.get_or_init(|| {
            let (folder, [state, journal]) =
                StateFolder::new(&folder().join("state")).expect("a folder in memory");
            Scene { folder, state, journal }
        }))
    })
}

fn state_seeds() -> Vec<Vec<u8>> {
    let entries: Vec<u8> = entries().iter().flat_map(|entry| long(entry)).collect();
    let state = with_scene(|scene| scene.state.clone());
    vec![
        [&[0], &entries[..]].concat(),
        [&[4], &entries[..]].concat(),
        [&[1], &framed(b"\x01")[..]].concat(),
        [&[2], state_content(&state)].concat(),
        [&[3], &state[..]].concat(),
    ]
}

fn kept_state(input: &[u8]) {
    with_scene(|scene| {
        let mut input = Input(input);
        let mode = input.byte() % 5;
        let (mut state, mut journal) = (scene.state.clone(), scene.journal.clone());
        match mode {
            // Entries that are framed, on the state.
            0 | 4 => {
                while !input.is_empty() {
                    journal.extend(framed(input.long()));
                }
            }
            1 => journal.extend_from_slice(input.0),
            2 => state = sealed_state(input.0),
            _ => state = input.0.to_vec(),
        }
        scene.folder.write(&state, &journal).expect("a file in memory");
        let restored = scene.folder.restored();
        match &restored {
            Restored::Unreadable(reason) => panic!("a file that is there is not unreadable: {reason}"),
            Restored::Nothing => assert!(state.is_empty()),
            Restored::Unusable(reason) => assert!(!reason.is_empty()),
            Restored::Kept { ends, has_gap } => {
                if mode < 2 && !has_gap {
                    check_ends(&scene.folder, ends);
                }
                if mode == 4 {
                    check_goes_on(&scene.folder, ends);
                }
            }
        }
    });
}

/// Every end that was recorded counts until a later record lifts it.
fn check_ends(folder: &StateFolder, ends: &BTreeSet<String>) {
    // The one that the state has.
    let mut expected = BTreeSet::from(["Principal(PrincipalId(9))".to_owned()]);
    for (lifted, ended) in folder.end_steps().expect("a journal that was read") {
        lifted.iter().for_each(|end| _ = expected.remove(end));
        expected.extend(ended);
    }
    assert_eq!(*ends, expected);
}

/// A start goes on behind the last whole entry.
fn check_goes_on(folder: &StateFolder, ends: &BTreeSet<String>) {
    let end = folder.record_end();
    let Restored::Kept { ends: more, .. } = folder.restored() else {
        panic!("a state that was written on: {:?}", folder.restored());
    };
    assert!(more.contains(&end) && ends.is_subset(&more), "{more:?}");
}
