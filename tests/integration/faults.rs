//! A system call that fails ends no tunnel but the one concerned, makes no thread spin, and leaves nothing behind once
//! it works again: a sample of what `make faults` tries. `benches/faults/harness` has what fails and what must hold.

#[path = "../../benches/faults/harness/mod.rs"]
mod harness;

use harness::{Case, Moment, census, census_misses, run_all, supervisor_or_skip};

/// Runs the cases `call error`, and expects that each keeps the promises.
fn keep_the_promises(test: &str, moment: Moment, wanted: &[&str]) {
    if !supervisor_or_skip(test) {
        return;
    }
    let cases: Vec<Case> = Case::of(moment)
        .into_iter()
        .filter(|case| wanted.iter().any(|wanted| case.to_string().starts_with(&format!("{wanted} "))))
        .collect();
    assert_eq!(cases.len(), wanted.len(), "each case exists");
    let mut broken = Vec::new();
    let outcomes = run_all(&cases, |outcome| {
        broken.extend(outcome.broken.iter().map(|failure| format!("{}: {failure}", outcome.case)));
    });
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(outcomes.iter().any(|outcome| outcome.failed_calls > 0), "some call has failed");
}

#[test]
fn a_call_that_fails_at_start_ends_the_relay_with_a_message_or_does_no_harm() {
    keep_the_promises(
        "a_call_that_fails_at_start_ends_the_relay_with_a_message_or_does_no_harm",
        Moment::Start,
        &["io_uring_setup EPERM", "eventfd2 EMFILE", "bind EADDRINUSE", "clone3 EAGAIN", "fsync EIO"],
    );
}

#[test]
fn one_call_that_fails_ends_at_most_one_tunnel() {
    keep_the_promises(
        "one_call_that_fails_ends_at_most_one_tunnel",
        Moment::Once,
        &[
            "splice ENOMEM",
            "sendto ECONNRESET",
            "recvfrom ENOMEM",
            "io_uring_enter EBUSY",
            "shutdown ENOTCONN",
        ],
    );
}

#[test]
fn calls_that_fail_for_a_while_are_got_over() {
    keep_the_promises(
        "calls_that_fail_for_a_while_are_got_over",
        Moment::Burst,
        &[
            "openat EMFILE",
            "write ENOSPC",
            "pread64 EIO",
            "pipe2 EMFILE",
            "socket ENFILE",
            "setsockopt ENOMEM",
        ],
    );
}

#[test]
fn every_call_of_a_relay_is_in_the_table() {
    if !supervisor_or_skip("every_call_of_a_relay_is_in_the_table") {
        return;
    }
    let counts = census();
    assert!(counts.len() > 30, "{counts:?}");
    assert_eq!(census_misses(&counts), [0_i64; 0], "numbers of system calls");
}
