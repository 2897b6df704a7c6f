//! Messages of a hand-over, as the new process takes them.

use std::os::fd::OwnedFd;

use sluicegate::handover::fuzzing::{BOUNDS, arrived, packets, reencoded};

use super::{KIB, Memory, Target};
use crate::input::{Input, long};

pub const HANDOVER_MESSAGES: Target = Target {
    name: "handover_messages",
    run: handover_messages,
    seeds,
    words: &[r#"{"step":""#, "hello", "checked", "refused", r#""address":"127.0.0.1:1""#, "\x01", "{}"],
    bytes_max: 8 * KIB,
    // A tunnel's bytes have room at once, as many as were announced.
    memory: Memory { fixed: 2048 * KIB, per_byte: 64 },
};

fn seeds() -> Vec<Vec<u8>> {
    let packets = packets();
    let mut seeds: Vec<Vec<u8>> = packets.iter().map(|packet| [&[4], &long(packet)[..]].concat()).collect();
    let batch: Vec<u8> = packets[..3].iter().flat_map(|packet| long(packet)).collect();
    seeds.push([&[4], &batch[..]].concat());
    seeds
}

fn handover_messages(input: &[u8]) {
    let mut input = Input(input);
    let descriptors = usize::from(input.byte() % 7);
    let mut packets = Vec::new();
    while !input.is_empty() && packets.len() < 64 {
        packets.push(input.long());
    }
    for packet in &packets {
        if let Ok(encoded) = reencoded(packet) {
            assert!(encoded.len() <= BOUNDS[0] || packet.first() == Some(&b'{'));
            let again = reencoded(&encoded).expect("what was encoded decodes");
            assert_eq!(again, encoded, "encoded, decoded and encoded again");
        }
    }
    thread_local!(static PIPE: [OwnedFd; 2] = {
        let (read, write) = std::io::pipe().expect("a pipe");
        [read.into(), write.into()]
    });
    let copies =
        |count: usize| PIPE.with(|pipe| (0..count).filter_map(|at| pipe[at % 2].try_clone().ok()).collect());
    match arrived(packets, || copies(descriptors)) {
        Ok(unsent) => assert!(unsent.iter().all(|bytes| *bytes <= BOUNDS[1])),
        Err(reason) => assert!(!reason.is_empty()),
    }
}
