//! Faults of the system, brought about in a running relay: calls that fail, and calls that do not return.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use super::{MadeOnce, Relay, Site};

const SOURCE: &str = include_str!("faults.c");

/// The faults of one relay; see `faults.c`, which has the same fields in the same order.
pub struct Faults {
    file: File,
    path: PathBuf,
    library: MadeOnce,
}

impl Faults {
    /// Prepares a relay of `site` to have faults later.
    pub fn new(site: &Site) -> Self {
        let library = MadeOnce::new("faults", &key(), |folder| {
            let source = folder.join("faults.c");
            std::fs::write(&source, SOURCE).unwrap();
            let made = Command::new("cc")
                .args(["-shared", "-fPIC", "-O2", "-o"])
                .arg(folder.join("faults.so"))
                .arg(source)
                .arg("-ldl")
                .status();
            assert!(made.unwrap().success(), "cc makes no library of faults.c");
        });
        let path = site.folder().join("faults");
        let file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        file.write_all_at(&[0; 20], 0).unwrap();
        Self { file, path, library }
    }

    /// Starts the relay.
    pub fn start(&self, site: &Site) -> Relay {
        let mut command = site.command(&["run"]);
        command.env("LD_PRELOAD", self.library.folder().join("faults.so")).env("FAULTS_FILE", &self.path);
        Relay::start(command)
    }

    /// Fails `count` calls of io_uring_enter, or all where it is negative, with `errno`. Only those of the thread `name`.
    pub fn fail_enter(&self, relay: &Relay, name: &str, errno: i32, count: i32) {
        self.set(2, thread_id(relay, name));
        self.set(1, count);
        self.set(0, errno);
    }

    /// Calls of io_uring_enter that are still to fail.
    pub fn left(&self) -> i32 {
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, 4).unwrap();
        i32::from_ne_bytes(bytes)
    }

    /// Lets no io_uring_enter of the thread `name` return, until [`pass`](Self::pass).
    pub fn block_enter(&self, relay: &Relay, name: &str) {
        self.set(2, thread_id(relay, name));
        self.set(3, 1);
    }

    /// Lets no write to the audit log return, as on a network disk whose server is gone.
    pub fn block_audit(&self) {
        self.set(4, 1);
    }

    /// Has the relay read that TCP has `pages` of memory, of which 1000 make the kernel slow.
    pub fn set_tcp_memory(&self, pages: u64) {
        let beside = |name: &str| self.path.with_file_name(format!("faults.{name}"));
        std::fs::write(beside("tcp_mem"), "500\t1000\t2000\n").unwrap();
        let sockstat = format!("sockets: used 9\nTCP: inuse 9 orphan 0 tw 0 alloc 9 mem {pages}\n");
        // Renamed, so that no half of it is read.
        std::fs::write(beside("new"), sockstat).unwrap();
        std::fs::rename(beside("new"), beside("sockstat")).unwrap();
    }

    /// Ends all faults.
    pub fn pass(&self) {
        self.set(0, 0);
        self.set(3, 0);
        self.set(4, 0);
    }

    fn set(&self, field: u64, value: i32) {
        self.file.write_all_at(&value.to_ne_bytes(), field * 4).unwrap();
    }
}

fn key() -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    SOURCE.hash(&mut hasher);
    format!("{:x}", hasher.finish())
}

/// The system's id of the relay's thread with this name.
fn thread_id(relay: &Relay, name: &str) -> i32 {
    let threads = std::fs::read_dir(format!("/proc/{}/task", relay.pid())).unwrap();
    let is_wanted = |folder: &std::path::Path| {
        std::fs::read_to_string(folder.join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let folder = threads.map(|entry| entry.unwrap().path()).find(|folder| is_wanted(folder));
    folder.unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap()
}
