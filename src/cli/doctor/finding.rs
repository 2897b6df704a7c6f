//! One item that was looked at, and how all of them are shown.

use serde::Serialize;

/// What was found, what is wanted, why, and how to come from one to the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct MachineFinding {
    pub item: String,
    pub verdict: FindingVerdict,
    pub found: String,
    pub wanted: String,
    pub why: String,
    /// What to type or write.
    pub how: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FindingVerdict {
    /// This configuration cannot have what it asks for.
    Limit,
    /// It would run better otherwise.
    Advice,
    /// It cannot be read here.
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

    /// `Fine`, or else what it is where it is not.
    pub fn unless(is_fine: bool, otherwise: Self) -> Self {
        if is_fine { Self::Fine } else { otherwise }
    }
}

impl MachineFinding {
    /// One line where all is well, three where something is to be done.
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

/// All findings for people, the worst first.
pub(super) fn text(findings: &[MachineFinding]) -> String {
    findings.iter().map(MachineFinding::text).collect()
}
