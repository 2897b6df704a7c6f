//! The part of `/metrics` about this process, under the names that Prometheus's own libraries use: memory, CPU time,
//! descriptors, start.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::openmetrics::gauge;

/// Encodes the metrics `process_…`. They have no prefix, so they are not in the registry of the other metrics.
#[derive(Debug)]
pub(super) struct ProcessCollector;

/// Number of open descriptors, and the limit. A session takes two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Descriptors {
    pub open: u64,
    pub max: u64,
}

/// Figures of a process that the kernel keeps in one line.
#[derive(Clone, Copy, PartialEq, Debug)]
struct ProcessFigures {
    cpu_seconds: f64,
    threads: i64,
    /// Time from the start of the machine to that of the process.
    started_after_boot_seconds: f64,
    virtual_bytes: i64,
    resident_bytes: i64,
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let encoder = &mut encoder;
        if let Some(Descriptors { open, max }) = Descriptors::now() {
            gauge(encoder, "process_open_fds", "Number of open file descriptors.", open as i64)?;
            let max = i64::try_from(max).unwrap_or(i64::MAX);
            gauge(encoder, "process_max_fds", "Maximum number of open file descriptors.", max)?;
        }
        let Some(figures) = ProcessFigures::now() else { return Ok(()) };
        let help = "Total user and system CPU time spent in seconds.";
        let metric = ConstCounter::new(figures.cpu_seconds);
        metric.encode(encoder.encode_descriptor(
            "process_cpu_seconds",
            help,
            None,
            metric.metric_type(),
        )?)?;
        let help = "Resident memory size in bytes.";
        gauge(encoder, "process_resident_memory_bytes", help, figures.resident_bytes)?;
        let help = "Virtual memory size in bytes.";
        gauge(encoder, "process_virtual_memory_bytes", help, figures.virtual_bytes)?;
        gauge(encoder, "process_threads", "Number of threads.", figures.threads)?;
        let Some(booted_at) = booted_at() else { return Ok(()) };
        let help = "Start time of the process since unix epoch in seconds.";
        let metric = ConstGauge::new(booted_at + figures.started_after_boot_seconds);
        let name = "process_start_time_seconds";
        metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
    }
}

impl Descriptors {
    /// Reads both numbers. Returns `None` where `/proc` is missing.
    pub fn now() -> Option<Self> {
        let (max, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
        Some(Self { open: open()?, max })
    }
}

impl ProcessFigures {
    /// Reads the figures of this process. Returns `None` where `/proc` is missing.
    fn now() -> Option<Self> {
        let of_system = |variable| sysconf(variable).ok().flatten();
        let ticks_per_second = of_system(SysconfVar::CLK_TCK)?;
        let page_bytes = of_system(SysconfVar::PAGE_SIZE)?;
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?, ticks_per_second, page_bytes)
    }

    /// Parses a line of `/proc/PID/stat`; see proc_pid_stat(5) for the fields.
    fn parse(line: &str, ticks_per_second: i64, page_bytes: i64) -> Option<Self> {
        // The name, in brackets, may have spaces and brackets itself. The third field follows the last bracket.
        let fields: Vec<&str> = line.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<i64>().ok();
        let seconds = |ticks: i64| ticks as f64 / ticks_per_second as f64;
        Some(Self {
            cpu_seconds: seconds(field(14)?.checked_add(field(15)?)?),
            threads: field(20)?,
            started_after_boot_seconds: seconds(field(22)?),
            virtual_bytes: field(23)?,
            resident_bytes: field(24)?.checked_mul(page_bytes)?,
        })
    }
}

/// Time of the machine's start, in seconds since 1970.
fn booted_at() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn open() -> Option<u64> {
    // Since Linux 6.2 the size of the folder is the number of entries. Before, it is 0 and we count the entries.
    match fs::metadata(FOLDER).ok()?.size() {
        0 => Some(fs::read_dir(FOLDER).ok()?.count() as u64),
        count => Some(count),
    }
}

const FOLDER: &str = "/proc/self/fd";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_more_is_one_more() {
        let before = Descriptors::now().unwrap();
        let held: Vec<_> = (0..100).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let during = Descriptors::now().unwrap();
        // Other tests in this process open and close descriptors meanwhile.
        assert!(during.open.abs_diff(before.open + held.len() as u64) < 50, "{before:?} {during:?}");
        assert!(during.open <= during.max);
    }

    #[test]
    fn the_name_of_a_process_may_look_like_fields() {
        let line =
            "7 (a) 9 (b) R 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 12 0 4000 8192 3 18446744073709551615 1";
        let wanted = ProcessFigures {
            cpu_seconds: 3.0,
            threads: 12,
            started_after_boot_seconds: 40.0,
            virtual_bytes: 8192,
            resident_bytes: 12_288,
        };
        assert_eq!(ProcessFigures::parse(line, 100, 4096), Some(wanted));
        assert_eq!(ProcessFigures::parse("7 (sluicegate) R 1", 100, 4096), None);
    }
}
