//! The text of a configuration: its keys by their positions, and the reading of all that can be read of it.

use std::path::Path;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, Deserializer};

use super::bounded_file::{TEXT_FILE_BYTES_MAX, read_bounded_text};
use super::error::{ConfigError, FilePosition};
use super::message;
use super::{Config, Vpn};

/// The text of a configuration, and its file's name; `None` for a text that is in no file.
pub(super) struct ConfigText {
    pub name: Option<String>,
    pub text: String,
}

/// A mistake in a text.
pub(super) struct Mistake {
    pub key: Option<String>,
    /// Offset in the text.
    pub offset: Option<usize>,
    pub problem: String,
}

impl ConfigText {
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        match read_bounded_text(path, TEXT_FILE_BYTES_MAX) {
            Ok(text) => Ok(Self { name: Some(name), text }),
            Err(error) => Err(ConfigError::Unreadable { path: name, detail: error.to_string() }),
        }
    }

    pub fn embedded() -> Self {
        let networks: Vec<String> = Vpn::loopback().allow.iter().map(|each| format!("\"{each}\"")).collect();
        Self { name: None, text: format!("[vpn]\nallow = [{}]\n", networks.join(", ")) }
    }

    /// All mistakes of syntax. A text without any can be read by [`parse`](Self::parse).
    pub fn syntax_mistakes(&self) -> Vec<Mistake> {
        let (_, errors) = DeTable::parse_recoverable(&self.text);
        let mut lines_seen = Vec::new();
        let mut mistakes: Vec<Mistake> = errors
            .iter()
            .map(|error| {
                let offset = error.span().map(|span| span.start);
                Mistake { key: None, offset, problem: message::plain(error.message(), None, None) }
            })
            .collect();
        // The parser may say several things of one line.
        mistakes.retain(|mistake| {
            let line = mistake.offset.map(|offset| self.line_and_column(offset).0);
            let is_first = !lines_seen.contains(&line);
            lines_seen.push(line);
            is_first
        });
        mistakes
    }

    /// Reads a text whose syntax is right. A value that cannot be read is left out, so that all mistakes are found, each
    /// with its key. The configuration is of use for further checks only where there is no mistake in what they look at.
    pub fn parse(&self) -> (Config, Vec<Mistake>) {
        let mut mistakes: Vec<Mistake> = Vec::new();
        let Ok(mut document) = DeTable::parse(&self.text) else { return (Config::default(), mistakes) };
        loop {
            let error = match Config::deserialize(Deserializer::from(document.clone())) {
                Ok(config) => return (config, mistakes),
                Err(error) => error,
            };
            let span = error.span();
            let key = span.as_ref().and_then(|span| self.key_at(span.start));
            // A table that lacks what was left out of it is no mistake of its own.
            let is_consequence =
                mistakes.iter().any(|earlier| is_below(earlier.key.as_deref(), key.as_deref()));
            if !is_consequence {
                let found = span.clone().and_then(|span| self.text.get(span));
                let problem = message::plain(error.message(), key.as_deref(), found);
                mistakes.push(Mistake { key, offset: span.as_ref().map(|span| span.start), problem });
            }
            let is_left_out = span.is_some_and(|span| leave_out(document.get_mut(), span.start));
            if !is_left_out {
                return (Config::default(), mistakes);
            }
        }
    }

    /// The error for a mistake, with its position in the file.
    pub fn located(&self, mistake: Mistake) -> ConfigError {
        let position = match mistake.offset {
            Some(offset) => self.position(offset, mistake.key),
            None => FilePosition { file: self.name.clone(), position: None, key: mistake.key },
        };
        ConfigError::Wrong { position, problem: mistake.problem }
    }

    pub fn position_of(&self, key: String) -> FilePosition {
        match self.offset_of(&key) {
            Some(offset) => self.position(offset, Some(key)),
            None => FilePosition { file: self.name.clone(), position: None, key: Some(key) },
        }
    }

    fn position(&self, offset: usize, key: Option<String>) -> FilePosition {
        let position = self.name.is_some().then(|| self.line_and_column(offset));
        FilePosition { file: self.name.clone(), position, key }
    }

    fn line_and_column(&self, offset: usize) -> (usize, usize) {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
        (line, column)
    }

    /// The dotted key whose name or value is at `offset`.
    fn key_at(&self, offset: usize) -> Option<String> {
        let document = DeTable::parse(&self.text).ok()?;
        let mut keys = Vec::new();
        visit(document.get_ref(), "", &mut |key, span| {
            if span.contains(&offset) {
                keys.push(key.to_owned());
            }
        });
        keys.pop()
    }

    fn offset_of(&self, wanted: &str) -> Option<usize> {
        let document = DeTable::parse(&self.text).ok()?;
        let mut offset = None;
        visit(document.get_ref(), "", &mut |key, span| {
            if key == wanted {
                offset = Some(span.start);
            }
        });
        offset
    }
}

/// True where the dotted `key` is below `section`.
fn is_below(key: Option<&str>, section: Option<&str>) -> bool {
    let (Some(key), Some(section)) = (key, section) else { return false };
    key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
}

/// Removes the innermost key or element at `offset`. Returns false where there is none.
fn leave_out(table: &mut DeTable<'_>, offset: usize) -> bool {
    if table.iter_mut().any(|(_, value)| leave_out_of_value(value, offset)) {
        return true;
    }
    let at = table.iter().find(|(name, value)| {
        name.span().contains(&offset)
            || (name.span().start.min(value.span().start)..value.span().end).contains(&offset)
    });
    let Some(name) = at.map(|(name, _)| name.get_ref().to_string()) else { return false };
    table.remove(name.as_str()).is_some()
}

fn leave_out_of_value(value: &mut Spanned<DeValue<'_>>, offset: usize) -> bool {
    match value.get_mut() {
        DeValue::Table(table) => leave_out(table, offset),
        DeValue::Array(elements) => {
            if elements.iter_mut().any(|element| leave_out_of_value(element, offset)) {
                return true;
            }
            let count = elements.len();
            let mut kept = DeArray::new();
            elements
                .iter()
                .filter(|each| !each.span().contains(&offset))
                .cloned()
                .for_each(|each| kept.push(each));
            *elements = kept;
            elements.len() < count
        }
        _ => false,
    }
}

/// Calls `record` for every key below `table`, outer ones first, with its dotted name and the span of key and value.
fn visit(table: &DeTable<'_>, prefix: &str, record: &mut impl FnMut(&str, std::ops::Range<usize>)) {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.get_ref());
        visit_value(&key, name.span().start.min(value.span().start), value, record);
    }
}

fn visit_value(
    key: &str,
    start: usize,
    value: &Spanned<DeValue<'_>>,
    record: &mut impl FnMut(&str, std::ops::Range<usize>),
) {
    record(key, start..value.span().end);
    match value.get_ref() {
        DeValue::Table(table) => visit(table, &format!("{key}."), record),
        DeValue::Array(elements) => {
            for (place, element) in elements.iter().enumerate() {
                visit_value(&format!("{key}.{place}"), element.span().start, element, record);
            }
        }
        _ => {}
    }
}
