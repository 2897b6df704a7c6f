//! One checked item, and the text for all of them.

use serde::Serialize;

/// Found and wanted value of an item, with the reason and the way to change it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct MachineFinding {
    pub item: String,
    pub verdict: FindingVerdict,
    pub found: String,
    pub wanted: String,
    pub why: String,
    /// Command to type, or setting to write.
    pub how: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FindingVerdict {
    /// The configuration cannot have what it asks for.
    Limit,
    /// The relay would run better with another value.
    Advice,
    /// The value cannot be read on this machine.
    Unknown,
    Fine,
}

impl FindingVerdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Limit => "LIMIT",
            Self::Advice => "advice",
            Self::Unknown => "unknown",
            Self::Fine => "fine",
        }
    }

    /// Returns `Fine` if `is_fine`, and `otherwise` if not.
    pub fn unless(is_fine: bool, otherwise: Self) -> Self {
        if is_fine { Self::Fine } else { otherwise }
    }
}

impl MachineFinding {
    /// Formats the item: one line where it is fine, three where something should be changed.
    fn text(&self) -> String {
        let Self { item, verdict, found, wanted, why, how } = self;
        let word = verdict.word();
        match verdict {
            FindingVerdict::Fine => format!("{word:<8} {item}: {found}\n"),
            FindingVerdict::Unknown => format!("{word:<8} {item}: {found}\n         {why}\n"),
            FindingVerdict::Limit | FindingVerdict::Advice => {
                format!("{word:<8} {item}: {found}, want {wanted}\n         {why}\n         > {how}\n")
            }
        }
    }
}

/// Formats all findings for people.
pub(super) fn text(findings: &[MachineFinding]) -> String {
    findings.iter().map(MachineFinding::text).collect()
}
