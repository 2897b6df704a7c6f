//! `sluicegate top`, on a terminal of its own.

use std::io::{Read, Write};
use std::num::NonZero;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;

use crate::support::{DEVICE, Device, Relay, Site, V4, tools_or_skip, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;

const COLUMNS: NonZero<u16> = NonZero::new(160).unwrap();

const LINES: NonZero<u16> = NonZero::new(30).unwrap();

/// A shell on a pseudo terminal in which `top` runs, and then says what state the terminal is in.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Terminal {
    fn start(site: &Site) -> Self {
        let top = site.command(&["top"]);
        let words: Vec<_> = [top.get_program()].into_iter().chain(top.get_args()).collect();
        let top = words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        let line = format!(
            "stty rows {LINES} cols {COLUMNS}; before=$(stty -g); {top}; echo \"ended with $?\"; \
             [ \"$before\" = \"$(stty -g)\" ] && echo 'as it was'"
        );
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        script
            .env("STATE_DIRECTORY", site.folder().join("state"))
            .env("TERM", "xterm-256color")
            .env("SHELL", "/bin/sh");
        let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(LINES, COLUMNS, 0)));
        let (keys, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let drawn = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                drawn.lock().process(&buffer[..count]);
            }
        });
        Self { child, keys, screen }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    fn text(&self) -> String {
        self.screen.lock().screen().contents()
    }

    /// Waits until the screen has `text`.
    #[track_caller]
    fn shows(&self, text: &str) {
        assert!(
            wait_for(|| self.text().contains(text).then_some(())).is_some(),
            "no {text} in\n{}",
            self.text()
        );
    }

    /// Waits until `top` has ended, and looks whether the terminal is what it was.
    #[track_caller]
    fn is_given_back(&self) {
        self.shows("ended with 0");
        self.shows("as it was");
        let screen = self.screen.lock();
        let screen = screen.screen();
        assert!(!screen.alternate_screen() && !screen.hide_cursor(), "{}", screen.contents());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _gone_already = self.child.wait();
    }
}

fn scene() -> (Site, Relay, Device) {
    let site = Site::new("");
    let relay = site.start();
    (site, relay, Device::echo(V4))
}

#[test]
fn top_shows_filters_and_ends_sessions_and_gives_the_terminal_back() {
    if !tools_or_skip("top", &["script", "stty"]) {
        return;
    }
    let (site, relay, device) = scene();
    let mut tunnels: Vec<_> = (0..3).map(|_| site.request(&device).send(relay.address()).opened()).collect();
    let mut terminal = Terminal::start(&site);
    terminal.shows("sessions 3 of 8000");
    terminal.shows(&format!("{DEVICE}:"));
    terminal.shows("3 sessions, by rate");
    terminal.press("s");
    terminal.shows("3 sessions, by bytes");
    let client = tunnels[1].local_addr().unwrap().to_string();
    terminal.press(&format!("/{client}"));
    terminal.shows(&format!("1 sessions, by bytes, with `{client}`"));
    // Typed, not done: these letters are keys elsewhere.
    terminal.press("\rx");
    terminal.shows(&format!(", {client} to {DEVICE}:{}? y/n", device.port()));
    terminal.press("n");
    terminal.shows("ended nothing");
    terminal.press("xy");
    terminal.shows("ended session ");
    terminal.shows("sessions 2 of 8000");
    assert!(tunnels[1].read(&mut [0]).is_err());
    for tunnel in [0, 2] {
        tunnels[tunnel].write_all(b"x").unwrap();
        tunnels[tunnel].read_exact(&mut [0]).unwrap();
    }
    terminal.press("q");
    terminal.is_given_back();
}

#[test]
fn top_gives_the_terminal_back_when_it_is_told_to_end() {
    if !tools_or_skip("top and a signal", &["script", "stty"]) {
        return;
    }
    let (site, _relay, _device) = scene();
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let terminal = Terminal::start(&site);
        terminal.shows("sessions 0 of 8000");
        let shell = children_of(terminal.child.id());
        let top = shell.iter().flat_map(|shell| children_of(*shell)).next().unwrap();
        kill(Pid::from_raw(top as i32), signal).unwrap();
        terminal.is_given_back();
    }
}

#[test]
fn top_ends_when_its_terminal_is_gone() {
    if !tools_or_skip("top and a hang-up", &["script", "stty"]) {
        return;
    }
    let (site, _relay, _device) = scene();
    let mut terminal = Terminal::start(&site);
    terminal.shows("sessions 0 of 8000");
    let shell = children_of(terminal.child.id());
    let top = shell.iter().flat_map(|shell| children_of(*shell)).next().unwrap();
    // The other end of the terminal closes, as when an ssh connection breaks off.
    terminal.child.kill().unwrap();
    let is_gone = || (!std::path::Path::new(&format!("/proc/{top}/exe")).exists()).then_some(());
    let has_ended = wait_for(is_gone).is_some();
    let _gone_already = kill(Pid::from_raw(top as i32), Signal::SIGKILL);
    assert!(has_ended, "top still runs without its terminal");
}

#[test]
fn top_waits_for_a_relay_that_is_gone_and_goes_on_when_it_is_back() {
    if !tools_or_skip("top without a relay", &["script", "stty"]) {
        return;
    }
    let (site, relay, device) = scene();
    let mut terminal = Terminal::start(&site);
    terminal.shows("sessions 0 of 8000");
    drop(relay);
    terminal.shows("no relay can be asked at");
    terminal.shows("gives no answer; these figures are from ");
    let relay = site.start();
    let _tunnel = site.request(&device).send(relay.address()).opened();
    terminal.shows("sessions 1 of 8000");
    terminal.press("\u{3}");
    terminal.is_given_back();
}

#[test]
fn top_without_a_terminal_or_a_relay_says_what_to_do() {
    let site = Site::new("");
    let output = site.command(&["top"]).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && message.contains("sluicegate status --json"), "{message}");
    if !tools_or_skip("top without a relay", &["script", "stty"]) {
        return;
    }
    let terminal = Terminal::start(&site);
    terminal.shows("no relay can be asked at");
    terminal.shows("ended with 1");
}

fn children_of(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
