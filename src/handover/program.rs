//! The program that a hand-over starts: the one that this process was started by, as it is on disk then, or as it runs.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// How this process was started. To be read at its start: later the file may be another, or gone.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    version: ProgramVersion,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ProgramVersion {
    OnDisk,
    Running,
}

impl Program {
    /// The program of this process. Its path is the one that it was started by, with its links, so that a link that
    /// leads to another version later is followed.
    pub fn of_this_process() -> io::Result<Self> {
        let mut arguments = std::env::args_os();
        let named = arguments.next().map(PathBuf::from).filter(|path| path.components().count() > 1);
        let path = match named {
            Some(path) => std::path::absolute(path)?,
            None => std::env::current_exe()?,
        };
        Ok(Self { path, arguments: arguments.collect(), version: ProgramVersion::OnDisk })
    }

    /// The same program as this process runs, whatever is on disk.
    pub fn as_it_runs(&self) -> Self {
        Self { version: ProgramVersion::Running, ..self.clone() }
    }

    /// Starts it with the same arguments, as the process that takes over through `channel`.
    pub(super) fn start(&self, channel: OwnedFd) -> io::Result<Child> {
        let file = match self.version {
            ProgramVersion::OnDisk => &*self.path,
            ProgramVersion::Running => Path::new("/proc/self/exe"),
        };
        let mut command = Command::new(file);
        // The new process finds the program on disk by its name.
        command.arg0(&self.path);
        command.args(&self.arguments).env(VARIABLE, "stdin").stdin(Stdio::from(channel));
        // The watchdog and the sockets were this process's. The new one reports once it is the main process.
        for meant_for_this_process in ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            command.env_remove(meant_for_this_process);
        }
        command.spawn()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Set for a process that is to take over: its standard input is the connection with the old process.
pub(super) const VARIABLE: &str = "SLUICEGATE_TAKES_OVER";
