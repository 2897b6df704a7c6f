//! Reads a configuration file, with the environment's overrides on top.
//!
//! All errors are found at once. Each names the file, the line and the key; for an unknown key the nearest known one.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::error::{ConfigError, ConfigErrors};
use super::overrides::Overrides;
use super::text::{ConfigText, Mistake};
use super::validate::{self, KeyProblem};
use super::{Config, Listen};

/// A configuration together with everything that is wrong with it.
pub struct ConfigInspection {
    /// The values that could be read. Where an error names a key, its value here is a default.
    pub config: Config,
    text: ConfigText,
    overrides: Overrides,
    errors: Vec<ConfigError>,
    /// Dotted keys whose values could not be read.
    unreadable: Vec<String>,
    /// All dotted keys that have an error.
    wrong_keys: Vec<String>,
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
    ) -> Result<Self, ConfigErrors> {
        let nothing_more = |_: &Self| Ok::<(), Vec<KeyProblem>>(());
        Self::load_with(path, environment, nothing_more).map(|(config, ())| config)
    }

    /// Loads a configuration as [`load`](Self::load) does, and passes it to `read`, which reads files that it names. The
    /// errors of `read` are reported with the positions of their keys.
    pub fn load_with<T, E: Into<KeyProblem>>(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        read: impl FnOnce(&Self) -> Result<T, Vec<E>>,
    ) -> Result<(Self, T), ConfigErrors> {
        let mut inspection = ConfigInspection::of(path, environment)?;
        let read = inspection.add_errors_of(read);
        let config = inspection.finish()?;
        Ok((config, read.expect("what could not be read is among the errors")))
    }
}

impl ConfigInspection {
    /// Reads `path` and the overrides in `environment` as [`Config::load`] does. Fails only where there is no text to
    /// read.
    pub fn of(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let mut inspection = Self::of_values(path, environment)?;
        for problem in validate::check_machine(&inspection.config) {
            inspection.add(problem);
        }
        Ok(inspection)
    }

    /// Reads as [`of`](Self::of) does, but judges nothing by this machine, where the relay may never run.
    pub fn of_values(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let overrides = Overrides::collect(environment);
        let text = match path {
            Some(path) => ConfigText::read(path)?,
            None => ConfigText::embedded(),
        };
        let syntax = text.syntax_mistakes();
        if let Some(errors) = ConfigErrors::new(syntax.into_iter().map(|each| text.located(each)).collect()) {
            // What is meant is not known, so nothing else can be said of it.
            return Err(errors);
        }
        let (config, mistakes) = text.parse();
        let mut inspection = Self {
            config,
            text,
            overrides,
            errors: Vec::new(),
            unreadable: Vec::new(),
            wrong_keys: Vec::new(),
        };
        for mistake in mistakes {
            inspection.record_mistake(mistake);
        }
        if !inspection.overrides.is_empty() {
            inspection.override_values();
        }
        let config = &mut inspection.config;
        config.authz.state.get_or_insert_with(state_folder);
        config.admin.socket.get_or_insert_with(|| state_folder().join("admin.sock"));
        for problem in validate::check(config) {
            inspection.add(problem);
        }
        Ok(inspection)
    }

    /// Adds the errors of `read`, and returns its result where there are none.
    pub fn add_errors_of<T, E: Into<KeyProblem>>(
        &mut self,
        read: impl FnOnce(&Config) -> Result<T, Vec<E>>,
    ) -> Option<T> {
        match read(&self.config) {
            Ok(read) => Some(read),
            Err(problems) => {
                problems.into_iter().for_each(|problem| self.add(problem.into()));
                None
            }
        }
    }

    /// Adds a problem, unless it follows from a value that could not be read: it is about that key, or says to set it.
    pub fn add(&mut self, KeyProblem { key, problem }: KeyProblem) {
        let is_named = |unreadable: &str| {
            let is_part_of_key = |letter: char| letter.is_ascii_alphanumeric() || "_.".contains(letter);
            problem.split(|letter| !is_part_of_key(letter)).any(|word| word.trim_matches('.') == unreadable)
        };
        if self.unreadable.iter().any(|each| is_related(each, &key) || is_named(each)) {
            return;
        }
        self.wrong_keys.push(key.clone());
        self.errors.push(match self.overrides.variable_of(&key) {
            Some(variable) => ConfigError::Override { variable: variable.to_owned(), problem },
            None => ConfigError::Wrong { position: self.text.position_of(key), problem },
        });
    }

    /// True where no error is about one of `sections` or a key in it.
    pub fn is_right(&self, sections: &[&str]) -> bool {
        !self.wrong_keys.iter().any(|key| sections.iter().any(|section| is_related(key, section)))
    }

    /// The configuration where nothing is wrong with it.
    pub fn finish(self) -> Result<Config, ConfigErrors> {
        match ConfigErrors::new(self.errors) {
            Some(errors) => Err(errors),
            None => {
                let mut config = self.config;
                config.listen.extend(config.forward.listener());
                Ok(config)
            }
        }
    }

    fn record_mistake(&mut self, mistake: Mistake) {
        self.record_unreadable(mistake.key.clone());
        self.errors.push(self.text.located(mistake));
    }

    fn record_unreadable(&mut self, key: Option<String>) {
        self.unreadable.extend(key.as_deref().map(outside_lists));
        self.wrong_keys.extend(key);
    }

    /// Reads the configuration with the overrides on top. The merged text is written out and parsed again, so that an
    /// error has a position, the position a key, and the key a variable.
    fn override_values(&mut self) {
        let Ok(mut table) = toml::from_str::<Table>(&self.text.text) else { return };
        // The default listener can be overridden too.
        table.entry(LISTEN).or_insert_with(|| {
            let listen = |each: &Listen| {
                Value::Table(Table::from_iter([(ADDRESS.to_owned(), each.address.to_string().into())]))
            };
            Value::Array(Config::default().listen.iter().map(listen).collect())
        });
        self.errors.extend(self.overrides.apply(&mut table));
        let merged = ConfigText { name: None, text: table.to_string() };
        let has_errors = !self.errors.is_empty();
        let (config, mistakes) = merged.parse();
        for mistake in mistakes {
            let key = mistake.key.clone();
            match key.as_deref().and_then(|key| self.overrides.variable_of(key)) {
                Some(variable) => {
                    let (variable, problem) = (variable.to_owned(), mistake.problem);
                    self.errors.push(ConfigError::Override { variable, problem });
                }
                // The file's own errors are known already.
                None if has_errors => continue,
                None => self.errors.push(merged.located(Mistake { offset: None, ..mistake })),
            }
            self.record_unreadable(key);
        }
        self.config = config;
    }
}

/// The dotted key up to the first list in it: where an element is left out, the places of the others change.
fn outside_lists(key: &str) -> String {
    let names: Vec<&str> = key.split('.').take_while(|name| name.parse::<usize>().is_err()).collect();
    names.join(".")
}

/// True where one of two dotted keys is the other, or contains it.
fn is_related(one: &str, other: &str) -> bool {
    let contains = |section: &str, key: &str| {
        key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    contains(one, other) || contains(other, one)
}

const LISTEN: &str = "listen";

const ADDRESS: &str = "address";
