//! Good clients beside attackers: none loses its tunnel, new ones are served, what the process holds is bounded, and all is
//! as before when the attack is over. `make attack` runs all attacks for longer, and HAProxy beside.

#[path = "../../benches/attack/harness/mod.rs"]
#[allow(dead_code, reason = "HAProxy is attacked in the long run alone")]
mod harness;

use std::time::Duration;

use harness::{ATTACKS, RECOVERY_MAX, Target, header, line, run, write};

/// Runs the attacks of somebody for a moment each.
fn good_clients_stand(who: &str) {
    let target = Target::sluicegate();
    let mut table = header();
    for attack in ATTACKS.iter().filter(|attack| attack.name.starts_with(who)) {
        let outcome = run(attack, &target, TIME_EACH);
        let (name, during, after) = (attack.name, &outcome.during, &outcome.after);
        table += &line(attack, &target, &outcome);
        write(&format!("attack-{who}.md"), &table);
        assert!(outcome.attempts > 0, "{name}: nobody attacked");
        assert_eq!(during.lost + after.lost, 0, "{name}: a tunnel was lost");
        // On a busy machine a tunnel that was asked for during the attack is opened after it.
        let (opened, not_opened) = (during.opened + after.opened, during.not_opened + after.not_opened);
        assert!(during.messages > 0 && opened > 0, "{name}: good clients stood still");
        let why_not = during.why_not.as_ref().or(after.why_not.as_ref());
        assert!(
            not_opened * 20 <= opened,
            "{name}: {not_opened} were not opened beside {opened}: {why_not:?}"
        );
        assert!(outcome.recovered_after.is_some(), "{name}: not as before within {RECOVERY_MAX:?}");
        let grown = outcome.rss_bytes_max.saturating_sub(outcome.rss_bytes_before);
        assert!(grown < GROWN_BYTES_MAX, "{name}: {grown} bytes more");
        assert!(outcome.descriptors_max < DESCRIPTORS_MAX, "{name}: {} descriptors", outcome.descriptors_max);
    }
}

#[test]
fn good_clients_notice_little_of_somebody_without_a_token() {
    good_clients_stand("nobody");
}

#[test]
fn good_clients_notice_little_of_a_client_that_attacks() {
    good_clients_stand("client");
}

#[test]
fn good_clients_notice_little_of_devices_that_attack() {
    good_clients_stand("device");
}

#[test]
fn good_clients_notice_little_of_attacks_on_the_listeners_for_nodes_and_operators() {
    good_clients_stand("peer");
    good_clients_stand("admin");
}

const TIME_EACH: Duration = Duration::from_millis(700);

/// What the limits of docs/limits.md come to in such a short time: buffers and sessions, and no more.
const GROWN_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Two for each of `limits.sessions`, the pipes, and what else a node has open.
const DESCRIPTORS_MAX: u64 = 2 * 8000 + 4096;
