//! What a relay has cost so far, as `/proc` tells of its process and its children.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use crate::generator::MeasureError;
use crate::record::Cost;

/// Sums over a process and all below it, since they began.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    user_ticks: u64,
    system_ticks: u64,
    /// CPU time of the threads that live now, in nanoseconds; finer than ticks. 0 where the kernel has no such figure.
    ran_ns: u64,
    threads: BTreeSet<u32>,
    switches_voluntary: u64,
    switches_involuntary: u64,
    pub rss_kib: u64,
}

impl Snapshot {
    /// `None` where there is no relay.
    pub fn of(relay: Option<u32>) -> Result<Option<Self>, MeasureError> {
        let Some(relay) = relay else { return Ok(None) };
        // Finding them takes longest, so it comes before anything is read.
        let children = children(relay).map_err(MeasureError::Process)?;
        let mut snapshot = Self::default();
        snapshot.add(relay).map_err(MeasureError::Process)?;
        for child in children {
            // It may be gone by now; what it took is then in its parent's sum.
            let _gone = snapshot.add(child);
        }
        Ok(Some(snapshot))
    }

    /// The cost between two snapshots.
    pub fn cost(before: Option<Self>, after: Option<Self>) -> Option<Cost> {
        let (before, after) = (before?, after?);
        let user = after.user_ticks.saturating_sub(before.user_ticks) as f64;
        let system = after.system_ticks.saturating_sub(before.system_ticks) as f64;
        let ticks = user + system;
        // Ticks are coarse over a second, so they only tell the shares, as long as no thread came or went.
        let seconds = if before.threads == after.threads && after.ran_ns > 0 {
            after.ran_ns.saturating_sub(before.ran_ns) as f64 / 1e9
        } else {
            ticks / TICKS_PER_SECOND
        };
        let user_share = if ticks > 0.0 { user / ticks } else { 0.0 };
        Some(Cost {
            cpu_user_seconds: seconds * user_share,
            cpu_system_seconds: seconds * (1.0 - user_share),
            switches_voluntary: after.switches_voluntary.saturating_sub(before.switches_voluntary),
            switches_involuntary: after.switches_involuntary.saturating_sub(before.switches_involuntary),
            rss_kib: after.rss_kib,
            rss_kib_per_session: None,
            idle_cpu_share: None,
        })
    }

    fn add(&mut self, process: u32) -> io::Result<()> {
        let folder = format!("/proc/{process}");
        let stat = std::fs::read_to_string(format!("{folder}/stat"))?;
        let field = |number| stat_field(&stat, number);
        // Its own, and that of children that it has waited for.
        self.user_ticks += field(14) + field(16);
        self.system_ticks += field(15) + field(17);
        // `status` tells RSS from counters that each CPU adds to in batches: wrong by up to 128 KiB for each.
        let memory = std::fs::read_to_string(format!("{folder}/smaps_rollup"))?;
        self.rss_kib += number_after(&memory, "Rss:");
        for task in std::fs::read_dir(format!("{folder}/task"))? {
            self.add_thread(&task?.path());
        }
        Ok(())
    }

    /// A thread that has ended meanwhile adds nothing.
    fn add_thread(&mut self, folder: &Path) {
        let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        let status = read("status");
        self.switches_voluntary += number_after(&status, "\nvoluntary_ctxt_switches:");
        self.switches_involuntary += number_after(&status, "nonvoluntary_ctxt_switches:");
        let ran_ns = read("schedstat");
        self.ran_ns += ran_ns.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
        self.threads.extend(folder.file_name().and_then(|id| id.to_str()?.parse::<u32>().ok()));
    }
}

/// All processes below `parent`. Not every kernel lists a process's children, but each knows its parent.
fn children(parent: u32) -> io::Result<Vec<u32>> {
    let mut pairs = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        pairs.push((process, stat_field(&stat, 4) as u32));
    }
    let mut below = vec![parent];
    let mut looked_at = 0;
    while looked_at < below.len() {
        let above = below[looked_at];
        below.extend(pairs.iter().filter(|(_, parent)| *parent == above).map(|(process, _)| process));
        looked_at += 1;
    }
    Ok(below.split_off(1))
}

/// A numeric field of `/proc/PID/stat`, counted as proc_pid_stat(5) does, from the fourth on.
fn stat_field(stat: &str, number: usize) -> u64 {
    // The command's name may hold anything, and ends with the last bracket.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    after_name.split_whitespace().nth(number - 3).and_then(|field| field.parse().ok()).unwrap_or(0)
}

fn number_after(text: &str, key: &str) -> u64 {
    let rest = text.split_once(key).map_or("", |(_, rest)| rest);
    rest.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// USER_HZ, which is 100 on every architecture that Rust runs on Linux.
const TICKS_PER_SECOND: f64 = 100.0;
