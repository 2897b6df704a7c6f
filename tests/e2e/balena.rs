//! The real tunnel code of the `balena` CLI, in Node.js, with the test's authority among those that it trusts.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use crate::pki::Authority;
use crate::places::{Place, Program};
use crate::support::{connect, wait_for};

/// A `balena device tunnel` that runs.
pub struct Balena<'a> {
    place: &'a Place,
    program: Program,
    local: SocketAddr,
}

impl<'a> Balena<'a> {
    /// Tells if `.ci/balena-cli` has installed the CLI's tunnel code.
    pub fn is_installed() -> bool {
        modules().join("balena-cli").exists()
    }

    /// Has it carry local connections to a port of a device, by way of `front`.
    pub fn start(
        place: &'a Place,
        authority: &Authority,
        front: &str,
        token: &str,
        (uuid, port): (&str, u16),
    ) -> Self {
        let mut node = place.command("node");
        node.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/balena.js"));
        node.args([front, uuid, &port.to_string()]);
        node.env("NODE_PATH", modules()).env("NODE_EXTRA_CA_CERTS", &authority.file).env("TOKEN", token);
        let program = place.start("balena", &mut node);
        let local = program.listens_on();
        Self { place, program, local }
    }

    /// A local connection.
    pub fn dial(&self) -> TcpStream {
        self.place.enter(|| connect(self.local))
    }

    /// The local address of the tunnel, for a program in the same place.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The line that the CLI prints when a connection gets no tunnel.
    pub fn error(&self) -> String {
        let _ended_by_the_cli = self.dial();
        let error = wait_for(|| {
            let log = self.program.log();
            log.lines().find_map(|line| line.strip_prefix("error: ")).map(str::to_owned)
        });
        error.unwrap_or_else(|| panic!("the CLI shows no error: {}", self.program.log()))
    }
}

/// The folder that `.ci/balena-cli` installs into.
fn modules() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("balena-cli/node_modules")
}
