//! Limits of the control group of the process (cgroup v2).

use std::path::Path;

use super::finding::{FindingVerdict, MachineFinding};
use super::machine::Machine;
use crate::config::Config;
use crate::engine::{self, SESSION_BYTES_MAX};

pub(super) fn findings(machine: &Machine, config: &Config) -> Vec<MachineFinding> {
    let Some(group) = Group::of(machine) else { return Vec::new() };
    [memory(&group, config), cpu(&group, config), tasks(&group, config)].into_iter().flatten().collect()
}

/// The control group of the process. A limit of a group above it counts, too, if it is smaller.
struct Group<'a> {
    machine: &'a Machine,
    path: String,
}

impl<'a> Group<'a> {
    fn of(machine: &'a Machine) -> Option<Self> {
        let groups = machine.of_process("cgroup")?;
        let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        Some(Self { machine, path: path.to_owned() })
    }

    /// Smallest value of the file `name`, as `read` parses it. `None` where no group sets one.
    fn smallest<T: PartialOrd>(&self, name: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let groups = Path::new(&self.path).ancestors();
        let files = groups.map(|group| format!("sys/fs/cgroup/{}/{name}", group.display()));
        let values = files.filter_map(|file| read(&self.machine.read(&file)?));
        values.reduce(|least, value| if value < least { value } else { least })
    }
}

fn memory(group: &Group<'_>, config: &Config) -> Option<MachineFinding> {
    let max: u64 = group.smallest("memory.max", |text| text.parse().ok())?;
    let threads = engine::threads(config) as u64;
    let engine = &config.engine;
    let taken_once =
        threads * (u64::from(engine.buffers) * BUFFER_BYTES + (engine.pipes * engine.pipe_bytes) as u64);
    let sessions = u64::from(config.limits.sessions);
    let usual = taken_once + sessions * IDLE_SESSION_BYTES;
    let worst = taken_once + sessions * SESSION_BYTES_MAX as u64;
    let verdict = match max {
        max if max < usual => FindingVerdict::Limit,
        max if max < worst => FindingVerdict::Advice,
        _ => FindingVerdict::Fine,
    };
    Some(MachineFinding {
        item: "memory of the control group".to_owned(),
        verdict,
        found: mib(max),
        wanted: format!(
            "at least {} beside the snapshot, {} if every session stalls",
            mib(usual),
            mib(worst)
        ),
        why: "buffers and pipes of the threads, and up to 288 KiB for a session whose reader stalls"
            .to_owned(),
        how: format!("MemoryMax={}M in the unit, or a smaller limits.sessions", worst >> 20),
    })
}

fn cpu(group: &Group<'_>, config: &Config) -> Option<MachineFinding> {
    let cpus: f64 = group.smallest("cpu.max", |text| {
        let (quota, period) = text.split_once(' ')?;
        Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
    })?;
    let threads = engine::threads(config);
    Some(MachineFinding {
        item: "CPU quota of the control group".to_owned(),
        verdict: FindingVerdict::unless(cpus >= threads as f64, FindingVerdict::Limit),
        found: format!("{cpus:.1} CPUs"),
        wanted: format!("none, or at least {threads}"),
        why: "an engine thread that is out of quota stops for up to 100 ms, and its tunnels with it"
            .to_owned(),
        how: "no CPUQuota=; set AllowedCPUs= instead, from which the relay takes its number of threads"
            .to_owned(),
    })
}

fn tasks(group: &Group<'_>, config: &Config) -> Option<MachineFinding> {
    let max: u64 = group.smallest("pids.max", |text| text.parse().ok())?;
    let wanted = engine::threads(config) as u64 + OTHER_THREADS;
    Some(MachineFinding {
        item: "tasks of the control group".to_owned(),
        verdict: FindingVerdict::unless(max >= wanted, FindingVerdict::Limit),
        found: max.to_string(),
        wanted: format!("at least {wanted}"),
        why: "the engine's threads, and those of the store, the admin side and the logs".to_owned(),
        how: format!("TasksMax={wanted} in the unit"),
    })
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// Size of one receive buffer.
const BUFFER_BYTES: u64 = 4096;

/// Memory of a session without traffic, with the kernel's part for two sockets.
const IDLE_SESSION_BYTES: u64 = 8 * 1024;

/// Threads of control, admin, signals, audit and the service manager, and some to spare.
const OTHER_THREADS: u64 = 16;
