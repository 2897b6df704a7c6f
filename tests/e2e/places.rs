//! The machines of the environment: a network namespace each, on one Ethernet, with what runs in it.
//!
//! Namespaces have no names that could be left behind: a thread of this process holds each, and what runs there is
//! killed with the thread that started it.

use std::fs::{File, Permissions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::support::{Namespace, Switch, wait_for};

/// The network that connects the places.
pub struct Ethernet {
    switch: Switch,
    folder: PathBuf,
    hosts: PathBuf,
}

/// One machine.
pub struct Place {
    pub name: &'static str,
    pub address: Ipv4Addr,
    namespace: Namespace,
    folder: PathBuf,
    hosts: PathBuf,
}

/// A program that runs in a place, and ends with this.
pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Ethernet {
    /// Makes the network. `folder` gets the programs' logs; `names` become every place's /etc/hosts.
    pub fn new(folder: &Path, names: &[(&str, Ipv4Addr)]) -> Self {
        let hosts = folder.join("hosts");
        let lines = names.iter().map(|(name, address)| format!("{address} {name}\n"));
        std::fs::write(&hosts, format!("127.0.0.1 localhost\n{}", lines.collect::<String>())).unwrap();
        Self { switch: Switch::new(), folder: folder.to_owned(), hosts }
    }

    /// A machine that is plugged in.
    pub fn plug(&self, name: &'static str, address: Ipv4Addr) -> Place {
        let namespace = self.switch.plug(name, &address.to_string());
        Place { name, address, namespace, folder: self.folder.clone(), hosts: self.hosts.clone() }
    }
}

impl Place {
    /// `program`, to be run in this place. It dies with the thread that starts it, however that ends, and has the
    /// process id that it is started with.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(self.way_in()).arg(program).stdin(Stdio::null());
        command
    }

    /// Writes a program that runs its arguments in this place.
    pub fn write_way_in(&self, file: &Path) {
        let quoted: Vec<String> = self.way_in().iter().map(|word| format!("'{word}'")).collect();
        std::fs::write(file, format!("#!/bin/sh\nexec {} \"$@\"\n", quoted.join(" "))).unwrap();
        std::fs::set_permissions(file, Permissions::from_mode(0o755)).unwrap();
    }

    /// The words in front of a command that make it run in this place.
    fn way_in(&self) -> Vec<String> {
        let namespace = format!("--net=/proc/{}/ns/net", self.namespace.id());
        let hosts = format!("mount --bind {} /etc/hosts; exec \"$@\"", self.hosts.display());
        let own_hosts = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &hosts, "sh"];
        ["nsenter", &namespace].into_iter().chain(own_hosts).map(str::to_owned).collect()
    }

    /// Starts what [`Place::command`] gave; its output is a log that has `name` in its own.
    pub fn start(&self, name: &str, command: &mut Command) -> Program {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = self.folder.join(format!("{number:02}-{}-{name}.log", self.name));
        let file = File::create(&log).unwrap();
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Program { child, log }
    }

    /// Has a thread in this place do `act`.
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.namespace.enter(act)
    }

    /// The folder for files of this place's programs.
    pub fn folder(&self) -> PathBuf {
        let folder = self.folder.join(self.name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }
}

impl Program {
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()).into_owned()
    }

    /// Waits until the log has `text`; else the test ends here.
    #[track_caller]
    pub fn says(&self, text: &str) {
        assert!(self.comes_to_say(text), "no `{text}` in {}:\n{}", self.log.display(), self.log());
    }

    fn comes_to_say(&self, text: &str) -> bool {
        wait_for(|| self.log().contains(text).then_some(())).is_some()
    }

    /// The address that the program says it listens on.
    pub fn listens_on(&self) -> SocketAddr {
        self.says("listening on ");
        let address = wait_for(|| {
            let log = self.log();
            let (_, rest) = log.split_once("listening on ")?;
            rest.split_once('\n')?.0.parse().ok()
        });
        address.unwrap_or_else(|| panic!("no address: {}", self.log()))
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(mut self) {
        let id = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(wait_for(|| self.child.try_wait().unwrap()).is_some(), "{}", self.log());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _gone_already = self.child.wait();
    }
}
