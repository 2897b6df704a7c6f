//! `sluicegate demo`, as somebody runs it who has just cloned the repository.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A running demo, killed where a test fails.
struct Demo {
    child: Child,
    stdout: BufReader<ChildStdout>,
    folder: TempDir,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = command(arguments, folder.path()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout, folder }
    }

    /// Reads up to a line that starts with `start`, and returns it.
    fn line(&mut self, start: &str) -> String {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            self.stdout.read_line(&mut line).unwrap();
            assert_ne!(line, "", "no line starts with {start:?} in {seen}");
            if line.starts_with(start) {
                return line;
            }
            seen.push_str(&line);
        }
    }

    fn interrupt(&self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    }

    /// Waits for the end: exit code and stderr. Nothing may be left in the temporary folder.
    fn end(mut self) -> (Option<i32>, String) {
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let code = self.child.wait().unwrap().code();
        assert_eq!(left_in(self.folder.path()), 0);
        (code, stderr)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _ended_already = self.child.wait();
    }
}

fn command(arguments: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command.arg("demo").args(arguments).env("TMPDIR", folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn left_in(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn every_step_passes_and_nothing_stays_behind() {
    let folder = tempfile::tempdir().unwrap();
    let Output { status, stdout, stderr } = command(&["--once"], folder.path()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""), "{stdout}");
    assert!(stdout.contains(" steps passed, in "), "{stdout}");
    assert!(!stdout.contains('✗') && !stdout.contains('\x1b'), "{stdout}");
    for reply in [
        "400 Bad Request",
        "403 Tunnel Not Permitted",
        "405 Method Not Allowed",
        "407 Proxy Authentication Required",
        "408 Request Timeout",
        "429 Too Many Sessions",
        "431 Request Header Fields Too Large",
        "502 Device Address Not Allowed",
        "502 Device Port Closed",
        "502 Device Unreachable",
        "503 Device Offline",
        "503 Device Address Disputed",
        "503 Authorization Unavailable",
        "503 Relay Draining",
        "504 Device Timed Out",
    ] {
        assert!(stdout.contains(&format!("HTTP/1.1 {reply} ")), "{reply} is missing in {stdout}");
    }
    for cause in [
        "devices.absent: 12 of 12 devices are missing",
        "grants.ended: 12 of 12 grants read as ended",
        "devices.moved: 12 of 12 devices would change places",
    ] {
        assert!(stdout.contains(cause), "{cause} is missing in {stdout}");
    }
    assert!(stdout.lines().all(|line| line.chars().count() <= 100), "{stdout}");
    assert_eq!(left_in(folder.path()), 0);
}

#[test]
fn the_curl_line_that_it_prints_fetches_the_page() {
    let mut demo = Demo::start(&[]);
    let curl = demo.line("curl ");
    let fetched = Command::new("sh").arg("-c").arg(&curl).output().unwrap();
    let page = format!("Hello from a device behind sluicegate {}.\n", sluicegate::VERSION);
    assert_eq!(String::from_utf8(fetched.stdout).unwrap(), page, "{fetched:?}", fetched = fetched.stderr);
    demo.interrupt();
    assert_eq!(demo.end(), (Some(0), String::new()));
}

#[test]
fn an_interrupt_before_the_last_step_ends_it_cleanly_and_is_a_failure() {
    let mut demo = Demo::start(&["--once"]);
    demo.line("Refusals");
    demo.interrupt();
    let (code, stderr) = demo.end();
    assert_eq!(code, Some(1));
    assert_eq!(stderr, "sluicegate: interrupted before the last step; what ran until then is shown above\n");
}

#[test]
fn a_demo_that_cannot_be_set_up_says_so_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("nowhere");
    let Output { status, stderr, .. } = command(&["--once"], &nowhere).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!((status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.contains("temporary folder cannot be set up"), "{stderr}");
}
