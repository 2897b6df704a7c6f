//! Names that people give, and what they may have meant.

use std::fmt;

use rusqlite::Transaction;

use super::{AdminError, Failure};

/// For the end of an error about a name that does not exist.
#[derive(Debug)]
pub enum Nearest {
    /// Something with a name much like it.
    Is(String),
    /// Nothing like it; the command that lists or makes what there is.
    Try(&'static str),
}

impl Nearest {
    /// Looks for `name` among the texts that `sql` selects.
    pub(super) fn find(
        transaction: &Transaction<'_>,
        sql: &str,
        name: &str,
        otherwise: &'static str,
    ) -> Result<Self, Failure> {
        let mut statement = transaction.prepare(sql)?;
        let mut nearest: Option<(usize, String)> = None;
        for candidate in statement.query_map([], |row| row.get::<_, String>(0))? {
            let candidate = candidate?;
            let distance = strsim::damerau_levenshtein(&name.to_lowercase(), &candidate.to_lowercase());
            if nearest.as_ref().is_none_or(|(least, _)| distance < *least) {
                nearest = Some((distance, candidate));
            }
        }
        let alike = (name.chars().count() / 3).max(1);
        Ok(match nearest {
            Some((distance, candidate)) if distance <= alike => Self::Is(candidate),
            _ => Self::Try(otherwise),
        })
    }
}

impl fmt::Display for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(name) => write!(f, "did you mean `{name}`?"),
            Self::Try(command) => f.write_str(command),
        }
    }
}

/// Refuses a name that could not be typed again or would break a line.
pub(super) fn check(name: &str) -> Result<(), AdminError> {
    let good = !name.trim().is_empty()
        && name.trim() == name
        && name.chars().count() <= NAME_CHARS_MAX
        && !name.chars().any(char::is_control);
    if good { Ok(()) } else { Err(AdminError::Name { name: name.escape_debug().to_string() }) }
}

/// Of a principal, a fleet, a node, a device or a label.
pub(super) const NAME_CHARS_MAX: usize = 128;
