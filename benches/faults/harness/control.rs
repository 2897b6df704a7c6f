//! The file by which a supervisor is told what is to fail (see `supervisor.c`).

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use nix::errno::Errno;

use crate::support::{MadeOnce, root_or_skip, tools_or_skip};

const SOURCE: &str = include_str!("../supervisor.c");

/// Calls of one relay that fail.
pub struct Control {
    file: File,
    path: PathBuf,
    program: MadeOnce,
}

/// True if calls can be made to fail here; else records that `name` was skipped.
pub fn supervisor_or_skip(name: &str) -> bool {
    root_or_skip(name) && tools_or_skip(name, &["cc"])
}

impl Control {
    pub fn new(path: PathBuf) -> Self {
        let program = MadeOnce::new("supervisor", &key(), |folder| {
            let source = folder.join("supervisor.c");
            std::fs::write(&source, SOURCE).unwrap();
            let made =
                Command::new("cc").args(["-O2", "-o"]).arg(folder.join("supervisor")).arg(source).status();
            assert!(made.unwrap().success(), "cc makes no program of supervisor.c");
        });
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
        file.write_all_at(&[0; COUNTS_AT as usize + 4 * CALLS], 0).unwrap();
        let control = Self { file, path, program };
        control.pass();
        control
    }

    /// The command that runs `command` under a supervisor that is asked about `numbers`.
    pub fn wrap(&self, command: &Command, numbers: impl IntoIterator<Item = i64>) -> Command {
        let numbers: Vec<String> =
            numbers.into_iter().chain([libc::SYS_poll]).map(|number| number.to_string()).collect();
        self.set(HAS_BEGUN, 0);
        let mut wrapped = Command::new(self.program.folder().join("supervisor"));
        wrapped.arg(&self.path).arg(numbers.join(",")).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        wrapped
    }

    /// Lets `calls` calls fail, or all where it is negative.
    pub fn fail(&self, number: i64, error: Errno, calls: i32) {
        self.set(FAILED, 0);
        self.set(KIND, kind(number, error));
        self.set(LEFT, calls);
        self.set(ERROR, error as i32);
        self.set(NUMBER, i32::try_from(number).unwrap());
    }

    /// Ends the fault.
    pub fn pass(&self) {
        self.set(NUMBER, -1);
    }

    /// Calls that have failed since the fault began.
    pub fn failed(&self) -> i32 {
        self.get(FAILED * 4)
    }

    /// Calls that were made, by their numbers.
    pub fn counts(&self) -> BTreeMap<i64, u32> {
        let count = |number: usize| self.get(COUNTS_AT + 4 * number as u64) as u32;
        (0..CALLS).map(|number| (number as i64, count(number))).filter(|(_, count)| *count > 0).collect()
    }

    fn set(&self, field: u64, value: i32) {
        self.file.write_all_at(&value.to_ne_bytes(), field * 4).unwrap();
    }

    fn get(&self, at: u64) -> i32 {
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        i32::from_ne_bytes(bytes)
    }
}

/// What a call must be for to give this error; 0 for anything.
fn kind(number: i64, error: Errno) -> i32 {
    let reads_or_writes = [libc::SYS_read, libc::SYS_write, libc::SYS_writev].contains(&number);
    match error {
        _ if number == libc::SYS_futex => i32::from(b'w'),
        Errno::EIO | Errno::ENOSPC | Errno::EDQUOT if reads_or_writes => i32::from(b'f'),
        // No call on an eventfd is interrupted, and none on a file is.
        Errno::EPIPE | Errno::EINTR if reads_or_writes => i32::from(b's'),
        _ => 0,
    }
}

fn key() -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    SOURCE.hash(&mut hasher);
    format!("{:x}", hasher.finish())
}

/// Places of the fields, in numbers of four bytes.
const NUMBER: u64 = 0;
const ERROR: u64 = 1;
const LEFT: u64 = 2;
const FAILED: u64 = 3;
const HAS_BEGUN: u64 = 4;
const KIND: u64 = 6;

/// Place of the counts, in bytes, and their number.
const COUNTS_AT: u64 = 44;
const CALLS: usize = 512;
