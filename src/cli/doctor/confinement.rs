//! The confinement of the relay: what the kernel has for it, and what is in force for a process.

use super::finding::{FindingVerdict, MachineFinding};
use super::machine::Machine;
use crate::config::{Config, Confine};
use crate::sys::confine::{LANDLOCK_WANTED, landlock_version};

pub(super) fn findings(machine: &Machine, config: &Config) -> Vec<MachineFinding> {
    let kernel = machine.is_this_one().then(|| landlock(config));
    [setting(config), filters(machine, config), kernel, process(machine, config)]
        .into_iter()
        .flatten()
        .collect()
}

/// Warns where the configuration turns it off.
fn setting(config: &Config) -> Option<MachineFinding> {
    let found = match config.security.confine {
        Confine::On => return None,
        Confine::Log => "security.confine = \"log\"",
        Confine::Off => "security.confine = \"off\"",
    };
    Some(MachineFinding {
        item: "confinement".to_owned(),
        verdict: FindingVerdict::Advice,
        found: found.to_owned(),
        wanted: "\"on\"".to_owned(),
        why: WHY.to_owned(),
        how: "remove security.confine from the configuration".to_owned(),
    })
}

fn filters(machine: &Machine, config: &Config) -> Option<MachineFinding> {
    let actions = machine.sysctl("kernel.seccomp.actions_avail");
    if actions.is_none() && !machine.is_this_one() {
        return None;
    }
    let has = actions.as_deref().is_some_and(|actions| actions.split(' ').any(|action| action == "errno"));
    let logged = machine.sysctl("kernel.seccomp.actions_logged").unwrap_or_default();
    let found = match (has, logged.split(' ').any(|action| action == "errno")) {
        (true, true) => "works, and refused calls are logged",
        (true, false) => "works; refused calls are not logged (kernel.seccomp.actions_logged lacks errno)",
        (false, _) => "this kernel has none (CONFIG_SECCOMP_FILTER)",
    };
    Some(MachineFinding {
        item: "filters of system calls".to_owned(),
        verdict: unless(has, config),
        found: found.to_owned(),
        wanted: "seccomp, of any kernel that distributions ship".to_owned(),
        why: WHY.to_owned(),
        how: "a kernel with CONFIG_SECCOMP_FILTER, outside of gVisor and the like".to_owned(),
    })
}

fn landlock(config: &Config) -> MachineFinding {
    let version = landlock_version();
    let found = match version {
        Ok(version) => format!("version {version}"),
        Err(why) => why.to_owned(),
    };
    MachineFinding {
        item: "Landlock".to_owned(),
        verdict: unless(version.is_ok_and(|version| version >= LANDLOCK_WANTED), config),
        found,
        wanted: format!("version {LANDLOCK_WANTED} (Linux 6.12)"),
        why: "limits the relay to its own files. Version 2 (Linux 5.19) and later do so; newer ones cover truncation, \
              devices and signals, too"
            .to_owned(),
        how: "a newer kernel; `landlock` in the list of the kernel's parameter lsm=".to_owned(),
    }
}

/// Checks the process of `--pid`.
fn process(machine: &Machine, config: &Config) -> Option<MachineFinding> {
    let pid = machine.other_process()?;
    let status = machine.of_process("status")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map_or("?", str::trim)
    };
    let is_confined = field("NoNewPrivs") == "1" && field("Seccomp") == "2";
    Some(MachineFinding {
        item: format!("confinement of process {pid}"),
        verdict: unless(is_confined, config),
        found: format!(
            "NoNewPrivs {}, Seccomp {} with {} filters, CapEff {}",
            field("NoNewPrivs"),
            field("Seccomp"),
            field("Seccomp_filters"),
            field("CapEff")
        ),
        wanted: "NoNewPrivs 1, Seccomp 2".to_owned(),
        why: format!("{WHY}; `sluicegate status` says more"),
        how: "security.confine = \"on\", and a restart".to_owned(),
    })
}

fn unless(is_fine: bool, config: &Config) -> FindingVerdict {
    FindingVerdict::unless(is_fine || config.security.confine == Confine::Off, FindingVerdict::Advice)
}

const WHY: &str = "whoever finds a defect in the relay gets no more than the relay needs";
