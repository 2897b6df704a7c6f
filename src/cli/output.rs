//! Output of commands: text for people, JSON for programs, and one line for a failure.

use std::error::Error;
use std::io::{ErrorKind, Write};

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::authz::UnixMillis;
use crate::config::Store;
use crate::store::StoreError;
use crate::store::admin::{Admin, AdminError};

/// Store and output format of a store command.
#[derive(Clone, Debug)]
pub struct StoreContext {
    pub store: Store,
    pub output: OutputFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputFormat {
    Text,
    Json,
}

/// Reason why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Printed in one line.
    #[error("{0}")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
    /// The command line makes no sense, in a way that clap cannot detect.
    #[error("{0}")]
    Usage(String),
}

/// Result of a command.
pub(super) enum CommandAnswer {
    Table(AnswerTable),
    Done(Done),
}

/// Rows with the same columns.
pub(super) struct AnswerTable {
    /// Keys in JSON, headings in text.
    pub(super) columns: &'static [&'static str],
    pub(super) rows: Vec<Vec<Cell>>,
}

/// One completed action.
pub(super) struct Done {
    /// Printed to stdout as text.
    pub(super) text: String,
    /// Printed to stderr beside the text.
    pub(super) note: Option<String>,
    /// Printed to stdout as JSON.
    pub(super) facts: Value,
}

pub(super) enum Cell {
    Empty,
    Text(String),
    Number(i64),
    Truth(bool),
    Time(UnixMillis),
}

impl StoreContext {
    pub(super) fn open(&self) -> Result<Admin, StoreError> {
        Admin::open(&self.store)
    }

    /// Opens the store, runs `command` on it and prints its answer.
    pub(super) fn answer(
        &self,
        command: impl FnOnce(&mut Admin) -> Result<CommandAnswer, AdminError>,
    ) -> Result<(), CommandError> {
        let answer = command(&mut self.open()?)?;
        answer.print(self.output)
    }
}

impl CommandError {
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(error.into())
    }

    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
        }
    }
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        Self::failed(error)
    }
}

impl From<AdminError> for CommandError {
    fn from(error: AdminError) -> Self {
        Self::failed(error)
    }
}

impl CommandAnswer {
    pub(super) fn done(text: impl Into<String>, facts: Value) -> Self {
        Self::Done(Done { text: text.into(), note: None, facts })
    }

    pub(super) fn print(&self, output: OutputFormat) -> Result<(), CommandError> {
        print(&self.rendered(output))?;
        if let (Self::Done(Done { note: Some(note), .. }), OutputFormat::Text) = (self, output) {
            eprintln!("{note}");
        }
        Ok(())
    }

    pub(super) fn rendered(&self, output: OutputFormat) -> String {
        match (self, output) {
            (Self::Table(table), OutputFormat::Text) => table.text(),
            (Self::Table(table), OutputFormat::Json) => format!("{:#}\n", table.json()),
            (Self::Done(done), OutputFormat::Text) => format!("{}\n", done.text),
            (Self::Done(done), OutputFormat::Json) => format!("{:#}\n", done.facts),
        }
    }
}

/// Writes to stdout. Ignores a closed pipe, since a reader such as `head` has read enough.
pub(super) fn print(text: &str) -> Result<(), CommandError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(CommandError::failed(format!("stdout cannot be written ({error})")))
        }
        _ => Ok(()),
    }
}

impl AnswerTable {
    fn text(&self) -> String {
        let heading = self.columns.iter().map(|name| name.replace('_', " ").to_uppercase()).collect();
        let rows = self.rows.iter().map(|row| row.iter().map(Cell::text).collect());
        let lines: Vec<Vec<String>> = std::iter::once(heading).chain(rows).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        for line in &lines {
            let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }

    fn json(&self) -> Value {
        let object = |row: &Vec<Cell>| {
            let names = self.columns.iter().map(|name| (*name).to_owned());
            Value::Object(names.zip(row.iter().map(Cell::json)).collect::<Map<_, _>>())
        };
        self.rows.iter().map(object).collect()
    }
}

impl Cell {
    fn text(&self) -> String {
        match self {
            Self::Empty => "-".to_owned(),
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::Truth(truth) => if *truth { "yes" } else { "no" }.to_owned(),
            Self::Time(at) => rfc3339(*at),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Empty => Value::Null,
            Self::Text(text) => text.as_str().into(),
            Self::Number(number) => (*number).into(),
            Self::Truth(truth) => (*truth).into(),
            Self::Time(at) => rfc3339(*at).into(),
        }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<UnixMillis> for Cell {
    fn from(at: UnixMillis) -> Self {
        Self::Time(at)
    }
}

impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Empty, Into::into)
    }
}

/// Formats a time to the second. A time outside the calendar is shown in milliseconds.
pub(super) fn rfc3339(at: UnixMillis) -> String {
    match Timestamp::from_millisecond(at.0) {
        Ok(timestamp) => format!("{timestamp:.0}"),
        Err(_) => format!("{} ms", at.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> CommandAnswer {
        CommandAnswer::Table(AnswerTable {
            columns: &["name", "created_at", "online"],
            rows: vec![
                vec!["köln-1".to_owned().into(), UnixMillis(1_700_000_000_999).into(), Cell::Truth(true)],
                vec!["x".to_owned().into(), None::<UnixMillis>.into(), Cell::Truth(false)],
            ],
        })
    }

    #[test]
    fn tables_are_aligned_for_people() {
        let expected = "NAME    CREATED AT            ONLINE\n\
                        köln-1  2023-11-14T22:13:20Z  yes\n\
                        x       -                     no\n";
        assert_eq!(table().rendered(OutputFormat::Text), expected);
    }

    #[test]
    fn tables_are_objects_for_programs() {
        let parsed: Value = serde_json::from_str(&table().rendered(OutputFormat::Json)).unwrap();
        assert_eq!(parsed[0]["created_at"], "2023-11-14T22:13:20Z");
        assert_eq!((&parsed[1]["created_at"], &parsed[1]["online"]), (&Value::Null, &false.into()));
    }

    #[test]
    fn a_time_out_of_the_calendar_is_shown_all_the_same() {
        assert_eq!(rfc3339(UnixMillis(i64::MAX)), "9223372036854775807 ms");
    }
}
