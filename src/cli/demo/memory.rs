//! Memory of the process at the end.

use super::steps::Steps;

pub(super) fn show(steps: &mut Steps) {
    if let Some(kib) = resident_kib() {
        let mib = format!("{:.1} MiB", kib as f64 / 1024.0);
        steps.figure("resident memory", mib, "of this process: relay, devices and client");
    }
}

/// Resident memory from proc(5). `None` where that is not mounted.
fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
