//! A real sshd, with a host key and a configuration of its own, and the key of a user who may log in.

use std::net::SocketAddr;
use std::process::Command;

use tempfile::TempDir;

use super::process::{Running, assert_done, output_of};
use super::wait_for;

pub struct Sshd {
    _running: Running,
    folder: TempDir,
    port: u16,
}

impl Sshd {
    pub fn start(address: SocketAddr) -> Self {
        Self::start_by(Command::new(PROGRAM), address)
    }

    /// Starts sshd by a command that runs [`PROGRAM`] with its arguments.
    pub fn start_by(mut command: Command, address: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        for key in ["host_key", "user_key"] {
            let key = path(key);
            let arguments = ["-q", "-t", "ed25519", "-N", "", "-f", &key];
            assert_done(&output_of(Command::new("ssh-keygen").args(arguments), b""));
        }
        let config = format!(
            "ListenAddress {address}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n",
            path("host_key"),
            path("user_key.pub"),
        );
        std::fs::write(path("sshd_config"), config).unwrap();
        // Where it confines the part of itself that strangers talk to; Debian's init script makes it.
        std::fs::create_dir_all("/run/sshd").unwrap();
        command.args(["-D", "-E", &path("log"), "-f", &path("sshd_config")]);
        let running = Running::start(&mut command);
        let log = || std::fs::read_to_string(path("log")).unwrap_or_default();
        let is_up = || log().contains("Server listening").then_some(());
        assert!(wait_for(is_up).is_some(), "sshd does not listen: {}", log());
        Self { _running: running, folder, port: address.port() }
    }

    /// An ssh that logs in by way of `proxy_command` and runs `cat` there.
    pub fn cat_through(&self, uuid: &str, proxy_command: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-p", &self.port.to_string(), "-i", &self.user_key()]);
        for option in [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            &format!("ProxyCommand={proxy_command}"),
        ] {
            ssh.args(["-o", option]);
        }
        ssh.arg(format!("root@{uuid}.balena")).arg("cat");
        ssh
    }

    /// The file with the key of the user who may log in.
    pub fn user_key(&self) -> String {
        self.folder.path().join("user_key").display().to_string()
    }
}

/// It wants to be called by its whole path.
pub const PROGRAM: &str = "/usr/sbin/sshd";
