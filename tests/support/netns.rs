//! Network namespaces: what a thread in one sends cannot leave the machine.

use std::process::Command;

use crossbeam::channel::{Receiver, Sender, bounded};
use nix::sched::{CloneFlags, setns, unshare};

/// A namespace that exists as long as this.
pub struct Namespace {
    thread: nix::unistd::Pid,
    _keep: Sender<()>,
}

impl Namespace {
    /// A new one, its loopback up.
    pub fn new() -> Self {
        let (keep, kept): (Sender<()>, Receiver<()>) = bounded(0);
        let (made, is_made) = bounded(1);
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            made.send(nix::unistd::gettid()).unwrap();
            // Until the namespace is dropped.
            let _dropped = kept.recv();
        });
        let namespace = Self { thread: is_made.recv().unwrap(), _keep: keep };
        namespace.ip("link set lo up");
        namespace
    }

    /// The thread id that `ip link set NAME netns` takes.
    pub fn id(&self) -> i32 {
        self.thread.as_raw()
    }

    /// Runs `ip` inside; what it printed.
    pub fn ip(&self, arguments: &str) -> String {
        let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        let output = self.enter(|| Command::new("ip").args(&arguments).output().unwrap());
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {} failed: {message}", arguments.join(" "));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Has a thread inside do `act`; sockets and processes that it makes stay inside.
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let path = format!("/proc/self/task/{}/ns/net", self.thread);
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(std::fs::File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
                act()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
