//! Reads a configuration file, with the environment's overrides on top.
//!
//! An error names the file, the line and the key; for an unknown key it names the nearest known key.

use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::guard::FORMER_KEYS;
use super::overrides::Overrides;
use super::validate::{self, KeyProblem};
use super::{Config, Listen, Vpn};

/// An error in a configuration, its position, and the remedy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{path} cannot be read: {detail}")]
    Unreadable { path: String, detail: String },
    #[error("{position}{problem}")]
    Wrong { position: FilePosition, problem: String },
    #[error("the environment's {variable}: {problem}")]
    Override { variable: String, problem: String },
    #[error("`{scheme}` is not a store; use `sqlite:PATH` or `postgres://USER@HOST/DATABASE`")]
    StoreUrl { scheme: String },
    #[error(
        "this is not a PostgreSQL URL ({detail}); write `postgres://USER@HOST[:PORT],…/DATABASE?OPTION=VALUE&…`"
    )]
    StorePostgresUrl { detail: String },
    #[error(
        "`{name}` is not a source of device addresses; use `store`, `file:PATH`, `openvpn:PATH`, \
         `openvpn:HOST:PORT` (an IPv6 address in brackets) or `wireguard:INTERFACE`"
    )]
    AddressSource { name: String },
    #[error("the key in {file} cannot be used: {detail}")]
    TokenKey { file: String, detail: String },
    #[error("`claims` names every claim of these tokens; leave out `secret_claim` and `principal_claim`")]
    TokenClaims,
    #[error("the query in {file} cannot be used ({detail}); name a file that holds one SELECT")]
    Query { file: String, detail: String },
}

/// A position in a configuration file; shown as `FILE:LINE:COLUMN: KEY: `, as far as it is known.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FilePosition {
    pub file: Option<String>,
    /// Line and column, from 1.
    pub position: Option<(usize, usize)>,
    pub key: Option<String>,
}

/// The folder of the embedded store and of the node's state: systemd's state folder, else the XDG one.
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
    /// Reads `path` and applies the overrides in `environment`; see [`environment`](super::environment).
    ///
    /// Without a file, a node runs on the embedded defaults, which allow devices on loopback. A file must name the
    /// networks of its devices.
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let nothing_more = |_: &Self| Ok::<(), KeyProblem>(());
        Self::load_with(path, environment, nothing_more).map(|(config, ())| config)
    }

    /// Loads a configuration as [`load`](Self::load) does, and passes it to `read`, which reads files that it names. An
    /// error of `read` is reported with the position of its key.
    pub fn load_with<T, E: Into<KeyProblem>>(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        read: impl FnOnce(&Self) -> Result<T, E>,
    ) -> Result<(Self, T), ConfigError> {
        let overrides = Overrides::collect(environment);
        let text = match path {
            Some(path) => ConfigText::read(path)?,
            None => ConfigText::embedded(),
        };
        let mut config: Self = toml::from_str(&text.text).map_err(|error| text.explain(&error))?;
        if !overrides.is_empty() {
            config = text.overridden(&overrides)?;
        }
        config.authz.state.get_or_insert_with(state_folder);
        config.admin.socket.get_or_insert_with(|| state_folder().join("admin.sock"));
        let checked = read(&config).map_err(E::into).and_then(|read| validate::check(&config).map(|()| read));
        match checked {
            Ok(read) => {
                config.listen.extend(config.forward.listener());
                Ok((config, read))
            }
            Err(KeyProblem { key, problem }) => Err(match overrides.variable_of(&key) {
                Some(variable) => ConfigError::Override { variable: variable.to_owned(), problem },
                None => ConfigError::Wrong { position: text.position_of(key), problem },
            }),
        }
    }
}

impl fmt::Display for FilePosition {
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

/// The text of a configuration, and its file's name; `None` for a text that is in no file.
struct ConfigText {
    name: Option<String>,
    text: String,
}

impl ConfigText {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Self { name: Some(name), text }),
            Err(error) => Err(ConfigError::Unreadable { path: name, detail: error.to_string() }),
        }
    }

    fn embedded() -> Self {
        let networks: Vec<String> = Vpn::loopback().allow.iter().map(|each| format!("\"{each}\"")).collect();
        Self { name: None, text: format!("[vpn]\nallow = [{}]\n", networks.join(", ")) }
    }

    /// Reads the configuration with `overrides` on top. The merged text is written out and parsed again, so that an
    /// error has a position, the position a key, and the key a variable.
    fn overridden(&self, overrides: &Overrides) -> Result<Config, ConfigError> {
        let mut table: Table = toml::from_str(&self.text).map_err(|error| self.explain(&error))?;
        // The default listener can be overridden too.
        table.entry(LISTEN).or_insert_with(|| {
            let listen = |each: &Listen| {
                Value::Table(Table::from_iter([(ADDRESS.to_owned(), each.address.to_string().into())]))
            };
            Value::Array(Config::default().listen.iter().map(listen).collect())
        });
        overrides.apply(&mut table)?;
        let merged = Self { name: None, text: table.to_string() };
        toml::from_str(&merged.text).map_err(|error| {
            let key = error.span().and_then(|span| merged.key_at(span.start));
            match key.as_deref().and_then(|key| overrides.variable_of(key)) {
                Some(variable) => {
                    let problem = problem(&error, key.as_deref());
                    ConfigError::Override { variable: variable.to_owned(), problem }
                }
                None => merged.explain(&error),
            }
        })
    }

    fn explain(&self, error: &toml::de::Error) -> ConfigError {
        let key = error.span().and_then(|span| self.key_at(span.start));
        let problem = problem(error, key.as_deref());
        let position = match error.span() {
            Some(span) => self.position(span.start, key),
            None => FilePosition { file: self.name.clone(), ..FilePosition::default() },
        };
        ConfigError::Wrong { position, problem }
    }

    fn position_of(&self, key: String) -> FilePosition {
        match self.offset_of(&key) {
            Some(offset) => self.position(offset, Some(key)),
            None => FilePosition { file: self.name.clone(), position: None, key: Some(key) },
        }
    }

    fn position(&self, offset: usize, key: Option<String>) -> FilePosition {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
        let position = self.name.is_some().then_some((line, column));
        FilePosition { file: self.name.clone(), position, key }
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
    value: &toml::Spanned<DeValue<'_>>,
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

/// The parser's message about `key` in one line; for a mistake of syntax it has several.
fn problem(error: &toml::de::Error, key: Option<&str>) -> String {
    let is_unknown = error.message().starts_with("unknown field");
    let name = key.and_then(|key| key.strip_prefix(GUARD)).filter(|_| is_unknown);
    if let Some((former, instead)) = FORMER_KEYS.iter().find(|(former, _)| name == Some(former)) {
        return format!("`{former}` is a key of earlier versions; {instead}");
    }
    with_nearest(error.message()).replace('\n', ", ")
}

/// Adds the nearest known key to the parser's message about an unknown one.
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

/// Section of the guard, as keys in it begin.
const GUARD: &str = "authz.guard.";

const LISTEN: &str = "listen";

const ADDRESS: &str = "address";
