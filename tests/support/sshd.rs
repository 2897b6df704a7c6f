//! A real sshd, with a host key and a configuration of its own, and the key of a user who may log in.

use std::net::{SocketAddr, TcpStream};
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
        let mut sshd = Command::new("/usr/sbin/sshd");
        sshd.args(["-D", "-E", &path("log"), "-f", &path("sshd_config")]);
        let running = Running::start(&mut sshd);
        assert!(wait_for(|| TcpStream::connect(address).ok()).is_some(), "sshd does not listen");
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
