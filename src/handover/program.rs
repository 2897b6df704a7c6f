//! The program that a hand-over starts: the one that this process was started by, as it is on disk then, or as it runs.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::sys::launcher::{self, ProgramCall, StartedProgram};

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

    /// How it is called to take over, with the arguments of this process.
    pub fn call(&self) -> ProgramCall {
        let file = match self.version {
            ProgramVersion::OnDisk => self.path.clone().into(),
            // The launcher's program is this one's.
            ProgramVersion::Running => OsString::from("/proc/self/exe"),
        };
        // The watchdog and the sockets were this process's. The new one reports once it is the main process.
        let meant_for_this_process = ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
        ProgramCall {
            file,
            // The new process finds the program on disk by its name.
            name: Some(self.path.clone().into()),
            arguments: self.arguments.clone(),
            set: vec![(VARIABLE.to_owned(), "stdin".to_owned())],
            unset: meant_for_this_process.map(str::to_owned).to_vec(),
        }
    }

    /// Starts it with the same arguments, as the process that takes over through `channel`.
    pub(super) fn start(&self, channel: OwnedFd) -> io::Result<StartedProgram> {
        let call = self.call();
        match launcher::in_use() {
            Some(launcher) => launcher.start_program(&call, channel),
            None => call.command().stdin(Stdio::from(channel)).spawn().map(StartedProgram::Child),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Set for a process that is to take over: its standard input is the connection with the old process.
pub(super) const VARIABLE: &str = "SLUICEGATE_TAKES_OVER";
