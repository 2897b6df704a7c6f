//! Limits of the system, compared with what the configuration may use.

use super::finding::{FindingVerdict, MachineFinding};
use super::machine::Machine;
use crate::config::Config;
use crate::engine::{self, Shortage};

/// Item name of the finding about descriptors.
pub(super) const OPEN_FILES: &str = "open files";

pub(super) fn findings(machine: &Machine, config: &Config) -> Vec<MachineFinding> {
    [open_files(machine, config), pipes(machine, config), ports(machine, config), conntrack(machine, config)]
        .into_iter()
        .flatten()
        .collect()
}

fn open_files(machine: &Machine, config: &Config) -> Option<MachineFinding> {
    let limits = machine.of_process("limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let hard = line.split_whitespace().nth(1)?;
    let descriptors = hard.parse().unwrap_or(u64::MAX);
    let shortage = Shortage::with(config, descriptors);
    let sessions = config.limits.sessions;
    let wanted = Shortage::descriptors_wanted(config);
    let possible = shortage.map_or(sessions, |shortage| shortage.sessions_possible);
    Some(MachineFinding {
        item: OPEN_FILES.to_owned(),
        verdict: FindingVerdict::unless(shortage.is_none(), FindingVerdict::Limit),
        found: hard.to_owned(),
        wanted: format!("at least {wanted}"),
        why: format!(
            "two per session and two per pipe; this is enough for {possible} of limits.sessions = {sessions}"
        ),
        how: format!("LimitNOFILE={wanted} in the unit, `ulimit -Hn {wanted}` in a shell"),
    })
}

fn pipes(machine: &Machine, config: &Config) -> Option<MachineFinding> {
    let pages_max: u64 = machine.sysctl("fs.pipe-user-pages-soft")?.parse().ok()?;
    let pipes = (config.engine.pipes * engine::threads(config)) as u64;
    let pages_each = (config.engine.pipe_bytes as u64).div_ceil(PAGE_BYTES).next_power_of_two();
    let wanted = pipes * pages_each;
    let may_exceed = may_exceed_limits(machine);
    let is_enough = pages_max == 0 || pages_max >= wanted || may_exceed;
    let exempt = if may_exceed { ", which CAP_SYS_RESOURCE may exceed" } else { "" };
    Some(MachineFinding {
        item: "pages in pipes".to_owned(),
        verdict: FindingVerdict::unless(is_enough, FindingVerdict::Limit),
        found: format!("{pages_max} for a user{exempt}"),
        wanted: format!("0 (no limit) or at least {wanted}"),
        why: format!(
            "enough for {} of the {pipes} pipes that engine.pipes allows; further pipes would be too small for \
             splicing",
            (pages_max / pages_each).min(pipes)
        ),
        how: "sysctl -w fs.pipe-user-pages-soft=0, or a smaller engine.pipes".to_owned(),
    })
}

fn ports(machine: &Machine, config: &Config) -> Option<MachineFinding> {
    let range = machine.sysctl("net.ipv4.ip_local_port_range")?;
    let mut bounds = range.split_whitespace().filter_map(|port| port.parse::<u32>().ok());
    let (low, high) = (bounds.next()?, bounds.next()?);
    let ports = (high + 1).saturating_sub(low);
    let wanted = config.limits.sessions_per_device.min(config.limits.sessions);
    Some(MachineFinding {
        item: "local ports".to_owned(),
        verdict: FindingVerdict::unless(ports >= wanted, FindingVerdict::Limit),
        found: format!("{ports} ({low} to {high})"),
        wanted: format!("at least {wanted}"),
        why: "each tunnel takes a local port towards its device's address and port, so this limits \
              limits.sessions_per_device"
            .to_owned(),
        how: "sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"".to_owned(),
    })
}

/// Checks the table of tracked connections. `None` where connections are not tracked.
fn conntrack(machine: &Machine, config: &Config) -> Option<MachineFinding> {
    let max: u64 = machine.sysctl("net.netfilter.nf_conntrack_max")?.parse().ok()?;
    let wanted = u64::from(config.limits.sessions) * CONNECTIONS_PER_SESSION;
    Some(MachineFinding {
        item: "tracked connections".to_owned(),
        verdict: FindingVerdict::unless(max >= wanted, FindingVerdict::Limit),
        found: max.to_string(),
        wanted: format!("at least {wanted}"),
        why: "a session is two connections, and a full table drops new ones".to_owned(),
        how: format!(
            "sysctl -w net.netfilter.nf_conntrack_max={wanted}, or do not track the relay's (notrack)"
        ),
    })
}

/// Tests whether the process has CAP_SYS_RESOURCE, so that soft limits do not count.
fn may_exceed_limits(machine: &Machine) -> bool {
    let status = machine.of_process("status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    capabilities & CAP_SYS_RESOURCE != 0
}

/// Unit in which the kernel counts a pipe. Larger pages would only make the need smaller.
const PAGE_BYTES: u64 = 4096;

/// The connections of the client and of the device.
const CONNECTIONS_PER_SESSION: u64 = 2;

/// Bit 24 of a capability mask (linux/capability.h).
const CAP_SYS_RESOURCE: u64 = 1 << 24;
