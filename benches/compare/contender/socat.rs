//! socat, which forks for each connection: what many put up for want of something better.

use std::net::SocketAddr;

use sluicegate::sys::cpu::Cpu;

use super::relay::Launch;
use super::{Contender, Facts, Missing, StartError, Started, find_or_missing, line_with, output_of};
use crate::generator::{Opening, Target};
use crate::plan::Extent;
use crate::works::{Pace, Work};

pub(super) struct Socat;

impl Contender for Socat {
    fn name(&self) -> &'static str {
        "socat"
    }

    fn facts(&self) -> Result<Facts, Missing> {
        let program = find_or_missing("socat", "socat")?;
        let version = line_with(&output_of(&program, &["-V"])?, "socat version");
        let version = version.split(" on ").next().unwrap_or_default().to_owned();
        Ok(Facts { version, settings: format!("fork, nodelay, -b {BUFFER_BYTES}") })
    }

    /// A process for each connection bounds what can be asked of it.
    fn joins(&self, work: Work, extent: Extent) -> bool {
        let is_small = match work {
            Work::Bulk { streams, .. } => streams <= STREAMS_MAX,
            Work::Exchange { connections, pace: Pace::Closed, .. } => connections <= CONNECTIONS_MAX,
            Work::NewTunnels { in_flight } => in_flight == 1,
            Work::Exchange { .. } | Work::Idle { .. } | Work::Mixed { .. } => false,
        };
        is_small && extent == Extent::Full
    }

    fn start(&self, _: Work, backend: SocketAddr, cpu: Cpu) -> Result<Started, StartError> {
        let program = find_or_missing("socat", "socat").map_err(std::io::Error::other)?;
        let mut launch = Launch::prepare(cpu)?;
        let listen = format!("TCP-LISTEN:{},bind=127.0.0.1,fork,reuseaddr,nodelay,backlog=1024", launch.port);
        launch.command = vec![
            program.display().to_string(),
            "-b".to_owned(),
            BUFFER_BYTES.to_string(),
            listen,
            format!("TCP:{backend},nodelay"),
        ];
        let target = Target { address: launch.address(), opening: Opening::Plain };
        Ok(Started::new(target, Some(launch.start()?)))
    }
}

/// Measured: 64 KiB cost a third more CPU, the default of 8 KiB twice as much.
const BUFFER_BYTES: usize = 262_144;

const STREAMS_MAX: usize = 32;
const CONNECTIONS_MAX: usize = 128;
