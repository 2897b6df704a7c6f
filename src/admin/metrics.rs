//! `/metrics`: collects its parts, and encodes the state of the control thread.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::openmetrics::{counter, gauge};
use super::process::ProcessCollector;
use super::{Sources, certificates, engine_metrics, guard, label_counts, nodes, self_probe, token_keys};
use crate::authz::UnixMillis;
use crate::store::StoreWarnings;

/// A format of `/metrics`. Both have the same samples.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    /// OpenMetrics 1.0: a counter's HELP and TYPE name it without `_total`.
    OpenMetrics,
    /// The text format before it, 0.0.4: they name it as its samples do.
    PlainText,
}

impl Format {
    /// Chooses the format from the value of a header `Accept`. A program that does not ask for OpenMetrics by name may
    /// not know it.
    pub fn accepted_by(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::PlainText }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::PlainText => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

pub(super) fn render(sources: Sources, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("sluicegate");
    registry.register_collector(Box::new(MetricsCollector { sources }));
    let mut process = Registry::default();
    process.register_collector(Box::new(ProcessCollector));
    let mut text = String::new();
    encode_registry(&mut text, &registry)?;
    encode_registry(&mut text, &process)?;
    match format {
        Format::OpenMetrics => {
            encode_eof(&mut text)?;
            Ok(text)
        }
        Format::PlainText => Ok(plain_text(&text)),
    }
}

/// Rewrites OpenMetrics as the format 0.0.4: units have no line, and the two lines in front of a counter name its
/// samples.
fn plain_text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut lines = openmetrics.lines().filter(|line| !line.starts_with("# UNIT ")).peekable();
    while let Some(line) = lines.next() {
        let is_counter = |line: &str| line.starts_with("# TYPE ") && line.ends_with(" counter");
        let of_counter = is_counter(line) || lines.peek().is_some_and(|next| is_counter(next));
        match line.strip_prefix("# ").filter(|_| of_counter).and_then(|rest| {
            let (keyword, rest) = rest.split_once(' ')?;
            let (name, rest) = rest.split_once(' ')?;
            Some(format!("# {keyword} {name}_total {rest}\n"))
        }) {
            Some(renamed) => text.push_str(&renamed),
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

#[derive(Debug)]
struct MetricsCollector {
    sources: Sources,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RelationLabel {
    relation: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BuildLabel {
    version: &'static str,
}

impl Collector for MetricsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        self.encode_build(&mut encoder)?;
        self.encode_reloads(&mut encoder)?;
        engine_metrics::encode_counts(&mut encoder, &self.sources)?;
        label_counts::encode(&mut encoder, &self.sources.engine)?;
        self_probe::encode(&mut encoder, &self.sources.probe.get())?;
        engine_metrics::encode_traffic(&mut encoder, &self.sources.engine)?;
        nodes::encode(&mut encoder, &self.sources)?;
        certificates::encode(&mut encoder, &self.sources.engine)?;
        token_keys::encode(&mut encoder, &self.sources.engine)?;
        self.encode_snapshot(&mut encoder)?;
        self.encode_usage(&mut encoder)?;
        guard::encode(&mut encoder, &self.sources.control.get())
    }
}

impl MetricsCollector {
    fn encode_build(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let metric = ConstGauge::new(1i64);
        let mut family = encoder.encode_descriptor(
            "build_info",
            "Version of the running relay.",
            None,
            metric.metric_type(),
        )?;
        let label = BuildLabel { version: crate::VERSION };
        metric.encode(family.encode_family(&label)?)
    }

    fn encode_reloads(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let status = self.sources.requests.status();
        let successful = i64::from(status.last.is_none_or(|last| last.error.is_none()));
        let help = "1 if the last reload of the configuration was taken over, and before the first reload.";
        gauge(encoder, "config_last_reload_successful", help, successful)?;
        let help = "Time of the last reload that was taken over, or of the start.";
        let metric = ConstGauge::new(status.in_force_since.0 as f64 / 1000.0);
        let name = "config_last_reload_success_timestamp_seconds";
        metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
    }

    fn encode_usage(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let usage = &self.sources.usage;
        let help = "Rows of the last record of use: principals with their credentials and devices.";
        gauge(encoder, "usage_rows", help, usage.keys() as i64)?;
        let help = "Times that a record of use could not be written to the state folder.";
        counter(encoder, "usage_write_errors", help, usage.write_errors())
    }

    fn encode_snapshot(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let status = self.sources.control.get();
        let age_ms = UnixMillis::now().0.saturating_sub(status.confirmed_at.0).max(0);
        let generation = status.generation.map_or(0, |generation| generation.0) as i64;
        let other = self.sources.other.sessions() as i64;
        gauge(
            encoder,
            "sessions_old_process",
            "Sessions that the process before an upgrade still has.",
            other,
        )?;
        gauge(encoder, "snapshot_generation", "Number of the snapshot in force, 0 for none.", generation)?;
        let metric = ConstGauge::new(age_ms as f64 / 1000.0);
        let help = "Time since the store last confirmed the snapshot in force.";
        let descriptor =
            encoder.encode_descriptor("snapshot_age_seconds", help, None, metric.metric_type())?;
        metric.encode(descriptor)?;
        let reachable = i64::from(status.last_error.is_none());
        gauge(encoder, "store_reachable", "1 if the last read of the store succeeded.", reachable)?;
        counter(encoder, "store_errors", "Reads of the store that failed.", status.store_errors)?;
        let quarantined = status.quarantined as i64;
        gauge(encoder, "store_quarantined_rows", "Rows that do not decode now.", quarantined)?;
        let StoreWarnings { not_understood, bad_lines, stale_addresses } = &status.warnings;
        let help = "Permissions of a foreign schema that are not understood and grant nothing.";
        gauge(encoder, "store_rights_not_understood", help, not_understood.count as i64)?;
        let help = "Lines of vpn.addresses sources that give no address.";
        gauge(encoder, "vpn_addresses_bad_lines", help, bad_lines.count as i64)?;
        let help =
            "Sources of vpn.addresses that cannot be read now, and whose last addresses stay in force.";
        gauge(encoder, "vpn_addresses_stale_files", help, stale_addresses.len() as i64)?;
        let help = "Rows in the snapshot in force.";
        let mut family = encoder.encode_descriptor("snapshot_rows", help, None, MetricType::Gauge)?;
        for (relation, rows) in [
            ("credentials", status.rows.credentials),
            ("grants", status.rows.grants),
            ("devices", status.rows.devices),
        ] {
            let metric = ConstGauge::new(rows as i64);
            metric.encode(family.encode_family(&RelationLabel { relation })?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_plain_text_a_counter_is_named_as_its_samples_are() {
        let openmetrics = "# HELP a Help of a.\n# TYPE a counter\na_total 1\n# HELP b_seconds Help.\n\
             # TYPE b_seconds histogram\n# UNIT b_seconds seconds\nb_seconds_sum 1.0\n";
        assert_eq!(
            plain_text(openmetrics),
            "# HELP a_total Help of a.\n# TYPE a_total counter\na_total 1\n# HELP b_seconds Help.\n\
             # TYPE b_seconds histogram\nb_seconds_sum 1.0\n"
        );
    }

    #[test]
    fn openmetrics_is_for_programs_that_ask_for_it() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::accepted_by(prometheus), Format::OpenMetrics);
        assert_eq!(Format::accepted_by("*/*"), Format::PlainText);
    }
}
