//! No relay at all: what the machine and the generator manage by themselves.

use std::net::SocketAddr;

use sluicegate::sys::cpu::Cpu;

use super::{Contender, Facts, Missing, StartError, Started};
use crate::generator::{Opening, Target};
use crate::plan::Extent;
use crate::works::{Pace, Work};

pub(super) struct Direct;

impl Contender for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn facts(&self) -> Result<Facts, Missing> {
        Ok(Facts { version: "–".to_owned(), settings: "clients connect to the backend".to_owned() })
    }

    fn joins(&self, work: Work, extent: Extent) -> bool {
        match work {
            // There is no relay whose memory could be looked at.
            Work::Idle { .. } => false,
            Work::Exchange { pace: Pace::Open { .. }, .. } => false,
            Work::Bulk { .. } => true,
            Work::Exchange { .. } | Work::NewTunnels { .. } | Work::Mixed { .. } => extent == Extent::Full,
        }
    }

    fn start(&self, _: Work, backend: SocketAddr, _: Cpu) -> Result<Started, StartError> {
        Ok(Started::new(Target { address: backend, opening: Opening::Plain }, None))
    }
}
