//! Conditions of this node that somebody should act on now: the alerts of monitoring/alerts.yml, as far as one look can tell.
//!
//! The status page and `sluicegate status` show them, so that a person without Prometheus sees the same, and one with it
//! finds the reason that a metric cannot carry. Alerts that compare two times (rates, yesterday) are Prometheus's alone.

use std::time::{Duration, SystemTime};

use super::Sources;
use super::api::{Condition, ProbeStatus, STATE_ERROR, STORE_ERROR};
use super::process::Descriptors;
use super::token_keys;
use crate::authz::UnixMillis;
use crate::config::KeyPlace;
use crate::control::ControlStatus;
use crate::control::api::HoldStatus;
use crate::wire::{CertificateState, KeySetState, ShownCertificate};

/// The reader of the conditions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Audience {
    Operator,
    /// Gets fixed texts in place of those that name hosts, files or rows.
    Outsider,
}

impl Sources {
    /// The conditions now; those of decisions first.
    pub(super) fn conditions(&self, audience: Audience) -> Vec<Condition> {
        let mut found = Conditions { audience, list: Vec::new() };
        found.of_decisions(&self.control.get());
        found.of_probes(&self.probe.get());
        let active = self.engine.sessions_active().saturating_add(self.other.sessions());
        found.of_room(active, self.engine.sessions_max().into(), Descriptors::now());
        for shown in self.engine.certificates() {
            found.of_certificate(&shown, SystemTime::now());
        }
        for set in self.engine.key_sets().all() {
            found.of_token_keys(&set.source().place, &set.state(), UnixMillis::now());
        }
        if let Some(error) = self.requests.status().last.and_then(|last| last.error) {
            let text =
                found.secret(|| format!("the configuration was refused: {}", error.replace('\n', "; ")));
            found.add("SluicegateReloadRefused", text.unwrap_or_else(|| CONFIG_ERROR.to_owned()));
        }
        found.list
    }
}

struct Conditions {
    audience: Audience,
    list: Vec<Condition>,
}

impl Conditions {
    fn add(&mut self, alert: &str, text: String) {
        self.list.push(Condition { alert: alert.to_owned(), text });
    }

    /// The text for an operator. `None` for an outsider.
    fn secret(&self, text: impl FnOnce() -> String) -> Option<String> {
        (self.audience == Audience::Operator).then(text)
    }

    fn of_decisions(&mut self, status: &ControlStatus) {
        for hold in &status.held {
            let HoldStatus { rule, rows, figures, .. } = hold;
            let figures = self.secret(|| format!(": {figures}")).unwrap_or_default();
            let subject = hold.subject();
            self.add(
                "SluicegateHold",
                format!("{subject} is held by rule {}, {rows} rows{figures}", rule.name()),
            );
        }
        if status.disputed_devices > 0 {
            let devices = status.disputed_devices;
            self.add(
                "SluicegateDisputed",
                format!("{devices} devices are not dialled: it is not clear whose their address is"),
            );
        }
        if let Some(reason) = &status.state_unsaved {
            let text = self.secret(|| format!("the state folder cannot be written: {reason}"));
            self.add("SluicegateStateUnsaved", text.unwrap_or_else(|| STATE_ERROR.to_owned()));
        }
        if let Some(error) = &status.last_error {
            let text = self.secret(|| format!("the store cannot be read: {error}"));
            self.add("SluicegateNoRefresh", text.unwrap_or_else(|| STORE_ERROR.to_owned()));
        }
        for relation in &status.relations {
            let Some(error) = &relation.error else { continue };
            let error = self.secret(|| format!(": {error}")).unwrap_or_default();
            self.add("SluicegateRelationErrors", format!("{} cannot be read{error}", relation.relation));
        }
        let age_ms = UnixMillis::now().0.saturating_sub(status.confirmed_at.0).max(0) as u64;
        if status.generation.is_some() && Duration::from_millis(age_ms) > SNAPSHOT_OLD {
            let age = humantime::format_duration(Duration::from_secs(age_ms / 1000));
            self.add(
                "SluicegateStaleSnapshot",
                format!("the store last confirmed what is in force {age} ago"),
            );
        }
        if status.quarantined > 0 {
            let rows = status.quarantined;
            self.add(
                "SluicegateQuarantine",
                format!("{rows} rows do not decode; their last good versions are in force"),
            );
        }
        for reason in &status.warnings.stale_addresses {
            let text = self.secret(|| reason.clone());
            self.add("SluicegateVpnSource", text.unwrap_or_else(|| VPN_ERROR.to_owned()));
        }
    }

    fn of_probes(&mut self, status: &ProbeStatus) {
        for (alert, path) in [("SluicegateProbe", &status.local), ("SluicegateNodeProbe", &status.forwarded)]
        {
            let Some(failure) = path.last.as_ref().and_then(|last| last.failure.as_ref()) else { continue };
            let text = self.secret(|| format!("the probe fails: {failure}"));
            self.add(alert, text.unwrap_or_else(|| "the probe fails".to_owned()));
        }
    }

    fn of_room(&mut self, active: u64, max: u64, descriptors: Option<Descriptors>) {
        if FULL.is_reached(active, max) {
            self.add("SluicegateFull", format!("{active} of {max} sessions exist: new clients get 429"));
        } else if NEARLY_FULL.is_exceeded(active, max) {
            self.add("SluicegateNearlyFull", format!("{active} of {max} sessions exist"));
        }
        if let Some(Descriptors { open, max }) = descriptors
            && NEARLY_FULL.is_exceeded(open, max)
        {
            self.add("SluicegateDescriptorsLow", format!("{open} of {max} file descriptors are open"));
        }
    }

    fn of_token_keys(&mut self, place: &KeyPlace, state: &KeySetState, now: UnixMillis) {
        let Some(error) = &state.error else { return };
        let in_force = token_keys::in_force(state, now);
        let text = self.secret(|| {
            format!("the keys of session tokens cannot be read, and {in_force}: {place}: {error}")
        });
        let text =
            text.unwrap_or_else(|| format!("the keys of session tokens cannot be read, and {in_force}"));
        self.add("SluicegateTokenKeys", text);
    }

    fn of_certificate(&mut self, shown: &ShownCertificate, now: SystemTime) {
        let Some(problem) = shown.problem(now) else { return };
        let alert = match shown.state(now) {
            CertificateState::Expired | CertificateState::NotYetValid => "SluicegateCertificateInvalid",
            CertificateState::EndsSoon | CertificateState::Valid => "SluicegateCertificateEnds",
        };
        self.add(alert, format!("{}: the certificate of {} {problem}", shown.key, shown.name));
    }
}

/// A share in percent.
#[derive(Clone, Copy)]
struct Share(u64);

impl Share {
    fn is_reached(self, count: u64, max: u64) -> bool {
        count.saturating_mul(100) >= max.saturating_mul(self.0)
    }

    fn is_exceeded(self, count: u64, max: u64) -> bool {
        count.saturating_mul(100) > max.saturating_mul(self.0)
    }
}

/// Share of `limits.sessions` from which a node counts as full. Sessions come and go while clients are refused, so it
/// is not all of it.
const FULL: Share = Share(98);

/// Share above which sessions or descriptors run short.
const NEARLY_FULL: Share = Share(80);

/// Age of the snapshot from which it is old, where `authz.max_stale` leaves a day.
const SNAPSHOT_OLD: Duration = Duration::from_secs(60 * 60);

const CONFIG_ERROR: &str = "the configuration was refused at the last reload";

const VPN_ERROR: &str = "a source in vpn.addresses gives no newer addresses";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::{ProbePathStatus, ProbeResult};
    use crate::authz::Generation;
    use crate::config::HttpsUrl;
    use crate::control::api::{RelationStatus, Rule};
    use crate::store::StoreWarnings;

    /// Everything that can be wrong at once.
    fn all(audience: Audience) -> Vec<Condition> {
        let failed = || ProbePathStatus {
            last: Some(ProbeResult {
                at: UnixMillis(0),
                took_us: 1,
                failure: Some("secret reply".to_owned()),
            }),
            succeeded: 0,
            failed: 1,
        };
        let hold = HoldStatus {
            rule: Rule::Budget,
            group: Some("grants.absent".parse().unwrap()),
            relation: None,
            rows: 30,
            figures: "secret figures".to_owned(),
            examples: Vec::new(),
            since: UnixMillis(0),
            advice: String::new(),
        };
        let relation = RelationStatus {
            relation: "devices".to_owned(),
            error: Some("secret error".to_owned()),
            ..RelationStatus::default()
        };
        let mut found = Conditions { audience, list: Vec::new() };
        found.of_decisions(&ControlStatus {
            generation: Some(Generation(1)),
            held: vec![hold],
            disputed_devices: 2,
            state_unsaved: Some("secret file".to_owned()),
            last_error: Some("secret host".to_owned()),
            relations: vec![relation],
            quarantined: 1,
            warnings: StoreWarnings {
                stale_addresses: vec!["secret source".to_owned()],
                ..Default::default()
            },
            ..ControlStatus::default()
        });
        found.of_probes(&ProbeStatus { local: failed(), forwarded: failed() });
        found.of_room(98, 100, Some(Descriptors { open: 81, max: 100 }));
        found.of_room(81, 100, None);
        let shown = ShownCertificate {
            key: "forward.tls".to_owned(),
            file: "/secret".into(),
            name: "node-a".to_owned(),
            valid_from: SystemTime::UNIX_EPOCH,
            valid_until: SystemTime::UNIX_EPOCH + Duration::from_secs(1000),
            gap: None,
        };
        let keys = KeySetState { keys: 2, read_at_ms: Some(1000), error: Some("secret host".to_owned()) };
        let place = KeyPlace::Url(HttpsUrl::parse("https://secret.example/").unwrap());
        found.of_token_keys(&place, &keys, UnixMillis(61_000));
        found.of_certificate(&shown, SystemTime::UNIX_EPOCH + Duration::from_secs(900));
        found.of_certificate(&shown, SystemTime::UNIX_EPOCH + Duration::from_secs(1001));
        found.list
    }

    #[test]
    fn each_condition_has_the_name_of_an_alert_and_once() {
        let rules = include_str!("../../monitoring/alerts.yml");
        let found = all(Audience::Operator);
        assert_eq!(found.len(), 16, "{found:?}");
        for Condition { alert, text } in &found {
            assert!(rules.contains(&format!("- alert: {alert}\n")), "{alert}");
            assert_eq!(found.iter().filter(|other| other.alert == *alert).count(), 1, "{alert}: {text}");
        }
    }

    #[test]
    fn outsiders_get_the_same_conditions_and_no_names() {
        let (operators, outsiders) = (all(Audience::Operator), all(Audience::Outsider));
        let alerts = |list: &[Condition]| list.iter().map(|each| each.alert.clone()).collect::<Vec<_>>();
        assert_eq!(alerts(&operators), alerts(&outsiders));
        assert_eq!(operators.iter().filter(|each| each.text.contains("secret")).count(), 8);
        assert!(outsiders.iter().all(|each| !each.text.contains("secret")), "{outsiders:?}");
    }

    #[test]
    fn a_node_with_room_has_no_condition() {
        let mut found = Conditions { audience: Audience::Operator, list: Vec::new() };
        found.of_room(80, 100, Some(Descriptors { open: 80, max: 100 }));
        found.of_room(0, 1, None);
        found.of_decisions(&ControlStatus { confirmed_at: UnixMillis::now(), ..ControlStatus::default() });
        found.of_probes(&ProbeStatus::default());
        let place = KeyPlace::Url(HttpsUrl::parse("https://login.example/").unwrap());
        found.of_token_keys(&place, &KeySetState::default(), UnixMillis(0));
        assert!(found.list.is_empty(), "{:?}", found.list);
    }
}
