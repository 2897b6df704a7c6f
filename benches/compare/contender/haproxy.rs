//! HAProxy, forwarding TCP with one thread: by splicing, by copying, and without ever sleeping.

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
    /// Best for bulk: always, because `splice-auto` was seen to copy most of it, at three times the CPU; through
    /// pipes as large as sluicegate's.
    Splice,
    /// Best for small messages, which cost an eighth more when spliced.
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
        Ok(Facts { version, settings: format!("nbthread 1, {}", self.settings()) })
    }

    fn joins(&self, work: Work, extent: Extent) -> bool {
        let is_full = extent == Extent::Full;
        match (self, work) {
            (Self::Splice, Work::Bulk { .. } | Work::Mixed { .. }) => true,
            (Self::Splice, _) => false,
            (Self::Copy, Work::Bulk { .. }) => is_full,
            (Self::Copy, _) => true,
            (Self::BusyPolling, Work::Exchange { connections: 1, pace: Pace::Closed, .. }) => true,
            (Self::BusyPolling, Work::Exchange { .. }) => is_full,
            (Self::BusyPolling, _) => false,
        }
    }

    fn start(&self, work: Work, backend: SocketAddr, cpu: Cpu) -> Result<Started, StartError> {
        let mut launch = Launch::prepare(cpu)?;
        let config = launch.write("haproxy.cfg", &self.config(work, launch.port, backend))?;
        let program = find_or_missing("haproxy", "haproxy").map_err(std::io::Error::other)?;
        launch.command = vec![program.display().to_string(), "-db".to_owned(), "-f".to_owned(), config];
        let target = Target { address: launch.address(), opening: Opening::Plain };
        Ok(Started::new(target, Some(launch.start()?)))
    }
}

impl HaProxy {
    fn config(self, work: Work, port: u16, backend: SocketAddr) -> String {
        let globals = match self {
            Self::Splice => format!("tune.pipesize {PIPE_BYTES}\n"),
            Self::Copy if moves_bulk(work) => format!("tune.bufsize {BUFFER_BYTES}\n"),
            Self::Copy => String::new(),
            Self::BusyPolling => "busy-polling\n".to_owned(),
        };
        let options = match self {
            Self::Splice => "option splice-request\noption splice-response\n",
            Self::Copy | Self::BusyPolling => "",
        };
        let sessions_max = sessions_max();
        format!(
            "global\nnbthread 1\nmaxconn {sessions_max}\nmaxpipes {PIPES_MAX}\n{globals}\
             defaults\nmode tcp\ntimeout connect 5s\ntimeout client 1h\ntimeout server 1h\n{options}\
             listen relay\nbind 127.0.0.1:{port} backlog {BACKLOG}\nserver backend {backend}\n"
        )
    }

    fn settings(self) -> String {
        match self {
            Self::Splice => format!("splice-request, splice-response, tune.pipesize {PIPE_BYTES}"),
            Self::Copy => format!("no splice, tune.bufsize {BUFFER_BYTES} for bulk"),
            Self::BusyPolling => "no splice, busy-polling".to_owned(),
        }
    }
}

fn moves_bulk(work: Work) -> bool {
    matches!(work, Work::Bulk { .. } | Work::Mixed { .. })
}

/// Sessions that HAProxy may have: the most that the plan asks for, or fewer where the limit on open files is low. It
/// counts two descriptors for a session and two for a pipe, and does not start where the limit is below the sum.
fn sessions_max() -> u64 {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard);
    (files.saturating_sub(2 * PIPES_MAX + FILES_BESIDE) / 2).min(SESSIONS_WANTED)
}

/// Size of a pipe, the same as sluicegate's.
const PIPE_BYTES: usize = 262_144;

/// Measured for bulk: the default of 16 KiB costs a quarter more CPU, 64 KiB lies between.
const BUFFER_BYTES: usize = 262_144;

/// Sessions allowed, more than the 5,000 of the idle work.
const SESSIONS_WANTED: u64 = 6_000;

/// Two directions of 256 streams, and as many again.
const PIPES_MAX: u64 = 1_000;

/// Descriptors for listeners, logs and the poller.
const FILES_BESIDE: u64 = 200;

/// More than ever connect at the same time.
const BACKLOG: u32 = 4_096;
