//! `sluicegate top`: a running relay live, with keys to sort, filter and end sessions.
//!
//! The terminal is given back however this ends: by a key, by a signal, by an error, by a panic.

mod feed;
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
use super::output::{CommandError, Output};
use super::relay::Relay;
use feed::Feed;
use view::{Act, View};

pub fn run(loaded: &Loaded, output: Output) -> Result<(), CommandError> {
    let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if output == Output::Json || !is_terminal {
        return Err(CommandError::Usage(
            "top draws on a terminal; `sluicegate status --json` and `sluicegate sessions --json` are for programs"
                .to_owned(),
        ));
    }
    let relay = Relay::of(&loaded.config.admin)?;
    // Before the terminal is taken: without a relay there is nothing to draw.
    relay.get(crate::admin::routes::STATUS)?;
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).map_err(CommandError::failed)?;
    }
    let feed = Feed::start(relay).map_err(CommandError::failed)?;
    // It has panics give the terminal back as well.
    let mut terminal = ratatui::try_init().map_err(CommandError::failed)?;
    let outcome = watch(&mut terminal, &feed, &ended);
    ratatui::restore();
    outcome.map_err(|error| CommandError::failed(format!("the terminal cannot be drawn on ({error})")))
}

/// Draws until somebody wants no more.
fn watch(terminal: &mut DefaultTerminal, feed: &Feed, ended: &AtomicBool) -> std::io::Result<()> {
    let mut view = View::new();
    while !ended.load(Ordering::Relaxed) {
        while let Some(news) = feed.next() {
            view.take(news);
        }
        terminal.draw(|frame| picture::draw(&view, frame))?;
        if !event::poll(LOOK_EVERY)? {
            continue;
        }
        let Event::Key(key) = event::read()? else { continue };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        match view.press(key) {
            Act::Nothing => {}
            Act::End(session) => {
                if !feed.end(session) {
                    view.note("still busy with the one before; try again".to_owned());
                }
            }
            Act::Quit => break,
        }
    }
    Ok(())
}

/// How soon a key, a signal or a new picture is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
