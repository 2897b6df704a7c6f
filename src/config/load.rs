//! Reads a configuration file and the environment's overrides.
//!
//! What is wrong is told with file, line and key, and for an unknown key with the nearest known one.

use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::{Config, StoreUrl, Vpn, validate};

/// What is wrong with a configuration, where, and what to do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{path} cannot be read: {detail}")]
    Unreadable { path: String, detail: String },
    #[error("{place}{problem}")]
    Wrong { place: Place, problem: String },
    #[error("the environment's {variable}: {problem}")]
    Override { variable: String, problem: String },
    #[error("store.url `{url}` is not understood; this version knows `sqlite:PATH`")]
    StoreUrl { url: String },
}

/// Where in a file something stands; shown as `FILE:LINE:COLUMN: KEY: `, as far as it is known.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub file: Option<String>,
    /// Line and column, from 1.
    pub position: Option<(usize, usize)>,
    pub key: Option<String>,
}

/// Where the embedded store lives: systemd's state folder, else the XDG one.
pub fn state_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("STATE_DIRECTORY") {
        return folder.into();
    }
    if let Some(folder) = std::env::var_os("XDG_STATE_HOME") {
        return PathBuf::from(folder).join("sluicegate");
    }
    match std::env::var_os("HOME") {
        Some(home) => PathBuf::from(home).join(".local/state/sluicegate"),
        None => PathBuf::from("/var/lib/sluicegate"),
    }
}

impl Config {
    /// Reads `path`, or starts from the embedded defaults, and applies every `SLUICEGATE_SECTION__KEY` of
    /// `environment` on top. An element of a list is named by its place: `SLUICEGATE_LISTEN__0__ADDRESS`.
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let source = match path {
            Some(path) => Source::read(path)?,
            None => Source::default(),
        };
        let mut config: Self = toml::from_str(&source.text).map_err(|error| source.explain(&error))?;
        let mut table: Table = toml::from_str(&source.text).map_err(|error| source.explain(&error))?;
        for (variable, value) in environment {
            if let Some(keys) = override_keys(&variable) {
                set(&mut table, &keys, &value)
                    .map_err(|problem| ConfigError::Override { variable: variable.clone(), problem })?;
                config = table.clone().try_into().map_err(|error: toml::de::Error| {
                    ConfigError::Override { variable, problem: with_nearest(error.message()) }
                })?;
            }
        }
        if path.is_none() && config.vpn.allow.is_empty() {
            config.vpn.allow = Vpn::loopback().allow;
        }
        validate::check(&config).map_err(|finding| source.place_finding(finding))?;
        Ok(config)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}:")?;
        }
        if let Some((line, column)) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        if self.file.is_some() {
            f.write_str(" ")?;
        }
        self.key.as_ref().map_or(Ok(()), |key| write!(f, "{key}: "))
    }
}

impl TryFrom<String> for StoreUrl {
    type Error = ConfigError;

    fn try_from(url: String) -> Result<Self, ConfigError> {
        match url.strip_prefix("sqlite:") {
            Some(path) if !path.is_empty() => Ok(Self::Sqlite(path.into())),
            _ => Err(ConfigError::StoreUrl { url }),
        }
    }
}

/// A file's text and name; both empty for the embedded defaults.
#[derive(Default)]
struct Source {
    name: Option<String>,
    text: String,
}

impl Source {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Self { name: Some(name), text }),
            Err(error) => Err(ConfigError::Unreadable { path: name, detail: error.to_string() }),
        }
    }

    fn explain(&self, error: &toml::de::Error) -> ConfigError {
        let place = match error.span() {
            Some(span) => self.place(span.start, self.key_at(span.start)),
            None => Place { file: self.name.clone(), ..Place::default() },
        };
        // The parser's own words go over several lines for a mistake of syntax.
        let problem = with_nearest(error.message()).replace('\n', ", ");
        ConfigError::Wrong { place, problem }
    }

    fn place_finding(&self, finding: validate::Finding) -> ConfigError {
        let key = finding.key;
        let place = match self.offset_of(&key) {
            Some(offset) => self.place(offset, Some(key)),
            None => Place { file: self.name.clone(), position: None, key: Some(key) },
        };
        ConfigError::Wrong { place, problem: finding.problem }
    }

    fn place(&self, offset: usize, key: Option<String>) -> Place {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
        Place { file: self.name.clone(), position: Some((line, column)), key }
    }

    /// The dotted key whose name or value stands at `offset`.
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

/// Tells of every key below `table`, outer ones first: its dotted name, and what it and its value span.
fn visit(table: &DeTable<'_>, prefix: &str, tell: &mut impl FnMut(&str, std::ops::Range<usize>)) {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.get_ref());
        visit_value(&key, name.span().start.min(value.span().start), value, tell);
    }
}

fn visit_value(
    key: &str,
    start: usize,
    value: &toml::Spanned<DeValue<'_>>,
    tell: &mut impl FnMut(&str, std::ops::Range<usize>),
) {
    tell(key, start..value.span().end);
    match value.get_ref() {
        DeValue::Table(table) => visit(table, &format!("{key}."), tell),
        DeValue::Array(elements) => {
            for (place, element) in elements.iter().enumerate() {
                visit_value(&format!("{key}.{place}"), element.span().start, element, tell);
            }
        }
        _ => {}
    }
}

/// `SLUICEGATE_TIMEOUTS__HEAD` names `timeouts.head`; a variable with no `__` is no override.
fn override_keys(variable: &str) -> Option<Vec<String>> {
    let keys = variable.strip_prefix("SLUICEGATE_")?;
    keys.contains("__").then(|| keys.split("__").map(str::to_lowercase).collect())
}

/// Puts `value` at `keys`: as TOML where it reads as TOML, else as text.
fn set(table: &mut Table, keys: &[String], value: &str) -> Result<(), String> {
    let [first, rest @ ..] = keys else { return Ok(()) };
    let value = toml::from_str::<Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(value.to_owned()));
    let is_list = rest.first().is_some_and(|next| next.parse::<usize>().is_ok());
    let empty = if is_list { Value::Array(Vec::new()) } else { Value::Table(Table::new()) };
    let mut at = table.entry(first.clone()).or_insert(empty);
    for key in rest {
        at = match at {
            Value::Array(elements) => {
                let place: usize =
                    key.parse().map_err(|_| format!("`{key}` should be a place in a list, from 0"))?;
                if place > elements.len() {
                    return Err(format!("the list has no element {place}, only {}", elements.len()));
                }
                if place == elements.len() {
                    elements.push(Value::Table(Table::new()));
                }
                &mut elements[place]
            }
            Value::Table(table) => table.entry(key.clone()).or_insert(Value::Table(Table::new())),
            _ => return Err(format!("`{key}` lies below a key that is no section")),
        };
    }
    *at = value;
    Ok(())
}

/// Adds the nearest known key to the parser's word about an unknown one.
fn with_nearest(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let (true, Some(unknown)) = (message.starts_with("unknown field"), quoted.next()) else {
        return message.to_owned();
    };
    let nearest =
        quoted.max_by(|a, b| strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b)));
    match nearest {
        Some(nearest) => format!("unknown key `{unknown}`; the nearest known key is `{nearest}`"),
        None => format!("unknown key `{unknown}`"),
    }
}
