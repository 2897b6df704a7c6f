//! The identity of this process, by which the directory knows that one process alone runs under a node's name.
//!
//! It names the boot of the machine, the space of process numbers, the number, and the time of its start. So a process
//! on the same machine can see at once that another one has ended, and a copy of the machine is somebody else.

use std::fs;

/// A process, as the directory names it: `boot/space/number/start`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProcessIdentity(String);

impl ProcessIdentity {
    /// This process.
    pub(super) fn own() -> Self {
        let number = std::process::id();
        match (place(), start_of(number)) {
            (Some(place), Some(start)) => Self(format!("{place}/{number}/{start}")),
            // Without /proc, nobody can see that it has ended.
            _ => Self(format!("unknown/{:016x}", getrandom::u64().unwrap_or_else(|_| number.into()))),
        }
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// True if this process may go on in the place of `other`: that has ended on this machine, or is `predecessor`, which
    /// hands over.
    pub(super) fn succeeds(&self, other: &str, predecessor: Option<u32>) -> bool {
        let (Some(place), Some((others_place, number, start))) = (place(), parse(other)) else {
            return false;
        };
        let has_ended = || are_others_visible() && start_of(number).as_deref() != Some(start);
        others_place == place && (predecessor == Some(number) || has_ended())
    }
}

/// This boot of this machine, and the space of process numbers.
fn place() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let space = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{}/{}", boot.trim(), space.display()))
}

/// Returns whether /proc shows processes of others: a service manager may hide them (`ProtectProc=invisible`), and one that
/// cannot be seen has not ended for that.
fn are_others_visible() -> bool {
    fs::metadata("/proc/1").is_ok()
}

/// The time when a process began, in ticks after the boot; `None` if there is no such process, or a dead one.
fn start_of(number: u32) -> Option<String> {
    let line = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    // The name before it may have spaces and brackets.
    let (_, fields) = line.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let is_dead = matches!(fields.next()?, "Z" | "X");
    fields.nth(START_FIELD).filter(|_| !is_dead).map(str::to_owned)
}

fn parse(identity: &str) -> Option<(&str, u32, &str)> {
    let (rest, start) = identity.rsplit_once('/')?;
    let (place, number) = rest.rsplit_once('/')?;
    Some((place, number.parse().ok()?, start))
}

/// Place of the start's time in /proc/PID/stat, after the state: proc(5), `starttime`.
const START_FIELD: usize = 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_succeeded_once_it_has_ended_or_hands_over() {
        let own = ProcessIdentity::own();
        assert_eq!(own, ProcessIdentity::own());
        assert!(!own.succeeds(own.text(), None), "it lives");
        assert!(own.succeeds(own.text(), Some(std::process::id())), "it hands over");
        let (place, number, start) = parse(own.text()).unwrap();
        assert!(own.succeeds(&format!("{place}/{number}/{start}0"), None), "an earlier one had that number");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let childs = format!("{place}/{}/{}", child.id(), start_of(child.id()).unwrap());
        assert!(!own.succeeds(&childs, None));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(own.succeeds(&childs, None));
        assert!(!own.succeeds(&childs.replacen(place, "another-machine/pid:[1]", 1), None), "nobody can see");
        assert!(!own.succeeds("anything", None));
    }
}
