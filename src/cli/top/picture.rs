//! Draws a view on a terminal of any size.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table, TableState};

use super::view::{TopMode, TopView};
use crate::admin::api::{NodeFigures, ReadinessState, SessionInfo};
use crate::authz::UnixMillis;
use crate::cli::watch::{self, StateLine, ago, bytes, rate};

pub fn draw(view: &TopView, frame: &mut Frame<'_>) {
    let [head, plots, sessions, foot] = Layout::vertical([
        Constraint::Length(4),
        Constraint::Length(PLOT_LINES),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(head_lines(view)), head);
    draw_plots(view, frame, plots);
    draw_sessions(view, frame, sessions);
    frame.render_widget(Paragraph::new(foot_line(view)), foot);
}

fn head_lines(view: &TopView) -> Vec<Line<'static>> {
    let Some(report) = &view.report else { return vec![Line::from("waiting for the relay")] };
    let NodeFigures { version, readiness, why, sessions, at, threads, .. } = &report.figures;
    let source = &report.source.figures;
    let state = match why {
        Some(why) => format!("{readiness}, {why}"),
        None => readiness.to_string(),
    };
    let state = match (&view.trouble, *readiness) {
        // What it said last is not what it is.
        (Some(_), _) => format!("gives no answer; these figures are from {}", time_of_day(*at)).red(),
        (None, ReadinessState::Ready) => state.green(),
        (None, _) => state.yellow(),
    };
    let rates = view.rates.clone().unwrap_or_default();
    let generation =
        source.generation.map_or_else(|| "none".to_owned(), |generation| generation.0.to_string());
    let StateLine { name, text, is_alarm } = StateLine::most_urgent(report);
    let urgent = if is_alarm { text.red() } else { Span::from(text) };
    let loads: Vec<String> = threads
        .iter()
        .zip(rates.loads.iter().copied().chain(std::iter::repeat(None)))
        .map(|(thread, load)| match load {
            Some(load) => format!("{}: {:.0} %", thread.number, load * 100.0),
            None => format!("{}: -", thread.number),
        })
        .collect();
    vec![
        Line::from(vec![format!("sluicegate {version}  ").bold(), state]),
        Line::from(format!(
            "sessions {} of {}   opened {:.1}/s   refused {:.1}/s   threads {}",
            sessions.active,
            sessions.max,
            rates.opened,
            rates.refused,
            loads.join("  ")
        )),
        Line::from(format!(
            "generation {generation}, confirmed {} ago   {} credentials  {} grants  {} devices",
            ago(*at, source.confirmed_at),
            source.rows.credentials,
            source.rows.grants,
            source.rows.devices
        )),
        Line::from(vec![Span::from(format!("{name} ")), urgent]),
    ]
}

fn draw_plots(view: &TopView, frame: &mut Frame<'_>, area: Rect) {
    let halves: [Rect; 2] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(area);
    let up: Vec<u64> = view.history.iter().map(|(up, _)| *up).collect();
    let down: Vec<u64> = view.history.iter().map(|(_, down)| *down).collect();
    for (area, name, values, colour) in [
        (halves[0], "up, to devices", up, Color::Cyan),
        (halves[1], "down, to clients", down, Color::Magenta),
    ] {
        let now = values.last().map_or_else(|| "-".to_owned(), |now| rate(Some(*now)));
        let most = values.iter().max().map_or_else(|| "-".to_owned(), |most| rate(Some(*most)));
        let block = Block::bordered().title(format!(" {name}: {now}, at most {most} "));
        // The newest value is on the right.
        let width = usize::from(area.width.saturating_sub(2));
        let shown = values[values.len().saturating_sub(width)..].to_vec();
        frame.render_widget(
            Sparkline::default().block(block).data(shown).style(Style::new().fg(colour)),
            area,
        );
    }
}

fn draw_sessions(view: &TopView, frame: &mut Frame<'_>, area: Rect) {
    let filter = if view.filter.is_empty() { String::new() } else { format!(", with `{}`", view.filter) };
    let left_out = if view.left_out > 0 { format!(", {} more", view.left_out) } else { String::new() };
    let title = format!(" {} sessions{left_out}, by {}{filter} ", view.sessions.len(), view.sort.name());
    let now = view.report.as_ref().map_or(UnixMillis(0), |report| report.figures.at);
    let columns = columns_for(area.width.saturating_sub(2));
    let names = columns.iter().map(|column| column.name);
    // Only the rows around the cursor are built: a list can have ten thousand rows, and a screen does not.
    let cursor = view.cursor().unwrap_or(0);
    let first = cursor.saturating_sub(ROWS_AROUND);
    let rows = view
        .sessions
        .iter()
        .skip(first)
        .take(2 * ROWS_AROUND)
        .map(|session| Row::new(columns.iter().map(|column| Cell::from((column.show)(session, now)))));
    let table = Table::new(rows, columns.iter().map(|column| Constraint::Length(column.width)))
        .header(Row::new(names).style(Style::new().bold()))
        .row_highlight_style(Style::new().reversed())
        .block(Block::bordered().title(title));
    let mut state = TableState::default().with_selected(view.cursor().map(|cursor| cursor - first));
    frame.render_stateful_widget(table, area, &mut state);
}

/// Returns the columns that fit into `width`. The less important ones are left out first.
fn columns_for(width: u16) -> Vec<&'static SessionColumn> {
    let mut by_rank: Vec<usize> = (0..COLUMNS.len()).collect();
    by_rank.sort_by_key(|place| COLUMNS[*place].rank);
    let mut left = width;
    let mut places: Vec<usize> = by_rank
        .into_iter()
        .take_while(|place| {
            let needed = COLUMNS[*place].width + 1;
            let has_room = left + 1 >= needed;
            left = left.saturating_sub(needed);
            has_room
        })
        .collect();
    places.sort_unstable();
    places.into_iter().map(|place| &COLUMNS[place]).collect()
}

fn foot_line(view: &TopView) -> Line<'static> {
    match (&view.mode, &view.trouble, &view.message) {
        (TopMode::Asking { session, whose }, _, _) => {
            Line::from(format!("end session {session}, {whose}? y/n")).yellow().bold()
        }
        (TopMode::Filtering, _, _) => {
            Line::from(format!("filter: {}_   Enter keeps it, Esc clears it", view.filter)).yellow()
        }
        (TopMode::Watching, Some(trouble), _) => Line::from(trouble.clone()).red(),
        (TopMode::Watching, None, message) => {
            let message = message.as_ref().map(|message| format!("   {message}")).unwrap_or_default();
            Line::from(format!("q quit  s sort  / filter  x end  ↑↓ move{message}")).dim()
        }
    }
}

/// The time of day in UTC, as `HH:MM:SS`.
fn time_of_day(at: UnixMillis) -> String {
    let seconds = at.0.div_euclid(1000).rem_euclid(24 * 3600);
    format!("{:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// One property of a session.
struct SessionColumn {
    name: &'static str,
    width: u16,
    /// Columns with a low rank stay where not all columns fit.
    rank: u8,
    show: fn(&SessionInfo, UnixMillis) -> String,
}

const COLUMNS: [SessionColumn; 11] = [
    SessionColumn { name: "id", width: 15, rank: 0, show: |session, _| session.id.to_string() },
    SessionColumn {
        name: "client",
        width: 21,
        rank: 4,
        show: |session, _| watch::client(session).unwrap_or_else(|| "-".to_owned()),
    },
    SessionColumn {
        name: "principal",
        width: 12,
        rank: 5,
        show: |session, _| watch::principal(session).unwrap_or_else(|| "-".to_owned()),
    },
    SessionColumn { name: "device", width: 38, rank: 1, show: |session, _| watch::target(session) },
    SessionColumn { name: "state", width: 11, rank: 7, show: |session, _| session.state.to_string() },
    SessionColumn { name: "age", width: 9, rank: 6, show: |session, now| ago(now, session.since) },
    SessionColumn { name: "up/s", width: 11, rank: 2, show: |session, _| rate(session.rate_up) },
    SessionColumn { name: "down/s", width: 11, rank: 3, show: |session, _| rate(session.rate_down) },
    SessionColumn { name: "up", width: 10, rank: 8, show: |session, _| bytes(session.bytes_up) },
    SessionColumn { name: "down", width: 10, rank: 9, show: |session, _| bytes(session.bytes_down) },
    SessionColumn { name: "path", width: 11, rank: 10, show: |session, _| watch::paths(session) },
];

const PLOT_LINES: u16 = 6;

/// Rows above and below the cursor; more than a terminal has.
const ROWS_AROUND: usize = 200;

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent};

    use super::*;
    use crate::cli::top::feed::FeedEvent;
    use crate::cli::top::view::tests::watching;

    fn drawn(view: &TopView, columns: u16, lines: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
        terminal.draw(|frame| draw(view, frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_picture_has_the_node_its_traffic_and_its_sessions() {
        let picture = drawn(&watching(4), 180, 24);
        for text in [
            "sluicegate 0.1.0  ready",
            "sessions 2 of 8000   opened 2.0/s   refused 1.0/s   threads 0: 25 %",
            "generation 7",
            "guard holds nothing back",
            "up, to devices: 4.00 KiB/s, at most 4.00 KiB/s",
            "4 sessions, by rate",
            "192.0.2.4:5000",
            "00000000000000000000000000000006:80",
            "q quit",
        ] {
            assert!(picture.contains(text), "no {text} in\n{picture}");
        }
    }

    #[test]
    fn a_narrow_terminal_has_what_matters_most() {
        let picture = drawn(&watching(4), 80, 24);
        let heading = picture.lines().find(|line| line.contains("down/s")).unwrap();
        let names: Vec<_> = heading.trim_matches(['"', '│']).split_whitespace().collect();
        assert_eq!(names, ["id", "device", "up/s", "down/s"]);
    }

    #[test]
    fn a_question_a_filter_and_trouble_are_seen() {
        let mut view = watching(4);
        view.press(KeyEvent::from(KeyCode::Char('x')));
        let question = format!("end session 2, 192.0.2.2:5000 to {:032x}:80? y/n", 8);
        assert!(drawn(&view, 100, 24).contains(&question));
        view.press(KeyEvent::from(KeyCode::Char('n')));
        view.press(KeyEvent::from(KeyCode::Char('/')));
        view.press(KeyEvent::from(KeyCode::Char('7')));
        let picture = drawn(&view, 100, 24);
        assert!(
            picture.contains("filter: 7_") && picture.contains("1 sessions, by rate, with `7`"),
            "{picture}"
        );
        view.press(KeyEvent::from(KeyCode::Enter));
        view.apply(FeedEvent::Trouble("no relay can be asked".to_owned()));
        let picture = drawn(&view, 100, 24);
        assert!(picture.contains("no relay can be asked"), "{picture}");
        assert!(picture.contains("gives no answer; these figures are from 00:00:02"), "{picture}");
        assert!(!picture.contains("ready"), "{picture}");
    }

    #[test]
    fn a_terminal_of_any_size_is_drawn_on() {
        for (columns, lines) in [(1, 1), (20, 5), (80, 24), (400, 100)] {
            drawn(&TopView::new(), columns, lines);
            drawn(&watching(9), columns, lines);
        }
    }
}
