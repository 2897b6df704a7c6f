//! `sluicegate top`: shows a running relay live, with keys to sort, filter and end sessions.
//!
//! The terminal is restored however this ends: by a key, a signal, an error or a panic. Where the terminal itself is gone,
//! the process ends.

mod feed;
mod hangup;
mod picture;
mod view;

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::Loaded;
use super::admin_client::AdminClient;
use super::output::{CommandError, OutputFormat};
use feed::Feed;
use view::{KeyAction, TopView};

pub fn run(loaded: &Loaded, output: OutputFormat) -> Result<(), CommandError> {
    let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if output == OutputFormat::Json || !is_terminal {
        return Err(CommandError::Usage(
            "top draws on a terminal; `sluicegate status --json` and `sluicegate sessions --json` are for programs"
                .to_owned(),
        ));
    }
    let relay = AdminClient::of(&loaded.config.admin)?;
    // Test the relay before taking the terminal: without a relay there is nothing to draw.
    relay.get(crate::admin::routes::STATUS)?;
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).map_err(CommandError::failed)?;
    }
    hangup::exit_on_hangup().map_err(CommandError::failed)?;
    let feed = Feed::start(relay).map_err(CommandError::failed)?;
    let mut terminal = take_terminal().map_err(CommandError::failed)?;
    let outcome = watch(&mut terminal, &feed, &ended);
    ratatui::restore();
    outcome.map_err(|error| CommandError::failed(format!("the terminal cannot be drawn on ({error})")))
}

/// Takes the terminal. A panic restores it, too.
fn take_terminal() -> std::io::Result<DefaultTerminal> {
    ratatui::try_init()
}

/// Draws until the user quits or a signal comes.
fn watch(terminal: &mut DefaultTerminal, feed: &Feed, ended: &AtomicBool) -> std::io::Result<()> {
    let mut view = TopView::new();
    while !ended.load(Ordering::Relaxed) {
        while let Some(event) = feed.next() {
            view.apply(event);
        }
        terminal.draw(|frame| picture::draw(&view, frame))?;
        if !event::poll(POLL_TIMEOUT)? {
            continue;
        }
        let Event::Key(key) = event::read()? else { continue };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        match view.press(key) {
            KeyAction::Nothing => {}
            KeyAction::End(session) => {
                if !feed.end(session) {
                    view.show_message("the previous request is still running; try again".to_owned());
                }
            }
            KeyAction::Quit => break,
        }
    }
    Ok(())
}

/// Delay after which a key, a signal or a new picture is noticed.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// Set where this test runs itself on a terminal of its own.
    const INSIDE: &str = "SLUICEGATE_TEST_TOP_PANICS";

    #[test]
    fn a_panic_gives_the_terminal_back() {
        if std::env::var_os(INSIDE).is_some() {
            let mut terminal = super::take_terminal().unwrap();
            let _panics = terminal.draw(|_| panic!("a defect"));
        }
        let myself = std::env::current_exe().unwrap();
        let line = format!(
            "{} --exact --nocapture cli::top::tests::a_panic_gives_the_terminal_back",
            myself.display()
        );
        let mut script = Command::new("script");
        script.args(["--quiet", "--command", &line, "/dev/null"]).env(INSIDE, "").env("TERM", "xterm");
        let output = script.stdin(std::process::Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let (entered, left) = (text.find("\u{1b}[?1049h"), text.rfind("\u{1b}[?1049l"));
        let message = text.find("a defect");
        assert!(entered.is_some() && entered < left && left < message, "{text:?}");
    }
}
