//! A peer that somebody brought along.

use std::net::SocketAddr;
use std::path::Path;

use sluicegate::sys::cpu::Cpu;

use super::peers::{Peer, Places};
use super::relay::Launch;
use super::{Contender, Facts, Missing, StartError, Started, output_of};
use crate::generator::{Opening, Target};
use crate::plan::Extent;
use crate::works::Work;

pub(super) struct Extra(pub Peer);

impl Contender for Extra {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn facts(&self) -> Result<Facts, Missing> {
        let version = match self.0.version.split_first() {
            None => "not told".to_owned(),
            Some((program, arguments)) => {
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                let said = output_of(Path::new(program), &arguments)?;
                said.lines().next().unwrap_or_default().to_owned()
            }
        };
        let settings =
            if self.0.settings.is_empty() { self.0.command.join(" ") } else { self.0.settings.clone() };
        Ok(Facts { version, settings })
    }

    fn joins(&self, work: Work, _: Extent) -> bool {
        self.0.joins(work)
    }

    fn start(&self, _: Work, backend: SocketAddr, cpu: Cpu) -> Result<Started, StartError> {
        let mut launch = Launch::prepare(cpu)?;
        let listen_port = self.0.port.unwrap_or(launch.port);
        launch.port = listen_port;
        let (backend_host, backend_port) = (backend.ip().to_string(), backend.port());
        launch.command = self.0.command(&Places { listen_port, backend_host, backend_port });
        let target = Target { address: launch.address(), opening: Opening::Plain };
        Ok(Started::new(target, Some(launch.start()?)))
    }
}
