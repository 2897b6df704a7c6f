//! `[authz.guard]`: the limits that a read of the store must keep before it is published.

use std::time::Duration;

use serde::Deserialize;

use super::Budgets;

/// The section `[authz.guard]`. An ordinary installation stays within every default on an ordinary day.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuardConfig {
    /// `false` publishes every answer that decodes. Meant for tests that show which answers the guard catches.
    pub enabled: bool,
    /// Time over which the changes of a group are counted against its budget.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    /// What becomes of a mass of ends that exceeds its budget.
    pub prefer: Preference,
    pub budgets: Budgets,
    /// Least and greatest number of rows of each relation.
    pub bounds: Bounds,
    /// Canaries that must be permitted, as `principal:7 UUID:22` or `credential:0123456789abcdef UUID:22`. The
    /// device's location does not matter; a principal needs no live credential.
    pub must_allow: Vec<Canary>,
    /// Canaries that must not be permitted.
    pub must_refuse: Vec<Canary>,
    /// Uuids of devices that must be online and have an address.
    pub must_locate: Vec<CanaryUuid>,
    /// The port at which the guard probes devices that go offline in a mass, before it believes that. A device that refuses the connection is reachable too.
    pub probe_port: u16,
    /// Time that a probe waits for an answer.
    #[serde(with = "humantime_serde")]
    pub probe_time: Duration,
    /// Time after a publication in which refusals are also decided by the generation before; 0 turns it off.
    #[serde(with = "humantime_serde")]
    pub probation: Duration,
    pub max_regressions: Regressions,
    pub on_regression: OnRegression,
}

/// A limit as a share and as a number of rows. A count exceeds it where it is above both.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowance {
    /// Share of all rows concerned, from 0 to 1.
    pub share: f64,
    pub rows: usize,
}

/// What a mass of ends does that exceeds its budget: rows revoked, deleted, expired or narrowed. Everything else that
/// exceeds its budget is held in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preference {
    /// It is held: a wrong query locks nobody out, and a true mass revocation waits for an operator.
    #[default]
    Availability,
    /// It takes effect: a true mass revocation waits for nobody, and a wrong query locks clients out until it is mended.
    Security,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bounds {
    pub credentials: Bound,
    pub grants: Bound,
    pub devices: Bound,
}

/// A range of counts, both ends included. `None` stands for no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bound {
    pub min: Option<usize>,
    pub max: Option<usize>,
}

/// A query whose decision is known in advance. It holds no secret: it names a credential by its id in `token list`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Canary {
    pub who: CanaryHolder,
    pub device: CanaryUuid,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CanaryHolder {
    /// The number of a principal, as `principal list` shows it.
    Principal(i64),
    /// The id of a credential, as `token list` shows it.
    Credential([u8; 8]),
}

/// A device's uuid of 32 or 62 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct CanaryUuid(pub String);

/// Keys of `[authz.guard]` in earlier versions, and what to set instead of each.
pub(super) const FORMER_KEYS: [(&str, &str); 7] = [
    ("max_bad_rows", "set `budgets.undecodable`"),
    ("max_loss", "set `budgets.absent`, `budgets.ended` and `budgets.narrowed`"),
    ("max_dangling", "set `budgets.gained` and `budgets.reassigned`"),
    ("max_outside", "set `budgets.moved`"),
    ("max_unlocated", "set `budgets.unlocated`"),
    ("replay", "remove it; `budgets` bound what clients lose, and `max_regressions` what they notice"),
    (
        "max_replay_failures",
        "remove it; `budgets` bound what clients lose, and `max_regressions` what they notice",
    ),
];

/// The limits on regressions: refusals that the generation before would have allowed, without a revocation or expiry
/// that explains them. Several principals must be affected, so that one client cannot restore a right by repeated
/// requests.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Regressions {
    /// Number of distinct pairs of a principal and a device that is too many.
    pub pairs: usize,
    /// Number of principals that must be affected, for either limit.
    pub principals: usize,
    /// Share of all decisions within ten seconds that is too much.
    pub share: f64,
    /// Number of regressions from which `share` counts.
    pub decisions: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnRegression {
    /// Publish the generation before again, with revocations on top, and hold the rejected one.
    Rollback,
    /// Log it, and leave the generation in force.
    Alarm,
}

impl Allowance {
    /// True where `count` of `total` rows are more than allowed.
    pub fn is_exceeded_by(&self, count: usize, total: usize) -> bool {
        count > self.rows && count as f64 > self.share * total as f64
    }
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            window: Duration::from_secs(600),
            prefer: Preference::Availability,
            budgets: Budgets::default(),
            bounds: Bounds::default(),
            must_allow: Vec::new(),
            must_refuse: Vec::new(),
            must_locate: Vec::new(),
            // The host's SSH server on balenaOS.
            probe_port: 22222,
            probe_time: Duration::from_secs(1),
            probation: Duration::from_secs(600),
            max_regressions: Regressions::default(),
            on_regression: OnRegression::Rollback,
        }
    }
}

impl Default for Regressions {
    fn default() -> Self {
        Self { pairs: 5, principals: 3, share: 0.05, decisions: 20 }
    }
}

impl TryFrom<String> for Canary {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parsed = || {
            let (who, target) = text.split_once(char::is_whitespace)?;
            let (uuid, port) = target.trim().rsplit_once(':')?;
            let who = match who.split_once(':')? {
                ("principal", id) => CanaryHolder::Principal(id.parse().ok()?),
                ("credential", id) => {
                    let mut bytes = [0; 8];
                    hex::decode_to_slice(id, &mut bytes).ok()?;
                    CanaryHolder::Credential(bytes)
                }
                _ => return None,
            };
            let device = CanaryUuid::try_from(uuid.to_owned()).ok()?;
            Some(Self { who, device, port: port.parse().ok().filter(|port| *port > 0)? })
        };
        parsed().ok_or_else(|| {
            format!(
                "`{text}` is not a canary; write `principal:NUMBER UUID:PORT` or `credential:ID UUID:PORT`"
            )
        })
    }
}

impl TryFrom<String> for CanaryUuid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_uuid = matches!(text.len(), 32 | 62) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_uuid {
            Ok(Self(text))
        } else {
            Err(format!("`{text}` is not a device's uuid, which has 32 or 62 hexadecimal digits"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "00112233445566778899aabbccddeeff";

    fn canary(text: &str) -> Result<Canary, String> {
        Canary::try_from(text.to_owned())
    }

    #[test]
    fn a_canary_names_a_principal_by_its_number_or_a_credential_by_its_id() {
        let device = CanaryUuid(UUID.to_owned());
        let principal = canary(&format!("principal:7 {UUID}:22")).unwrap();
        assert_eq!(principal, Canary { who: CanaryHolder::Principal(7), device: device.clone(), port: 22 });
        let credential = canary(&format!("credential:00000000000000ff {UUID}:80")).unwrap();
        let who = CanaryHolder::Credential([0, 0, 0, 0, 0, 0, 0, 255]);
        assert_eq!(credential, Canary { who, device, port: 80 });
    }

    #[test]
    fn a_text_that_is_no_canary_is_refused_with_the_right_form() {
        for text in ["", "7", "principal:x u:22", &format!("principal:7 {UUID}"), &format!("alice {UUID}:22")]
        {
            let refusal = canary(text).unwrap_err();
            assert!(refusal.contains("principal:NUMBER UUID:PORT"), "{refusal}");
        }
        assert!(canary(&format!("principal:7 {UUID}:0")).is_err(), "nobody can dial port 0");
    }

    #[test]
    fn an_allowance_is_exceeded_only_above_both_of_its_ends() {
        let allowance = Allowance { share: 0.01, rows: 20 };
        let exceeded = |count, total| allowance.is_exceeded_by(count, total);
        assert!(!exceeded(20, 100) && exceeded(21, 100));
        assert!(!exceeded(100, 10_000) && exceeded(101, 10_000));
    }
}
