//! The program that a hand-over starts: the one that this process was started by, as it is on disk then.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::sys::launcher::{self, ProgramCall, StartedProgram};

/// How this process was started. To be read at its start: later the file may be another, or gone.
#[derive(Clone, Debug)]
pub struct Program {
    call: ProgramCall,
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
        // The watchdog and the sockets were this process's. The new one reports once it is the main process.
        let meant_for_this_process = ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
        let arguments: Vec<OsString> = arguments.collect();
        let call = ProgramCall {
            path: path.into(),
            arguments,
            set: vec![(VARIABLE.to_owned(), "stdin".to_owned())],
            unset: meant_for_this_process.map(str::to_owned).to_vec(),
        };
        Ok(Self { call })
    }

    /// How it is called to take over, for the launcher.
    pub fn call(&self) -> ProgramCall {
        self.call.clone()
    }

    /// Starts it with the same arguments, as the process that takes over through `channel`.
    pub(super) fn start(&self, channel: OwnedFd) -> io::Result<StartedProgram> {
        match launcher::in_use() {
            Some(launcher) => launcher.start_program(&self.call, channel),
            None => self.call.command().stdin(Stdio::from(channel)).spawn().map(StartedProgram::Child),
        }
    }

    pub(super) fn path(&self) -> &Path {
        Path::new(&self.call.path)
    }
}

/// Set for a process that is to take over: its standard input is the connection with the old process.
pub(super) const VARIABLE: &str = "SLUICEGATE_TAKES_OVER";
