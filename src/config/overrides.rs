//! Overrides from the environment: `SLUICEGATE_SECTION__KEY` sets `section.key`.
//!
//! The place of an element in a list counts from 0: `SLUICEGATE_LISTEN__0__ADDRESS`. A value that parses as TOML is
//! TOML (`5`, `true`, `["10.8.0.0/16"]`); any other is text (`3s`). A variable without `__`, such as
//! `SLUICEGATE_TOKEN`, is no override.

use std::fmt;

use toml::{Table, Value};

use super::ConfigError;

/// The overrides in this process's environment.
pub fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    let is_ours = |name: &std::ffi::OsString| name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
    std::env::vars_os()
        .filter(|(name, _)| is_ours(name))
        .map(|(name, value)| match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => Ok((name, value)),
            (name, _) => Err(ConfigError::Override {
                variable: name.unwrap_or_else(|name| name.to_string_lossy().into_owned()),
                problem: "is not UTF-8; set it again or unset it".to_owned(),
            }),
        })
        .collect()
}

/// All overrides, sorted by their keys, so that the environment's order does not matter.
pub(super) struct Overrides(Vec<Override>);

struct Override {
    variable: String,
    steps: Vec<KeyStep>,
    value: Value,
}

/// One part of a dotted key.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum KeyStep {
    Place(usize),
    Key(String),
}

impl Overrides {
    pub fn collect(environment: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut overrides: Vec<Override> = environment
            .into_iter()
            .filter_map(|(variable, value)| {
                let steps = steps(&variable)?;
                Some(Override { variable, steps, value: read_value(value) })
            })
            .collect();
        overrides.sort_by(|a, b| a.steps.cmp(&b.steps));
        Self(overrides)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets the values in `table`. Returns an error for each variable that cannot be applied.
    pub fn apply(&self, table: &mut Table) -> Vec<ConfigError> {
        self.0.iter().filter_map(|each| each.apply(table).err()).collect()
    }

    /// The variable that set the dotted `key`, a part of it, or a section that contains it.
    pub fn variable_of(&self, key: &str) -> Option<&str> {
        let is_part = |part: &str, whole: &str| {
            part.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let is_about = |each: &&Override| {
            let own = each.key();
            is_part(key, &own) || is_part(&own, key)
        };
        self.0.iter().find(is_about).map(|each| each.variable.as_str())
    }
}

impl Override {
    fn key(&self) -> String {
        self.steps.iter().map(ToString::to_string).collect::<Vec<_>>().join(".")
    }

    fn apply(&self, table: &mut Table) -> Result<(), ConfigError> {
        let wrong = |problem| ConfigError::Override { variable: self.variable.clone(), problem };
        let mut steps = self.steps.iter().peekable();
        let Some(KeyStep::Key(section)) = steps.next() else {
            return Err(wrong("begins with a place in a list; name the list first".to_owned()));
        };
        let mut at = table.entry(section.clone()).or_insert_with(|| empty_for(steps.peek()));
        while let Some(step) = steps.next() {
            at = match (at, step) {
                (Value::Array(elements), KeyStep::Place(place)) => {
                    if *place > elements.len() {
                        return Err(wrong(format!("the next free place in the list is {}", elements.len())));
                    }
                    if *place == elements.len() {
                        elements.push(empty_for(steps.peek()));
                    }
                    &mut elements[*place]
                }
                (Value::Table(table), KeyStep::Key(key)) => {
                    table.entry(key.clone()).or_insert_with(|| empty_for(steps.peek()))
                }
                (Value::Array(_), KeyStep::Key(key)) => {
                    return Err(wrong(format!("`{key}` should be a place in a list, from 0")));
                }
                (_, step) => return Err(wrong(format!("`{step}` is below a key that is not a section"))),
            };
        }
        *at = self.value.clone();
        Ok(())
    }
}

impl fmt::Display for KeyStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place(place) => write!(f, "{place}"),
            Self::Key(key) => f.write_str(key),
        }
    }
}

/// The parts of the dotted key that a variable names; `None` for a variable that is no override.
fn steps(variable: &str) -> Option<Vec<KeyStep>> {
    let keys = variable.strip_prefix(PREFIX)?;
    let step = |key: &str| match key.parse() {
        Ok(place) => KeyStep::Place(place),
        Err(_) => KeyStep::Key(key.to_lowercase()),
    };
    keys.contains("__").then(|| keys.split("__").map(step).collect())
}

/// Reads the value of a variable. No key is a date, so a value that parses as one is text.
fn read_value(text: String) -> Value {
    match text.parse() {
        Ok(Value::Datetime(_)) | Err(_) => Value::String(text),
        Ok(value) => value,
    }
}

/// The empty list or table that the next step needs.
fn empty_for(next: Option<&&KeyStep>) -> Value {
    match next {
        Some(KeyStep::Place(_)) => Value::Array(Vec::new()),
        _ => Value::Table(Table::new()),
    }
}

const PREFIX: &str = "SLUICEGATE_";
