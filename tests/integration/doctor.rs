//! `sluicegate doctor`: what it finds on machines that are made of files, and on this one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{Site, tools_or_skip};
use serde_json::Value;
use tempfile::TempDir;

/// A folder that looks like the root of a machine on which all is well.
struct Fake {
    root: TempDir,
}

impl Fake {
    fn new() -> Self {
        let fake = Self { root: tempfile::tempdir().unwrap() };
        fake.write("proc/sys/kernel/osrelease", "6.18.4-amd64\n");
        fake.write("proc/self/limits", &open_files(1_048_576));
        fake.write("proc/self/status", "Name:\tsluicegate\nCapEff:\t0000000000000000\n");
        fake.write("proc/self/cgroup", "0::/system.slice/sluicegate.service\n");
        fake.write("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n");
        fake.write("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n");
        fake.write("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n");
        fake.apply(&profile("throughput"));
        fake
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Applies a profile as `sysctl --load` would.
    fn apply(&self, profile: &Path) {
        let text = std::fs::read_to_string(profile).unwrap();
        let settings = text.lines().filter(|line| !line.starts_with('#'));
        for (key, value) in settings.filter_map(|line| line.trim_start_matches('-').split_once(" = ")) {
            // The kernel shows several numbers with tabs between them.
            self.write(&format!("proc/sys/{}", key.replace('.', "/")), &value.replace(' ', "\t"));
        }
    }

    fn doctor(&self, arguments: &[&str]) -> Diagnosis {
        self.doctor_for(&Site::new(""), arguments)
    }

    fn doctor_for(&self, site: &Site, arguments: &[&str]) -> Diagnosis {
        let mut command = site.command(&["doctor", "--json"]);
        command.arg("--root").arg(self.root.path()).args(arguments);
        Diagnosis::of(&mut command)
    }

    /// Every file and what is in it.
    fn files(&self) -> BTreeMap<PathBuf, String> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.root.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.insert(path.clone(), std::fs::read_to_string(path).unwrap());
                }
            }
        }
        files
    }
}

struct Diagnosis {
    output: Output,
    findings: Vec<Value>,
}

impl Diagnosis {
    fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        let findings = serde_json::from_slice(&output.stdout).unwrap();
        Self { output, findings }
    }

    fn exit_code(&self) -> Option<i32> {
        self.output.status.code()
    }

    fn complaint(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    #[track_caller]
    fn finding(&self, item: &str) -> &Value {
        let found = self.findings.iter().find(|finding| finding["item"] == item);
        found.unwrap_or_else(|| panic!("nothing about {item} in {:#?}", self.findings))
    }

    /// Items that are not as they should be.
    fn troubles(&self) -> Vec<(&str, &str)> {
        let field = |finding: &'_ Value, name: &str| finding[name].as_str().unwrap().to_owned();
        let wrong = self.findings.iter().filter(|finding| field(finding, "verdict") != "fine");
        wrong
            .map(|finding| (finding["item"].as_str().unwrap(), finding["verdict"].as_str().unwrap()))
            .collect()
    }
}

fn profile(name: &str) -> PathBuf {
    let name = format!("tuning/sysctl.d/sluicegate-{name}.conf");
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// `/proc/PID/limits` with this hard limit.
fn open_files(hard: u64) -> String {
    format!(
        "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max processes             95000                95000                processes \n\
         Max open files            1024                 {hard:<20} files     \n"
    )
}

#[test]
fn a_machine_as_a_profile_wants_it_has_nothing_to_mend() {
    for name in ["throughput", "latency", "many-sessions"] {
        let fake = Fake::new();
        fake.apply(&profile(name));
        let diagnosis = fake.doctor(&["--profile", name]);
        assert_eq!(diagnosis.troubles(), [], "{name}");
        assert_eq!(diagnosis.exit_code(), Some(0), "{}", diagnosis.complaint());
        assert!(diagnosis.findings.len() > 10, "{name}");
    }
}

#[test]
fn another_value_than_the_profiles_is_told_with_the_reason_and_the_remedy() {
    let fake = Fake::new();
    fake.write("proc/sys/net/ipv4/tcp_congestion_control", "cubic\n");
    let diagnosis = fake.doctor(&["--profile", "throughput"]);
    assert_eq!(diagnosis.troubles(), [("net.ipv4.tcp_congestion_control", "advice")]);
    // Slower is not limited.
    assert_eq!(diagnosis.exit_code(), Some(0));
    let site = Site::new("");
    let mut command = site.command(&["doctor", "--profile", "throughput"]);
    let message = command.arg("--root").arg(fake.root.path()).output().unwrap().stdout;
    let message = String::from_utf8(message).unwrap();
    let expected = "advice   net.ipv4.tcp_congestion_control: cubic, want bbr\n         \
                    paces by measured bandwidth, where cubic takes the loss of a mobile or long path for \
                    congestion (draft-ietf-ccwg-bbr)\n         \
                    > sysctl -w net.ipv4.tcp_congestion_control=\"bbr\", or install the profile below \
                    /etc/sysctl.d\n";
    assert!(message.starts_with(expected), "{message}");
}

#[test]
fn without_a_profile_only_what_every_node_wants_is_compared() {
    let fake = Fake::new();
    fake.write("proc/sys/net/ipv4/tcp_congestion_control", "cubic\n");
    fake.write("proc/sys/net/core/somaxconn", "128\n");
    assert_eq!(fake.doctor(&[]).troubles(), [("net.core.somaxconn", "advice")]);
}

#[test]
fn too_few_descriptors_for_the_sessions_fail() {
    let fake = Fake::new();
    fake.write("proc/self/limits", &open_files(4_096));
    let site = Site::new("limits.sessions = 10000\nengine = { threads = 2, pipes = 100 }");
    let diagnosis = fake.doctor_for(&site, &[]);
    assert_eq!(diagnosis.exit_code(), Some(1));
    assert_eq!(diagnosis.complaint(), "sluicegate: one finding above limits this configuration\n");
    let finding = diagnosis.finding("open files");
    assert_eq!((&finding["verdict"], &finding["found"]), (&"limit".into(), &"4096".into()));
    // 2 × 10,000 sockets, 2 × 2 × 100 ends of pipes, 160 for the rest.
    assert_eq!(finding["wanted"], "at least 20560");
    assert!(finding["why"].as_str().unwrap().contains("enough for 1768 of limits.sessions = 10000"));
    assert!(finding["how"].as_str().unwrap().contains("LimitNOFILE=20560"));
}

#[test]
fn the_limits_of_a_running_relay_can_be_looked_at() {
    let fake = Fake::new();
    fake.write("proc/self/limits", &open_files(1_024));
    fake.write("proc/4711/limits", &open_files(1_048_576));
    assert_eq!(fake.doctor(&[]).exit_code(), Some(1));
    let diagnosis = fake.doctor(&["--pid", "4711"]);
    assert_eq!(diagnosis.finding("open files")["verdict"], "fine");
}

#[test]
fn small_pipes_limit_only_who_may_not_exceed_them() {
    let fake = Fake::new();
    fake.write("proc/sys/fs/pipe-user-pages-soft", "16384\n");
    let site = Site::new("engine = { threads = 2, pipes = 512 }");
    let finding = fake.doctor_for(&site, &[]).finding("pages in pipes").clone();
    assert_eq!(
        (&finding["verdict"], &finding["wanted"]),
        (&"limit".into(), &"0 (no limit) or at least 65536".into())
    );
    assert!(finding["why"].as_str().unwrap().starts_with("enough for 256 of the 1024 pipes"));
    // All capabilities but CAP_SYS_RESOURCE, and then that one alone.
    for (capabilities, verdict) in [("000001fffeffffff", "limit"), ("0000000001000000", "fine")] {
        fake.write("proc/self/status", &format!("CapEff:\t{capabilities}\n"));
        let diagnosis = fake.doctor_for(&site, &[]);
        assert_eq!(diagnosis.finding("pages in pipes")["verdict"], verdict, "{capabilities}");
    }
}

#[test]
fn the_narrowest_control_group_above_counts() {
    let fake = Fake::new();
    let site = Site::new("engine.threads = 4");
    fake.write("sys/fs/cgroup/system.slice/sluicegate.service/memory.max", "max\n");
    fake.write("sys/fs/cgroup/system.slice/sluicegate.service/cpu.max", "max 100000\n");
    fake.write("sys/fs/cgroup/system.slice/sluicegate.service/pids.max", "100\n");
    assert_eq!(fake.doctor_for(&site, &[]).troubles(), []);
    fake.write("sys/fs/cgroup/system.slice/memory.max", "268435456\n");
    fake.write("sys/fs/cgroup/system.slice/cpu.max", "150000 100000\n");
    fake.write("sys/fs/cgroup/system.slice/pids.max", "10\n");
    let diagnosis = fake.doctor_for(&site, &[]);
    let groups =
        ["memory of the control group", "CPU quota of the control group", "tasks of the control group"];
    assert_eq!(diagnosis.troubles(), groups.map(|item| (item, "limit")));
    assert_eq!(diagnosis.finding(groups[1])["found"], "1.5 CPUs");
    assert_eq!(diagnosis.complaint(), "sluicegate: 3 findings above limit this configuration\n");
}

#[test]
fn memory_that_is_enough_until_every_session_stalls_is_advised_against() {
    let fake = Fake::new();
    let site = Site::new("engine = { threads = 1, buffers = 1024, pipes = 64 }\nlimits.sessions = 1000");
    let group = "sys/fs/cgroup/system.slice/sluicegate.service/memory.max";
    // 4 MiB of buffers, 16 MiB of pipes, 8 MiB of idle sessions, and 282 MiB of stalled ones.
    for (mib, verdict) in [(20_u64, "limit"), (100, "advice"), (400, "fine")] {
        fake.write(group, &format!("{}\n", mib << 20));
        let diagnosis = fake.doctor_for(&site, &[]);
        assert_eq!(diagnosis.finding("memory of the control group")["verdict"], verdict, "{mib} MiB");
        assert_eq!(diagnosis.exit_code(), Some(i32::from(verdict == "limit")), "{mib} MiB");
    }
}

#[test]
fn what_this_machine_does_not_show_is_unknown_and_limits_nothing() {
    let fake = Fake::new();
    std::fs::remove_file(fake.root.path().join("proc/sys/net/core/somaxconn")).unwrap();
    let diagnosis = fake.doctor(&[]);
    assert_eq!(diagnosis.troubles(), [("net.core.somaxconn", "unknown")]);
    assert_eq!(diagnosis.finding("net.core.somaxconn")["found"], "not there");
    assert_eq!(diagnosis.exit_code(), Some(0));
}

#[test]
fn ports_and_tracked_connections_bound_what_may_be_open() {
    let fake = Fake::new();
    fake.write("proc/sys/net/ipv4/ip_local_port_range", "60000\t60099\n");
    fake.write("proc/sys/net/netfilter/nf_conntrack_max", "8191\n");
    let site = Site::new("limits = { sessions = 4096, sessions_per_device = 101 }");
    let diagnosis = fake.doctor_for(&site, &[]);
    assert_eq!(diagnosis.troubles(), [("local ports", "limit"), ("tracked connections", "limit")]);
    assert_eq!(diagnosis.finding("local ports")["found"], "100 (60000 to 60099)");
}

#[test]
fn old_kernels_slow_clocks_sleepy_cores_and_lone_queues_are_told() {
    let fake = Fake::new();
    fake.write("proc/sys/kernel/osrelease", "6.1.0-32-amd64\n");
    let clock = "sys/devices/system/clocksource/clocksource0";
    fake.write(&format!("{clock}/current_clocksource"), "hpet\n");
    fake.write(&format!("{clock}/available_clocksource"), "tsc hpet acpi_pm\n");
    fake.write("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave\n");
    fake.write("sys/class/net/eth0/device/vendor", "0x8086\n");
    fake.write("sys/class/net/eth0/queues/rx-0/rps_cpus", "0\n");
    fake.write("sys/class/net/br0/queues/rx-0/rps_cpus", "0\n");
    let site = Site::new("engine.threads = 2");
    let diagnosis = fake.doctor_for(&site, &[]);
    let wrong = ["Linux", "clock source", "CPU governor", "receive queues of eth0"];
    assert_eq!(diagnosis.troubles(), wrong.map(|item| (item, "advice")));
    assert_eq!(diagnosis.finding("CPU governor")["found"], "performance, powersave");
    assert_eq!(diagnosis.finding("clock source")["how"], format!("echo tsc > /{clock}/current_clocksource"));
    // Spread by software is as good; too old a kernel is not.
    fake.write("sys/class/net/eth0/queues/rx-0/rps_cpus", "00000000,00000003\n");
    fake.write("proc/sys/kernel/osrelease", "5.15.0\n");
    let diagnosis = fake.doctor_for(&site, &[]);
    assert_eq!(diagnosis.finding("receive queues of eth0")["verdict"], "fine");
    assert_eq!(diagnosis.finding("Linux")["verdict"], "limit");
}

#[test]
fn this_machine_is_read_and_not_changed() {
    let site = Site::new("");
    let sysctls = || {
        Command::new("sysctl")
            .args(["-a", "--pattern", "^(fs.pipe|net.core|net.ipv4.tcp_[a-q]|kernel.io)"])
            .output()
            .unwrap()
            .stdout
    };
    let before = sysctls();
    let diagnosis =
        Diagnosis::of(site.command(&["doctor", "--json", "--profile", "many-sessions"]).env("LC_ALL", "C"));
    assert_eq!(sysctls(), before);
    let limits = diagnosis.findings.iter().filter(|finding| finding["verdict"] == "limit").count();
    assert_eq!(diagnosis.exit_code(), Some(i32::from(limits > 0)), "{}", diagnosis.complaint());
    assert!(diagnosis.finding("io_uring")["found"].as_str().unwrap().starts_with("works, "));
    for finding in &diagnosis.findings {
        for field in ["item", "verdict", "found", "wanted", "why", "how"] {
            assert!(finding[field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {finding}");
        }
    }
}

#[test]
fn a_relay_that_starts_warns_of_what_limits_it() {
    // More than there are ports.
    let site = Site::new("limits = { sessions = 70000, sessions_per_device = 70000 }");
    let relay = site.start();
    assert!(relay.logs("want at least 70000: each tunnel takes a local port"));
    // Said once, by the engine.
    assert!(!relay.log().contains("open files: found"));
}

#[test]
fn the_affinity_script_is_clean_and_writes_only_when_told_to() {
    if !tools_or_skip("the_affinity_script_is_clean_and_writes_only_when_told_to", &["shellcheck"]) {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning/irq-affinity");
    let output = Command::new("shellcheck").arg(&script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));

    let fake = Fake::new();
    fake.write("sys/class/net/eth0/device/local_cpulist", "0-3\n");
    for queue in 0..2 {
        fake.write(&format!("sys/class/net/eth0/queues/rx-{queue}/rps_cpus"), "0\n");
        fake.write(&format!("sys/class/net/eth0/queues/tx-{queue}/xps_cpus"), "0\n");
        fake.write(&format!("sys/class/net/eth0/device/msi_irqs/{}", 41 + queue), "msix\n");
        fake.write(&format!("proc/irq/{}/smp_affinity_list", 41 + queue), "0-3\n");
    }
    fake.write("sys/class/net/eth0/device/msi_irqs/40", "msix\n");
    fake.write("proc/irq/40/smp_affinity_list", "0-3\n");
    fake.write(
        "proc/interrupts",
        " 40:  1  PCI-MSI  eth0\n 41:  1  PCI-MSI  eth0-TxRx-0\n 42:  1  PCI-MSI  eth0-TxRx-1\n",
    );
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&script);
        command.args(arguments).env("IRQ_AFFINITY_ROOT", fake.root.path());
        String::from_utf8(crate::support::output_of(&mut command, b"").stdout).unwrap()
    };
    let before = fake.files();
    let message = run(&["eth0"]);
    assert!(message.contains("echo 1 > /proc/irq/42/smp_affinity_list    # was: 0-3\n"), "{message}");
    assert_eq!(fake.files(), before);
    run(&["--apply", "eth0"]);
    let after = fake.files();
    let written = |path: &str| after[&fake.root.path().join(path)].trim().to_owned();
    assert_eq!(written("proc/irq/41/smp_affinity_list"), "0");
    assert_eq!(written("proc/irq/42/smp_affinity_list"), "1");
    // Two queues for four CPUs: packets are handed on, and each queue sends for two.
    assert_eq!(written("sys/class/net/eth0/queues/rx-0/rps_cpus"), "0000000f");
    assert_eq!(written("sys/class/net/eth0/queues/tx-1/xps_cpus"), "0000000a");
    // Nothing is left to do.
    assert_eq!(run(&["eth0"]).lines().count(), 1);
}

#[test]
fn the_tuning_page_has_each_key_of_the_profiles_and_what_it_was_seen_to_do() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning/README.md");
    let page = std::fs::read_to_string(page).unwrap();
    for name in ["throughput", "latency", "many-sessions"] {
        for line in std::fs::read_to_string(profile(name)).unwrap().lines() {
            let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) else {
                continue;
            };
            let (key, value) = (key.trim().trim_start_matches('-'), value.trim());
            let row = page.lines().find(|row| row.starts_with(&format!("| `{key}` | ")));
            let row = row.unwrap_or_else(|| panic!("{key} of {name} has no row"));
            let cells: Vec<&str> = row.split(" | ").collect();
            // Of the three sizes of a buffer, the page has the largest.
            let is_value = cells[1] == value || (value.contains("33554432") && cells[1] == "32 MiB");
            assert!(is_value, "{key} of {name} is {value}, and not {}", cells[1]);
            assert!(cells[2] == "all" || cells[2].split(", ").any(|each| each == name), "{name}: {row}");
            assert!(
                ["shown", "not shown", "not measured"].iter().any(|word| cells[6].contains(word)),
                "{row}"
            );
        }
    }
}

#[test]
fn what_a_key_of_the_profiles_changes_can_be_measured() {
    let test = "what_a_key_of_the_profiles_changes_can_be_measured";
    if !crate::support::root_or_skip(test) || !tools_or_skip(test, &["python3", "ip"]) {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/tuning/measure");
    let output = Command::new(script).args(["--rounds", "1", "tcp_tw_reuse", "somaxconn"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("| 200 (200 to 200) | 400 (400 to 400) |"), "{text}");
    assert!(text.contains("| `net.core.somaxconn` | 128 | 4096 |"), "{text}");
}
