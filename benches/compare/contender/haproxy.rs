//! HAProxy, forwarding TCP with one thread: by splice, by copying, and without ever sleeping.

use std::net::SocketAddr;

use nix::sys::resource::{Resource, getrlimit};
use sluicegate::sys::cpu::Cpu;

use super::relay::Launch;
use super::{Contender, Facts, Missing, StartError, Started, find_or_missing, line_with, output_of};
use crate::generator::{Opening, Target};
use crate::plan::Extent;
use crate::works::{Pace, Work};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum HaProxy {
    /// As it comes, and best for bulk: splice where it pays, through pipes as large as sluicegate's.
    Splice,
    Copy,
    /// Best for latency; takes its whole core all the time.
    BusyPolling,
}

pub(super) const ALL: [HaProxy; 3] = [HaProxy::Splice, HaProxy::Copy, HaProxy::BusyPolling];

impl Contender for HaProxy {
    fn name(&self) -> &'static str {
        match self {
            Self::Splice => "haproxy-splice",
            Self::Copy => "haproxy-copy",
            Self::BusyPolling => "haproxy-busy-polling",
        }
    }

    fn facts(&self) -> Result<Facts, Missing> {
        let program = find_or_missing("haproxy", "haproxy")?;
        let version = line_with(&output_of(&program, &["-v"])?, "HAProxy");
        let version = version.split(" - ").next().unwrap_or_default().to_owned();
        let settings = format!("nbthread 1, {}", self.differs().join(", "));
        Ok(Facts { version, settings })
    }

    fn joins(&self, work: Work, extent: Extent) -> bool {
        match (self, work) {
            (Self::Splice, _) => true,
            (Self::Copy, Work::Bulk { .. }) => extent == Extent::Full,
            (Self::Copy, _) => false,
            (Self::BusyPolling, Work::Exchange { connections: 1, pace: Pace::Closed, .. }) => true,
            (Self::BusyPolling, Work::Exchange { .. }) => extent == Extent::Full,
            (Self::BusyPolling, _) => false,
        }
    }

    fn start(&self, backend: SocketAddr, cpu: Cpu) -> Result<Started, StartError> {
        let mut launch = Launch::prepare(cpu)?;
        let config = launch.write("haproxy.cfg", &self.config(launch.port, backend))?;
        let program = find_or_missing("haproxy", "haproxy").map_err(std::io::Error::other)?;
        launch.command = vec![program.display().to_string(), "-db".to_owned(), "-f".to_owned(), config];
        let target = Target { address: launch.address(), opening: Opening::Plain };
        Ok(Started { target, relay: Some(launch.start()?) })
    }
}

impl HaProxy {
    fn config(self, port: u16, backend: SocketAddr) -> String {
        let (options, globals): (Vec<_>, Vec<_>) =
            self.differs().into_iter().partition(|line| line.starts_with("option"));
        let lines = |lines: Vec<&str>| lines.iter().map(|line| format!("    {line}\n")).collect::<String>();
        format!(
            "global\n    nbthread 1\n    maxconn {maxconn}\n    maxpipes {PIPES_MAX}\n{globals}\
             defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n\
             {options}\
             listen relay\n    bind 127.0.0.1:{port} backlog {BACKLOG}\n    server backend {backend}\n",
            maxconn = sessions_max(),
            globals = lines(globals),
            options = lines(options),
        )
    }

    /// Settings beside which all are the same.
    fn differs(self) -> Vec<&'static str> {
        match self {
            Self::Splice => vec!["option splice-auto", "tune.pipesize 262144"],
            Self::Copy => vec!["tune.bufsize 65536"],
            Self::BusyPolling => vec!["option splice-auto", "tune.pipesize 262144", "busy-polling"],
        }
    }
}

/// What the plan asks for at most, or what the limit on open files leaves: HAProxy reckons two descriptors
/// for a session and two for a pipe, and does not start where the limit is below the sum.
fn sessions_max() -> u64 {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard);
    (files.saturating_sub(2 * PIPES_MAX + FILES_BESIDE) / 2).min(SESSIONS_WANTED)
}

/// Beyond the 5,000 of the idle work.
const SESSIONS_WANTED: u64 = 6_000;

/// Two directions of 256 streams, and as many again.
const PIPES_MAX: u64 = 1_000;

/// For listeners, logs and the poller.
const FILES_BESIDE: u64 = 200;

/// More than ever connect at the same time.
const BACKLOG: u32 = 4_096;
