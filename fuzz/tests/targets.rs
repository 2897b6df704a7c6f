//! The targets on any toolchain: the corpus, and mutations of it, a few seconds each.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use sluicegate_fuzz::mutate::{Random, mutated};
use sluicegate_fuzz::{TARGETS, Target, corpus};

/// Time for each target. SLUICEGATE_FUZZ_SECONDS gives them another one.
const TIME: Duration = Duration::from_secs(3);

/// Seed of the mutations. SLUICEGATE_FUZZ_SEED gives another one.
const SEED: u64 = 17;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// Replays the corpus of a target, and then tries mutations of it.
fn try_out(name: &str) {
    let target = Target::named(name).expect("a target");
    target.warm_up();
    let seeds = target.seeds();
    assert!(!seeds.is_empty(), "a target has a corpus");
    seeds.iter().for_each(|seed| try_one(&target, seed));
    let time = from_environment("SLUICEGATE_FUZZ_SECONDS").map_or(TIME, Duration::from_secs);
    let mut random = Random::new(from_environment("SLUICEGATE_FUZZ_SEED").unwrap_or(SEED));
    let began = Instant::now();
    let mut executions = 0_u64;
    while began.elapsed() < time {
        for _ in 0..64 {
            try_one(&target, &mutated(&mut random, &seeds, target.words, target.bytes_max));
        }
        executions += 64;
    }
    println!("{name}: {executions} executions");
}

fn try_one(target: &Target, input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target.run(input))) {
        let path = std::env::temp_dir().join(format!("sluicegate-fuzz-{}.hex", target.name));
        std::fs::write(&path, hex::encode(input)).expect("a file for the input");
        panic!(
            "{}: {}; its input is in {}, to be put into {}",
            target.name,
            message(&*panic),
            path.display(),
            corpus::folder(target.name).display()
        );
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic")
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                try_out(stringify!($name));
            }
        )*

        #[test]
        fn every_target_is_tried() {
            let tried = [$(stringify!($name)),*];
            assert_eq!(TARGETS.map(|target| target.name), tried);
            let folders = std::fs::read_dir(corpus::folder("")).expect("the corpus");
            for folder in folders {
                let name = folder.expect("a folder").file_name().into_string().expect("a name");
                assert!(tried.contains(&&*name), "corpus/{name} is of no target");
            }
        }
    };
}

targets! {
    connect_head
    proxy_header
    peer_request
    peer_reply
    session_token
    token_key
    key_set
    tls_records
    pem_file
    address_file
    openvpn_status
    openvpn_management
    wireguard_dump
    journal_frames
    kept_state
    config
    store_rows
    handover_messages
}
