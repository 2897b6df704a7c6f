//! Child processes, above all the real binary: started, watched, signalled, and killed when a test is done.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, unbounded};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use parking_lot::Mutex;

use super::{PATIENCE, wait_for};

pub use nix::sys::signal::Signal;

pub const BINARY: &str = env!("CARGO_BIN_EXE_sluicegate");

/// A relay that accepts clients.
pub struct Relay {
    child: Child,
    clients: Vec<SocketAddr>,
    admin: SocketAddr,
    peers: Option<SocketAddr>,
    log: Log,
}

impl Relay {
    /// Starts `command` and waits until it says that it is ready.
    pub fn start(command: Command) -> Self {
        Self::try_start(command, PATIENCE)
            .unwrap_or_else(|(_, log)| panic!("the relay did not become ready:\n{log}"))
    }

    /// Starts `command`. Where it does not become ready in time, gives its exit status, if it ended by itself, and its log.
    pub fn try_start(mut command: Command, patience: Duration) -> Result<Self, (Option<ExitStatus>, String)> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Log::follow(child.stderr.take().unwrap());
        let first_line = first_line(child.stdout.take().unwrap());
        if let Some(ready) = first_line.recv_timeout(patience).ok().and_then(|line| Ready::parse(&line)) {
            return Ok(Self { child, clients: ready.clients, admin: ready.admin, peers: ready.peers, log });
        }
        // Its output ends a moment before the process does.
        std::thread::sleep(Duration::from_millis(100));
        let ended = child.try_wait().unwrap();
        let _gone = child.kill();
        let _gone = child.wait();
        Err((ended, log.text()))
    }

    /// The first client listener.
    pub fn address(&self) -> SocketAddr {
        self.clients[0]
    }

    /// All client listeners, in the order of the configuration.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.clients
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The listener for other nodes, where there is one.
    pub fn peers(&self) -> Option<SocketAddr> {
        self.peers
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// The exit status; `None` where the process is still there when patience has run out.
    pub fn wait(&mut self) -> Option<ExitStatus> {
        wait_for(|| self.child.try_wait().unwrap())
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The exit status, where it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// The text on its stderr so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits for `text` to appear on stderr, and says whether it did.
    pub fn logs(&self, text: &str) -> bool {
        wait_for(|| self.log.text().contains(text).then_some(())).is_some()
    }

    /// The sum of a metric over its labels, such as `sluicegate_sessions`; `None` where there is none.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let body = self.admin_get("/metrics");
        let samples: Vec<f64> = body
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse().ok())
            .collect();
        (!samples.is_empty()).then(|| samples.iter().sum())
    }

    /// Waits until a metric is what a test wants, and says whether it came to that.
    pub fn metric_becomes(&self, name: &str, is_wanted: impl Fn(f64) -> bool) -> bool {
        wait_for(|| self.metric(name).is_some_and(&is_wanted).then_some(())).is_some()
    }

    /// Waits until the admin listener's answer has `text`. What the log has is told there a moment later.
    pub fn admin_comes_to_say(&self, path: &str, text: &str) -> bool {
        wait_for(|| self.admin_get(path).contains(text).then_some(())).is_some()
    }

    pub fn admin_get(&self, path: &str) -> String {
        let mut socket = TcpStream::connect(self.admin).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Resident memory now.
    pub fn rss_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// The numbers of its open descriptors.
    pub fn descriptors(&self) -> Vec<u64> {
        let folder = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        folder.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _gone_already = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the relay's log ---\n{}", self.log.text());
        }
    }
}

/// Any other program that is to end with the test.
pub struct Running(pub Child);

impl Running {
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _gone_already = self.0.wait();
    }
}

/// Runs a program to its end, with `input` on its stdin.
pub fn output_of(command: &mut Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // Fails where the program ends before it has read all, which its output then tells.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    })
}

#[track_caller]
pub fn assert_done(output: &Output) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {message}", output.status);
}

/// The line that `sluicegate run` prints when it accepts: `ready client=ADDR[,ADDR...] admin=ADDR[ nodes=ADDR]`.
struct Ready {
    clients: Vec<SocketAddr>,
    admin: SocketAddr,
    peers: Option<SocketAddr>,
}

impl Ready {
    fn parse(line: &str) -> Option<Self> {
        let (clients, admin) = line.trim().strip_prefix("ready client=")?.split_once(" admin=")?;
        let clients = clients.split(',').map(|address| address.parse().ok()).collect::<Option<_>>()?;
        // A node that others forward to says where behind that.
        let mut words = admin.split(' ');
        let admin = words.next()?.parse().ok()?;
        let peers = words.find_map(|word| word.strip_prefix("nodes=")?.parse().ok());
        Some(Self { clients, admin, peers })
    }
}

/// A stream of text that a thread collects.
struct Log {
    text: Arc<Mutex<String>>,
}

impl Log {
    fn follow(source: impl Read + Send + 'static) -> Self {
        let text: Arc<Mutex<String>> = Arc::default();
        let collected = Arc::clone(&text);
        std::thread::spawn(move || {
            for line in BufReader::new(source).lines().map_while(Result::ok) {
                let mut text = collected.lock();
                text.push_str(&line);
                text.push('\n');
            }
        });
        Self { text }
    }

    fn text(&self) -> String {
        self.text.lock().clone()
    }
}

/// The first line of `source`; the rest is read and dropped, so that nobody blocks on a full pipe.
fn first_line(source: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = unbounded();
    std::thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            let _nobody_waits = sender.send(line);
        }
    });
    receiver
}
