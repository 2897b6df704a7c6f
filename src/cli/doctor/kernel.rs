//! The kernel: its release, io_uring, clock source and TLS.

use super::finding::{FindingVerdict, MachineFinding};
use super::machine::Machine;
use crate::sys::features::{self, Features};
use crate::sys::kernel_tls;

pub(super) fn findings(machine: &Machine) -> Vec<MachineFinding> {
    let of_this_one = |probe: fn() -> MachineFinding| machine.is_this_one().then(probe);
    [release(machine), of_this_one(io_uring), clock(machine), of_this_one(tls)]
        .into_iter()
        .flatten()
        .collect()
}

fn release(machine: &Machine) -> Option<MachineFinding> {
    let release = machine.read("proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next()?, numbers.next()?);
    let verdict = match version {
        version if version < OLDEST => FindingVerdict::Limit,
        version if version < BEST => FindingVerdict::Advice,
        _ => FindingVerdict::Fine,
    };
    Some(MachineFinding {
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

fn io_uring() -> MachineFinding {
    let (verdict, found) = match features::probe() {
        Ok(Features { counted_receive, gathering }) => {
            let has = |has: bool| if has { "with" } else { "without" };
            let all = counted_receive && gathering;
            let found = format!(
                "works, {} counted receives, {} gathering waits",
                has(counted_receive),
                has(gathering)
            );
            (FindingVerdict::unless(all, FindingVerdict::Advice), found)
        }
        Err(error) => (FindingVerdict::Limit, error.to_string()),
    };
    MachineFinding {
        item: "io_uring".to_owned(),
        verdict,
        found,
        wanted: "a ring with counted receives (6.17) and gathering waits (6.12)".to_owned(),
        why: "tested with a ring like that of an engine thread; newer features are used where the kernel has them"
            .to_owned(),
        how: "kernel.io_uring_disabled=0, a seccomp profile that allows io_uring, a newer kernel".to_owned(),
    }
}

fn clock(machine: &Machine) -> Option<MachineFinding> {
    let folder = "sys/devices/system/clocksource/clocksource0";
    let found = machine.read(&format!("{folder}/current_clocksource"))?;
    let available = machine.read(&format!("{folder}/available_clocksource")).unwrap_or_default();
    let is_cheap = CHEAP_CLOCKS.contains(&found.as_str());
    let best = CHEAP_CLOCKS.iter().find(|clock| available.split_whitespace().any(|each| each == **clock));
    Some(MachineFinding {
        item: "clock source".to_owned(),
        verdict: FindingVerdict::unless(is_cheap || best.is_none(), FindingVerdict::Advice),
        found,
        wanted: CHEAP_CLOCKS.join(", "),
        why:
            "an engine thread reads the clock in every turn, and another source costs a system call each time"
                .to_owned(),
        how: format!("echo {} > /{folder}/current_clocksource", best.unwrap_or(&CHEAP_CLOCKS[0])),
    })
}

/// Checks whether the kernel can encrypt and decrypt TLS records. It never gives advice, since few relays use TLS.
fn tls() -> MachineFinding {
    let found = match kernel_tls::probe() {
        Ok(()) => "works, with every cipher".to_owned(),
        Err(error) => format!("not there: {error}"),
    };
    MachineFinding {
        item: "TLS in the kernel".to_owned(),
        verdict: FindingVerdict::Fine,
        found,
        wanted: "works, where listeners or other nodes speak TLS".to_owned(),
        why: "tested on a connection over loopback; without it the engine threads encrypt and decrypt records, and \
              cannot splice such tunnels"
            .to_owned(),
        how: "a kernel with CONFIG_TLS; modprobe tls, which sluicegate.service runs"
            .to_owned(),
    }
}

const OLDEST: (u32, u32) = (6, 1);
const BEST: (u32, u32) = (6, 17);

/// Clocks that are read without a system call.
const CHEAP_CLOCKS: [&str; 4] = ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"];
