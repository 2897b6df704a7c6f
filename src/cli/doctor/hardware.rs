//! CPUs and network cards.

use super::finding::{FindingVerdict, MachineFinding};
use super::machine::Machine;
use crate::config::Config;
use crate::engine;

pub(super) fn findings(machine: &Machine, config: &Config) -> Vec<MachineFinding> {
    let cards = machine.list("sys/class/net").into_iter();
    governor(machine).into_iter().chain(cards.filter_map(|card| queues(machine, config, &card))).collect()
}

fn governor(machine: &Machine) -> Option<MachineFinding> {
    let folder = "sys/devices/system/cpu";
    let files = machine.list(folder).into_iter();
    let mut governors: Vec<String> =
        files.filter_map(|cpu| machine.read(&format!("{folder}/{cpu}/cpufreq/scaling_governor"))).collect();
    governors.sort();
    governors.dedup();
    let is_fast = governors.iter().all(|governor| governor == "performance");
    let found =
        if governors.is_empty() { "no frequency scaling here".to_owned() } else { governors.join(", ") };
    Some(MachineFinding {
        item: "CPU governor".to_owned(),
        verdict: FindingVerdict::unless(is_fast, FindingVerdict::Advice),
        found,
        wanted: "performance".to_owned(),
        why: "the load of a relay comes in bursts, and a core that first has to speed up answers late"
            .to_owned(),
        how: "tuned-adm profile of tuning/tuned, or cpupower frequency-set -g performance".to_owned(),
    })
}

/// Checks the receive queues of a network card. `None` for loopback, bridges and tunnels.
fn queues(machine: &Machine, config: &Config, card: &str) -> Option<MachineFinding> {
    let folder = format!("sys/class/net/{card}");
    if !machine.exists(&format!("{folder}/device")) {
        return None;
    }
    let queues: Vec<String> = machine.list(&format!("{folder}/queues"));
    let receiving: Vec<&String> = queues.iter().filter(|queue| queue.starts_with("rx-")).collect();
    let is_spread = |queue: &&&String| {
        let mask = machine.read(&format!("{folder}/queues/{queue}/rps_cpus")).unwrap_or_default();
        mask.contains(|digit: char| digit != '0' && digit != ',')
    };
    let spread = receiving.iter().filter(is_spread).count();
    let threads = engine::threads(config);
    let is_enough = receiving.len() >= threads || spread == receiving.len();
    let software = if spread > 0 { format!(", {spread} of them spread by software") } else { String::new() };
    Some(MachineFinding {
        item: format!("receive queues of {card}"),
        verdict: FindingVerdict::unless(is_enough, FindingVerdict::Advice),
        found: format!("{}{software}", receiving.len()),
        wanted: format!("{threads}, one per engine thread"),
        why: "one CPU handles all packets of a queue in the kernel, and can be overloaded".to_owned(),
        how: format!("ethtool -L {card} combined {threads}; tuning/irq-affinity {card} where it has fewer"),
    })
}
