//! Names that people give, and what they may have meant.

use std::fmt;

use super::AdminError;

/// For the end of an error about a name that does not exist.
#[derive(Debug)]
pub enum Nearest {
    /// Something with a name much like it.
    Is(String),
    /// Nothing like it; the command that lists or makes what there is.
    Try(&'static str),
}

impl Nearest {
    pub(in crate::store) fn among(
        candidates: impl IntoIterator<Item = String>,
        name: &str,
        otherwise: &'static str,
    ) -> Self {
        let distance =
            |candidate: &String| strsim::damerau_levenshtein(&name.to_lowercase(), &candidate.to_lowercase());
        let alike = (name.chars().count() / 3).max(1);
        let nearest = candidates.into_iter().map(|candidate| (distance(&candidate), candidate)).min();
        match nearest {
            Some((distance, candidate)) if distance <= alike => Self::Is(candidate),
            _ => Self::Try(otherwise),
        }
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
pub(in crate::store) fn check(name: &str) -> Result<(), AdminError> {
    let good = !name.trim().is_empty()
        && name.trim() == name
        && name.chars().count() <= NAME_CHARS_MAX
        && !name.chars().any(char::is_control);
    if good { Ok(()) } else { Err(AdminError::Name { name: name.escape_debug().to_string() }) }
}

/// Of a principal, a fleet, a node, a device or a label.
pub(in crate::store) const NAME_CHARS_MAX: usize = 128;
