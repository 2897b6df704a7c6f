//! Reports the age of the certificates that this node shows: in `/metrics`, in the text of `/readyz`, and in the log.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use axum::http::StatusCode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Sources;
use crate::engine::EngineHandle;
use crate::wire::{CertificateState, ShownCertificate};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CertificateLabels {
    key: String,
    name: String,
}

pub(super) fn encode(encoder: &mut DescriptorEncoder, engine: &EngineHandle) -> Result<(), fmt::Error> {
    let (certificates, now) = (engine.certificates(), SystemTime::now());
    let mut gauge = |name, help, value: &dyn Fn(&ShownCertificate) -> f64| {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for shown in &certificates {
            let labels = CertificateLabels { key: shown.key.clone(), name: shown.name.clone() };
            ConstGauge::new(value(shown)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    };
    let help = "Time until the certificate, or one that is shown with it, ends; negative once it has.";
    gauge("certificate_remaining_seconds", help, &|shown| shown.seconds_left(now))?;
    let help = "Time from the begin of the certificate's validity to its end.";
    gauge("certificate_lifetime_seconds", help, &|shown| shown.lifetime().as_secs_f64())?;
    let help = "Time until the certificate is valid; 0 once it is.";
    gauge("certificate_not_yet_valid_seconds", help, &|shown| shown.seconds_to_begin(now))
}

/// Adds to an answer of `/readyz` what is wrong with certificates. If no client could connect because of them, the node
/// is not ready.
pub(super) fn amend_readiness(
    (status, mut text): (StatusCode, String),
    engine: &EngineHandle,
) -> (StatusCode, String) {
    let now = SystemTime::now();
    for shown in engine.certificates() {
        if let Some(problem) = shown.problem(now) {
            text.push_str(&format!("{}: the certificate of {} {problem}\n", shown.key, shown.name));
        }
    }
    if engine.has_usable_listener(now) {
        return (status, text);
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("no listener has a valid certificate\n{text}"))
}

/// Logs certificates that end soon, have ended or are not valid yet: at once, when that changes, and once a day.
pub(super) async fn watch(sources: Sources) -> std::convert::Infallible {
    let mut logged = CertificateLog::default();
    loop {
        for (state, line) in logged.due(&sources.engine.certificates(), SystemTime::now(), Instant::now()) {
            match state {
                CertificateState::Expired | CertificateState::NotYetValid => tracing::error!("{line}"),
                CertificateState::EndsSoon | CertificateState::Valid => tracing::warn!("{line}"),
            }
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// States that were logged, with the time of the last line.
#[derive(Default)]
struct CertificateLog(HashMap<ShownCertificate, (CertificateState, Instant)>);

impl CertificateLog {
    /// The lines that are to be logged now. Certificates that are no longer shown are forgotten.
    fn due(
        &mut self,
        shown: &[ShownCertificate],
        now: SystemTime,
        instant: Instant,
    ) -> Vec<(CertificateState, String)> {
        self.0.retain(|known, _| shown.contains(known));
        let mut lines = Vec::new();
        for each in shown {
            let state = each.state(now);
            let is_known = self.0.get(each).is_some_and(|(known, at)| {
                *known == state && instant.saturating_duration_since(*at) < REPEAT_EVERY
            });
            if is_known {
                continue;
            }
            let is_new = self.0.insert(each.clone(), (state, instant)).is_none();
            lines.extend(each.warning(now).map(|line| (state, line)));
            let order = each.order_warning().filter(|_| is_new);
            lines.extend(order.map(|line| (CertificateState::Valid, line)));
        }
        lines
    }
}

/// Time between two looks. Certificates that a reload has brought are noticed by it too.
const WATCH_EVERY: Duration = Duration::from_secs(30);

const REPEAT_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(valid_until: SystemTime) -> ShownCertificate {
        ShownCertificate {
            key: "forward.tls".to_owned(),
            file: "/etc/node.crt".into(),
            name: "node-a".to_owned(),
            valid_from: SystemTime::UNIX_EPOCH,
            valid_until,
            gap: None,
        }
    }

    #[test]
    fn a_certificate_is_logged_when_its_state_changes_and_once_a_day() {
        let day = Duration::from_secs(24 * 60 * 60);
        let (begin, instant) = (SystemTime::now(), Instant::now());
        let certificate = [shown(begin + 15 * day)];
        let mut log = CertificateLog::default();
        let mut lines = |days: u32| log.due(&certificate, begin + day * days, instant + day * days);
        assert!(lines(0).is_empty());
        let soon = lines(2);
        assert!(soon[0].1.contains("ends in 13 days"), "{soon:?}");
        assert!(lines(2).is_empty(), "it was logged a moment ago");
        assert_eq!(lines(3).len(), 1, "a day has passed");
        let ended = lines(16);
        assert_eq!(ended[0].0, CertificateState::Expired);
        assert!(ended[0].1.contains("has expired on"), "{ended:?}");
        assert!(log.due(&[], begin, instant).is_empty() && log.0.is_empty());
    }
}
