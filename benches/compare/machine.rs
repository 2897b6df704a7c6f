//! What the report says about the machine.

use std::collections::BTreeMap;
use std::path::Path;

use nix::sys::utsname::uname;

use crate::network;
use crate::report::Machine;

/// Finds out about this machine what the system says; the rest stays empty.
pub fn look() -> Machine {
    let cpu_info = read("/proc/cpuinfo");
    let after = |text: &str, key: &str, separator: char| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(separator)?.1.trim().trim_matches('"').to_owned())
    };
    let memory = after(&read("/proc/meminfo"), "MemTotal", ':').unwrap_or_default();
    Machine {
        kernel: uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default(),
        distribution: after(&read("/etc/os-release"), "PRETTY_NAME", '=').unwrap_or_default(),
        cpu: after(&cpu_info, "model name", ':').unwrap_or_default(),
        cores: cpu_info.lines().filter(|line| line.starts_with("processor")).count(),
        memory_kib: memory.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or_default(),
        congestion_control: network::congestion_control().unwrap_or_default(),
        mitigations: mitigations(Path::new("/sys/devices/system/cpu/vulnerabilities")),
    }
}

/// Weaknesses that this CPU has.
fn mitigations(folder: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let states = entries.map(|entry| {
        let state = std::fs::read_to_string(entry.path()).unwrap_or_default();
        (entry.file_name().to_string_lossy().into_owned(), state.trim().to_owned())
    });
    states.filter(|(_, state)| state != "Not affected").collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
