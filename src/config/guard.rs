//! `authz.guard`: what stands between a read of the store and its publication, key by key.

use std::time::Duration;

use serde::Deserialize;

/// Every default is one that an ordinary day of an ordinary installation stays within.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guard {
    /// `false` publishes whatever decodes. There to prove that the guard is what catches a bad answer.
    pub enabled: bool,
    /// Rows that may fail to decode. Their last good versions stay in force, also within the allowance.
    pub max_bad_rows: Allowance,
    /// How many rows each relation may have at all.
    pub bounds: Bounds,
    /// `principal:7 UUID:22` or `credential:0123456789abcdef UUID:22`: this must be permitted. Where the
    /// device is does not matter, and for a principal neither does whether a credential of it is live.
    pub must_allow: Vec<Canary>,
    /// The same, and must not be permitted.
    pub must_refuse: Vec<Canary>,
    /// Uuids of devices that must be online and have an address.
    pub must_locate: Vec<CanaryUuid>,
    /// Rows of a relation that may vanish in one read with no revocation. An answer that empties a relation
    /// or loses half of it holds in any case.
    pub max_loss: Allowance,
    /// Grants that may turn to naming a principal or a target that is not there, in one read.
    pub max_dangling: Allowance,
    /// Devices whose addresses may turn to lying outside `vpn.allow`, in one read.
    pub max_outside: Allowance,
    /// Devices that may go offline in one read before the network is asked whether it is so.
    pub max_unlocated: Allowance,
    /// The port that is tried then. A refusal is an answer as well.
    pub probe_port: u16,
    /// How long the network has for its answer.
    #[serde(with = "humantime_serde")]
    pub probe_time: Duration,
    /// Decisions that are remembered, to be put to every candidate; 0 turns the rule off.
    pub replay: usize,
    /// Share of them that a candidate may refuse with no revocation.
    pub max_replay_failures: f64,
    /// How long after a publication its refusals are put to the generation before as well; 0 turns it off.
    #[serde(with = "humantime_serde")]
    pub probation: Duration,
    pub max_regressions: Regressions,
    pub on_regression: OnRegression,
}

/// Exceeded by a number that is above both.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowance {
    /// Of all rows that it is about, from 0 to 1.
    pub share: f64,
    pub rows: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bounds {
    pub credentials: Bound,
    pub grants: Bound,
    pub devices: Bound,
}

/// Both ends included; an absent one bounds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bound {
    pub min: Option<usize>,
    pub max: Option<usize>,
}

/// A question whose answer is known. Holds no secret: a credential is named by what `token list` calls it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Canary {
    pub who: CanaryHolder,
    pub device: CanaryUuid,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CanaryHolder {
    /// By its number, as `principal list` shows it.
    Principal(i64),
    /// By its id, as `token list` shows it.
    Credential([u8; 8]),
}

/// 32 or 62 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct CanaryUuid(pub String);

/// Regressions are refusals that the generation before would have allowed, with no revocation or expiry to
/// explain them. Several principals are asked for, so that nobody brings a right back by knocking.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Regressions {
    /// Distinct pairs of a principal and a device that are too many.
    pub pairs: usize,
    /// From so many principals at least, for either limit.
    pub principals: usize,
    /// Share of all decisions within ten seconds that is too much.
    pub share: f64,
    /// From so many regressions on.
    pub decisions: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnRegression {
    /// Go back to the generation before, with revocations on top, and hold what was rejected.
    Rollback,
    /// Tell, and leave it in force.
    Alarm,
}

impl Allowance {
    /// Whether `count` of `total` rows are more than may be.
    pub fn is_exceeded_by(&self, count: usize, total: usize) -> bool {
        count > self.rows && count as f64 > self.share * total as f64
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            enabled: true,
            max_bad_rows: Allowance { share: 0.0001, rows: 10 },
            bounds: Bounds::default(),
            must_allow: Vec::new(),
            must_refuse: Vec::new(),
            must_locate: Vec::new(),
            max_loss: Allowance { share: 0.01, rows: 20 },
            max_dangling: Allowance { share: 0.01, rows: 20 },
            max_outside: Allowance { share: 0.01, rows: 20 },
            max_unlocated: Allowance { share: 0.1, rows: 2 },
            // The host's SSH server on balenaOS.
            probe_port: 22222,
            probe_time: Duration::from_secs(1),
            replay: 100_000,
            max_replay_failures: 0.001,
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
            format!("`{text}` is no canary; write `principal:NUMBER UUID:PORT` or `credential:ID UUID:PORT`")
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
            Err(format!("`{text}` is no device's uuid; those have 32 or 62 hexadecimal digits"))
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
    fn a_canary_names_who_by_a_number_or_by_a_credentials_id() {
        let device = CanaryUuid(UUID.to_owned());
        let principal = canary(&format!("principal:7 {UUID}:22")).unwrap();
        assert_eq!(principal, Canary { who: CanaryHolder::Principal(7), device: device.clone(), port: 22 });
        let credential = canary(&format!("credential:00000000000000ff {UUID}:80")).unwrap();
        let who = CanaryHolder::Credential([0, 0, 0, 0, 0, 0, 0, 255]);
        assert_eq!(credential, Canary { who, device, port: 80 });
    }

    #[test]
    fn what_is_no_canary_is_told_with_how_to_write_one() {
        for text in ["", "7", "principal:x u:22", &format!("principal:7 {UUID}"), &format!("alice {UUID}:22")]
        {
            let told = canary(text).unwrap_err();
            assert!(told.contains("principal:NUMBER UUID:PORT"), "{told}");
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
