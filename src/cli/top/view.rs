//! State of the screen, and the effect of each key on it.

use std::collections::VecDeque;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::feed::FeedEvent;
use crate::admin::api::{SessionId, SessionInfo, SessionListing, StatusReport};
use crate::cli::watch::{Rates, SortKey, client, mentions, sort, target};

pub struct TopView {
    /// The newest report. `rates` are those since the report before it.
    pub report: Option<StatusReport>,
    pub rates: Option<Rates>,
    /// Bytes per second up and down, the oldest first.
    pub history: VecDeque<(u64, u64)>,
    /// Sessions that match the filter, in order.
    pub sessions: Vec<SessionInfo>,
    all: Vec<SessionInfo>,
    pub left_out: usize,
    pub sort: SortKey,
    pub filter: String,
    /// Session under the cursor. The cursor stays on it when the order changes.
    selected: Option<SessionId>,
    pub mode: TopMode,
    /// Outcome of the last action.
    pub message: Option<String>,
    pub trouble: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TopMode {
    Watching,
    /// The user types a filter.
    Filtering,
    /// The user is asked whether to end this session of this client to this device.
    Asking {
        session: SessionId,
        whose: String,
    },
}

/// Action that a key requests.
#[derive(PartialEq, Eq, Debug)]
pub enum KeyAction {
    Nothing,
    End(SessionId),
    Quit,
}

impl TopView {
    pub fn new() -> Self {
        Self {
            report: None,
            rates: None,
            history: VecDeque::with_capacity(HISTORY_MAX),
            sessions: Vec::new(),
            all: Vec::new(),
            left_out: 0,
            sort: SortKey::Rate,
            filter: String::new(),
            selected: None,
            mode: TopMode::Watching,
            message: None,
            trouble: None,
        }
    }

    pub fn apply(&mut self, event: FeedEvent) {
        match event {
            FeedEvent::Picture(report, SessionListing { sessions, left_out }) => {
                if let Some(before) = &self.report {
                    let rates = Rates::between(before, &report);
                    if self.history.len() == HISTORY_MAX {
                        self.history.pop_front();
                    }
                    self.history.push_back((rates.bytes_up, rates.bytes_down));
                    self.rates = Some(rates);
                }
                self.report = Some(*report);
                self.all = sessions;
                self.left_out = left_out;
                self.trouble = None;
                self.arrange();
            }
            FeedEvent::Trouble(why) => self.trouble = Some(why),
            FeedEvent::Ended(message) => self.show_message(message),
        }
    }

    pub fn show_message(&mut self, message: String) {
        self.message = Some(message);
    }

    pub fn press(&mut self, key: KeyEvent) -> KeyAction {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return KeyAction::Quit;
        }
        match std::mem::replace(&mut self.mode, TopMode::Watching) {
            TopMode::Watching => self.press_watching(key.code),
            TopMode::Filtering => {
                self.press_filtering(key.code);
                KeyAction::Nothing
            }
            TopMode::Asking { session, .. } => match key.code {
                KeyCode::Char('y' | 'Y') => KeyAction::End(session),
                _ => {
                    self.show_message("ended nothing".to_owned());
                    KeyAction::Nothing
                }
            },
        }
    }

    /// Place of the cursor among the sessions that are shown.
    pub fn cursor(&self) -> Option<usize> {
        let selected = self.selected?;
        self.sessions.iter().position(|session| session.id == selected)
    }

    fn press_watching(&mut self, key: KeyCode) -> KeyAction {
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return KeyAction::Quit,
            KeyCode::Char('s') => {
                self.sort = self.sort.next();
                self.arrange();
            }
            KeyCode::Char('/') => self.mode = TopMode::Filtering,
            KeyCode::Char('x') | KeyCode::Delete => {
                if let Some(session) = self.cursor().and_then(|place| self.sessions.get(place)) {
                    let client = client(session).unwrap_or_else(|| "a client".to_owned());
                    let whose = format!("{client} to {}", target(session));
                    self.mode = TopMode::Asking { session: session.id, whose };
                }
            }
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::PageDown => self.step(PAGE),
            KeyCode::PageUp => self.step(-PAGE),
            KeyCode::Home => self.step(isize::MIN / 2),
            KeyCode::End => self.step(isize::MAX / 2),
            _ => {}
        }
        KeyAction::Nothing
    }

    fn press_filtering(&mut self, key: KeyCode) {
        match key {
            KeyCode::Enter => return,
            KeyCode::Esc => {
                self.filter.clear();
                return self.arrange();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(letter) if self.filter.len() < FILTER_BYTES_MAX => self.filter.push(letter),
            _ => {}
        }
        self.mode = TopMode::Filtering;
        self.arrange();
    }

    fn step(&mut self, by: isize) {
        let last = self.sessions.len().saturating_sub(1);
        let place = match self.cursor() {
            Some(place) => place.saturating_add_signed(by).min(last),
            None => 0,
        };
        self.selected = self.sessions.get(place).map(|session| session.id);
    }

    fn arrange(&mut self) {
        let cursor = self.cursor();
        self.sessions = self.all.iter().filter(|session| mentions(session, &self.filter)).cloned().collect();
        sort(&mut self.sessions, self.sort);
        if self.cursor().is_none() {
            // The session under the cursor has ended, so the cursor stays at its place.
            let place = cursor.unwrap_or(0).min(self.sessions.len().saturating_sub(1));
            self.selected = self.sessions.get(place).map(|session| session.id);
        }
    }
}

/// Two minutes.
const HISTORY_MAX: usize = 120;

const PAGE: isize = 10;

const FILTER_BYTES_MAX: usize = 64;

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::cli::watch::tests::{report, session};

    pub fn watching(sessions: i64) -> TopView {
        let mut view = TopView::new();
        let list = || SessionListing { sessions: (1..=sessions).map(session).collect(), left_out: 0 };
        view.apply(FeedEvent::Picture(Box::new(report(1_000, 0)), list()));
        view.apply(FeedEvent::Picture(Box::new(report(2_000, 4096)), list()));
        view
    }

    fn press(view: &mut TopView, keys: &[KeyCode]) -> KeyAction {
        keys.iter().fold(KeyAction::Nothing, |_, key| view.press(KeyEvent::from(*key)))
    }

    fn shown(view: &TopView) -> Vec<u64> {
        view.sessions.iter().map(|session| session.id.0).collect()
    }

    #[test]
    fn keys_sort_filter_and_move() {
        let mut view = watching(4);
        assert_eq!((shown(&view), view.cursor()), (vec![2, 4, 1, 3], Some(0)));
        press(&mut view, &[KeyCode::Down, KeyCode::Char('s')]);
        assert_eq!((view.sort, shown(&view), view.cursor()), (SortKey::Bytes, vec![4, 3, 2, 1], Some(0)));
        press(&mut view, &[KeyCode::End, KeyCode::Down]);
        assert_eq!(view.cursor(), Some(3));
        press(&mut view, &[KeyCode::Char('/'), KeyCode::Char('q'), KeyCode::Backspace]);
        for letter in "principal 0".chars() {
            press(&mut view, &[KeyCode::Char(letter)]);
        }
        assert_eq!((shown(&view), view.cursor()), (vec![4, 2], Some(0)));
        press(&mut view, &[KeyCode::Esc]);
        assert_eq!(shown(&view).len(), 4);
    }

    #[test]
    fn a_session_is_ended_only_by_a_yes() {
        let mut view = watching(2);
        assert_eq!(press(&mut view, &[KeyCode::Char('x'), KeyCode::Enter]), KeyAction::Nothing);
        assert_eq!(
            press(&mut view, &[KeyCode::Char('y')]),
            KeyAction::Nothing,
            "nothing is being asked any more"
        );
        assert_eq!(press(&mut view, &[KeyCode::Char('x'), KeyCode::Char('y')]), KeyAction::End(SessionId(2)));
        assert_eq!(press(&mut TopView::new(), &[KeyCode::Char('x'), KeyCode::Char('y')]), KeyAction::Nothing);
    }

    #[test]
    fn q_and_control_c_quit_and_a_q_in_a_filter_does_not() {
        let mut view = watching(1);
        assert_eq!(press(&mut view, &[KeyCode::Char('/'), KeyCode::Char('q')]), KeyAction::Nothing);
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(view.press(control_c), KeyAction::Quit);
        assert_eq!(press(&mut view, &[KeyCode::Enter, KeyCode::Char('q')]), KeyAction::Quit);
    }

    #[test]
    fn what_went_wrong_is_forgotten_once_there_is_a_picture_again() {
        let mut view = watching(1);
        view.apply(FeedEvent::Trouble("no relay".to_owned()));
        assert_eq!((view.trouble.as_deref(), view.sessions.len()), (Some("no relay"), 1));
        let list = SessionListing { sessions: Vec::new(), left_out: 0 };
        view.apply(FeedEvent::Picture(Box::new(report(3_000, 0)), list));
        assert_eq!((view.trouble, view.sessions.len()), (None, 0));
    }
}
