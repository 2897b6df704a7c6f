//! The sysctl profiles of `tuning/`, read from the same files that are installed.
//!
//! Two comment lines stand above each value: its meaning and reason, and the source of it. A test reads every file,
//! so a value without a reason fails it.

use clap::ValueEnum;

use super::finding::{FindingVerdict, MachineFinding};
use super::machine::Machine;

/// Kinds of node that have a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TuningProfile {
    /// Much traffic in few tunnels, over long distances.
    Throughput,
    /// Small messages that should not wait.
    Latency,
    /// Tens of thousands of tunnels, most of them idle.
    ManySessions,
}

/// One value of a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub key: String,
    pub wanted: String,
    pub meaning: Meaning,
    pub why: String,
    pub source: String,
    /// Not every machine has it, and it is not wanted where it is missing.
    pub is_optional: bool,
}

/// Condition under which a found value is as good as the wanted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Exactly,
    /// Each number is at least as large.
    AtLeast,
    /// The range contains the wanted range.
    Covers,
    /// The list contains every wanted item.
    Contains,
}

impl TuningProfile {
    pub const ALL: [Self; 3] = [Self::Throughput, Self::Latency, Self::ManySessions];

    const fn text(self) -> &'static str {
        match self {
            Self::Throughput => include_str!("../../../tuning/sysctl.d/sluicegate-throughput.conf"),
            Self::Latency => include_str!("../../../tuning/sysctl.d/sluicegate-latency.conf"),
            Self::ManySessions => include_str!("../../../tuning/sysctl.d/sluicegate-many-sessions.conf"),
        }
    }

    pub fn settings(self) -> Vec<Setting> {
        let lines = self.text().lines().enumerate();
        let settings = lines.filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        let all: Vec<&str> = self.text().lines().collect();
        settings.map(|(number, _)| Setting::at(&all, number).expect("a test reads every profile")).collect()
    }
}

/// Settings that all profiles share. Every node should have them.
pub(super) fn common() -> Vec<Setting> {
    let [first, rest @ ..] = TuningProfile::ALL;
    let others: Vec<Vec<Setting>> = rest.iter().map(|profile| profile.settings()).collect();
    let agreed = |setting: &Setting| others.iter().all(|other| other.contains(setting));
    first.settings().into_iter().filter(agreed).collect()
}

impl Setting {
    /// Parses the setting in line `number`. `None` where its two comment lines are malformed.
    fn at(lines: &[&str], number: usize) -> Option<Self> {
        let (key, wanted) = lines[number].split_once(" = ")?;
        let (meaning, why) = lines[number.checked_sub(2)?].strip_prefix("# ")?.split_once(": ")?;
        let source = lines[number - 1].strip_prefix("# Source: ")?;
        Some(Self {
            key: key.trim_start_matches('-').to_owned(),
            wanted: wanted.to_owned(),
            meaning: Meaning::named(meaning)?,
            why: why.to_owned(),
            source: source.to_owned(),
            is_optional: key.starts_with('-'),
        })
    }

    /// Compares the setting with `machine`. `None` where an optional setting is missing.
    pub fn check(&self, machine: &Machine) -> Option<MachineFinding> {
        let Some(found) = machine.sysctl(&self.key) else {
            return (!self.is_optional)
                .then(|| self.finding("not there".to_owned(), FindingVerdict::Unknown));
        };
        let found = found.split_whitespace().collect::<Vec<_>>().join(" ");
        let is_met = self.meaning.is_met(&found, &self.wanted);
        let shown = if found.is_empty() { "nothing".to_owned() } else { found };
        Some(self.finding(shown, FindingVerdict::unless(is_met, FindingVerdict::Advice)))
    }

    fn finding(&self, found: String, verdict: FindingVerdict) -> MachineFinding {
        let Self { key, wanted, why, source, .. } = self;
        MachineFinding {
            item: key.clone(),
            verdict,
            found,
            wanted: format!("{}{wanted}", self.meaning.prefix()),
            why: format!("{why} ({source})"),
            how: format!("sysctl -w {key}=\"{wanted}\", or install the profile below /etc/sysctl.d"),
        }
    }
}

impl Meaning {
    fn named(word: &str) -> Option<Self> {
        Some(match word {
            "Exactly" => Self::Exactly,
            "At least" => Self::AtLeast,
            "Covers" => Self::Covers,
            "Contains" => Self::Contains,
            _ => return None,
        })
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Exactly | Self::Covers => "",
            Self::AtLeast => "at least ",
            Self::Contains => "among them ",
        }
    }

    fn is_met(self, found: &str, wanted: &str) -> bool {
        match self {
            Self::Exactly => found == wanted,
            Self::AtLeast => {
                let (found, wanted) = (numbers(found), numbers(wanted));
                found.len() == wanted.len()
                    && found.iter().zip(&wanted).all(|(found, wanted)| found >= wanted)
            }
            Self::Covers => match (&numbers(found)[..], &numbers(wanted)[..]) {
                ([low, high], [low_wanted, high_wanted]) => low <= low_wanted && high >= high_wanted,
                _ => false,
            },
            Self::Contains => {
                let found: Vec<&str> = found.split(',').collect();
                wanted.split(',').all(|wanted| found.contains(&wanted))
            }
        }
    }
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_a_profile_has_a_reason_and_a_source() {
        for profile in TuningProfile::ALL {
            let lines: Vec<&str> = profile.text().lines().collect();
            for (number, line) in lines.iter().enumerate() {
                if !line.is_empty() && !line.starts_with('#') {
                    assert!(Setting::at(&lines, number).is_some(), "{profile:?}: {line}");
                }
            }
            assert!(profile.settings().len() > common().len(), "{profile:?}");
        }
    }

    #[test]
    fn a_value_can_be_better_than_wanted() {
        assert!(Meaning::AtLeast.is_met("4096 131072 67108864", "4096 131072 33554432"));
        assert!(!Meaning::AtLeast.is_met("4096 131072 6291456", "4096 131072 33554432"));
        assert!(Meaning::Covers.is_met("1000 65535", "1024 65535"));
        assert!(!Meaning::Covers.is_met("32768 60999", "1024 65535"));
        assert!(Meaning::Contains.is_met("22,3128,9128", "3128,9128"));
        assert!(!Meaning::Contains.is_met("13128,9128", "3128,9128"));
        assert!(!Meaning::Exactly.is_met("cubic", "bbr"));
        assert!(!Meaning::AtLeast.is_met("", "1"));
    }

    #[test]
    fn tuned_profiles_set_what_the_sysctl_profiles_do() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning/tuned");
        for profile in TuningProfile::ALL {
            let name = format!("sluicegate-{}", profile.to_possible_value().unwrap().get_name());
            let text = std::fs::read_to_string(folder.join(&name).join("tuned.conf")).unwrap();
            let section = text.split("[sysctl]\n").nth(1).unwrap().split("\n[").next().unwrap();
            let lines = section.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
            let found: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(" = ")).collect();
            let settings = profile.settings();
            let required = settings.iter().filter(|setting| !setting.is_optional);
            let wanted: Vec<_> = required.map(|each| (each.key.as_str(), each.wanted.as_str())).collect();
            assert_eq!(found, wanted, "{name}");
        }
    }
}
