//! The kernel: whether its io_uring serves, and what its clock costs.

use super::finding::{Finding, Verdict};
use super::machine::Machine;
use crate::sys::features::{self, Features};

pub(super) fn findings(machine: &Machine) -> Vec<Finding> {
    [release(machine), machine.is_this_one().then(io_uring), clock(machine), tls(machine)]
        .into_iter()
        .flatten()
        .collect()
}

fn release(machine: &Machine) -> Option<Finding> {
    let release = machine.read("proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next()?, numbers.next()?);
    let verdict = match version {
        version if version < OLDEST => Verdict::Limit,
        version if version < BEST => Verdict::Advice,
        _ => Verdict::Fine,
    };
    Some(Finding {
        item: "Linux".to_owned(),
        verdict,
        found: release,
        wanted: format!("{}.{} or later, at least {}.{}", BEST.0, BEST.1, OLDEST.0, OLDEST.1),
        why:
            "6.1 has the ring that the relay is built on; since 6.17 a stream can be received with one call \
              per half megabyte, in bounded memory"
                .to_owned(),
        how: "install a newer kernel".to_owned(),
    })
}

fn io_uring() -> Finding {
    let (verdict, found) = match features::probe() {
        Ok(Features { counted_receive, gathering }) => {
            let has = |has: bool| if has { "with" } else { "without" };
            let all = counted_receive && gathering;
            let found = format!(
                "works, {} counted receives, {} gathering waits",
                has(counted_receive),
                has(gathering)
            );
            (Verdict::unless(all, Verdict::Advice), found)
        }
        Err(error) => (Verdict::Limit, error.to_string()),
    };
    Finding {
        item: "io_uring".to_owned(),
        verdict,
        found,
        wanted: "a ring with counted receives (6.17) and gathering waits (6.12)".to_owned(),
        why: "tried out by making a ring as an engine thread does; the rest is used where it is there"
            .to_owned(),
        how: "kernel.io_uring_disabled=0, a seccomp profile that allows io_uring, a newer kernel".to_owned(),
    }
}

fn clock(machine: &Machine) -> Option<Finding> {
    let folder = "sys/devices/system/clocksource/clocksource0";
    let found = machine.read(&format!("{folder}/current_clocksource"))?;
    let available = machine.read(&format!("{folder}/available_clocksource")).unwrap_or_default();
    let is_cheap = CHEAP_CLOCKS.contains(&found.as_str());
    let best = CHEAP_CLOCKS.iter().find(|clock| available.split_whitespace().any(|each| each == **clock));
    Some(Finding {
        item: "clock source".to_owned(),
        verdict: Verdict::unless(is_cheap || best.is_none(), Verdict::Advice),
        found,
        wanted: CHEAP_CLOCKS.join(", "),
        why: "an engine thread reads the clock in every turn; others than these cost a system call and more"
            .to_owned(),
        how: format!("echo {} > /{folder}/current_clocksource", best.unwrap_or(&CHEAP_CLOCKS[0])),
    })
}

/// Whether the kernel could take over the records of a TLS connection.
fn tls(machine: &Machine) -> Option<Finding> {
    let modes = machine.read("proc/sys/net/ipv4/tcp_available_ulp")?;
    let is_there = modes.split_whitespace().any(|mode| mode == "tls");
    Some(Finding {
        item: "TLS in the kernel".to_owned(),
        verdict: Verdict::Fine,
        found: if is_there { "there" } else { "not there" }.to_owned(),
        wanted: "not used yet".to_owned(),
        why: "records of listeners with TLS are opened and sealed by the engine threads".to_owned(),
        how: "nothing to do".to_owned(),
    })
}

const OLDEST: (u32, u32) = (6, 1);
const BEST: (u32, u32) = (6, 17);

/// Those that are read without entering the kernel.
const CHEAP_CLOCKS: [&str; 4] = ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"];
