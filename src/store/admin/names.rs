//! Names that people give, and suggestions for those that do not exist.

use std::fmt;

use super::AdminError;

/// The end of an error about a name that does not exist.
#[derive(Debug)]
pub enum Nearest {
    /// A name that is much like it.
    Is(String),
    /// The command that lists what there is, or makes it. There is nothing with such a name.
    Try(&'static str),
}

impl Nearest {
    pub(super) fn among(
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
pub(super) fn check(name: &str) -> Result<(), AdminError> {
    let good = !name.trim().is_empty()
        && name.trim() == name
        && name.chars().count() <= NAME_CHARS_MAX
        && !name.chars().any(char::is_control);
    if good { Ok(()) } else { Err(AdminError::Name { name: name.escape_debug().to_string() }) }
}

/// Limit for the name of a principal, a fleet, a node or a device, and for a label.
pub(super) const NAME_CHARS_MAX: usize = 128;
