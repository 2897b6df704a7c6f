//! The answer to `sluicegate usage`: records summed by principal, credential or device.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::record::UsageRecord;
use crate::authz::{CredentialId, DeviceId, DeviceUuid, PrincipalId, UnixMillis};
use crate::telemetry::{UsageKey, UsageRow, UsageSums};

/// The part of a key that a report sums by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UsageBy {
    Principal,
    Device,
    Credential,
}

/// The use since a time, the most first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UsageReport {
    pub by: UsageBy,
    /// Beginning of the oldest interval in it.
    pub from: UnixMillis,
    pub to: UnixMillis,
    /// Intervals in it in which something was used, with the one under way.
    pub intervals: usize,
    pub rows: Vec<UsageReportRow>,
    /// What was beyond the bound on keys of an interval, or of this report.
    pub others: UsageSums,
    pub total: UsageSums,
}

/// One row of a report. What it does not sum by is `None`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UsageReportRow {
    pub principal: Option<PrincipalId>,
    pub principal_name: Option<String>,
    /// `None` in a report by credential: session tokens of that principal.
    pub credential: Option<CredentialId>,
    pub device: Option<DeviceId>,
    pub uuid: Option<DeviceUuid>,
    #[serde(flatten)]
    pub sums: UsageSums,
}

/// Adds up records.
pub(super) struct ReportBuilder {
    by: UsageBy,
    from: UnixMillis,
    intervals: usize,
    groups: HashMap<ReportGroup, (Option<DeviceUuid>, UsageSums)>,
    others: UsageSums,
}

/// The part of a key that rows are summed by.
#[derive(PartialEq, Eq, Hash)]
enum ReportGroup {
    Principal(PrincipalId),
    Device(DeviceId),
    Credential(PrincipalId, Option<CredentialId>),
}

impl ReportGroup {
    fn of(key: &UsageKey, by: UsageBy) -> Self {
        match by {
            UsageBy::Principal => Self::Principal(key.principal),
            UsageBy::Device => Self::Device(key.device),
            UsageBy::Credential => Self::Credential(key.principal, key.credential),
        }
    }
}

impl UsageBy {
    pub const ALL: [Self; 3] = [Self::Principal, Self::Device, Self::Credential];

    pub const fn word(self) -> &'static str {
        match self {
            Self::Principal => "principal",
            Self::Device => "device",
            Self::Credential => "credential",
        }
    }
}

impl ReportBuilder {
    pub fn new(since: UnixMillis, by: UsageBy) -> Self {
        Self { by, from: since, intervals: 0, groups: HashMap::new(), others: UsageSums::default() }
    }

    /// Adds a past interval. Tunnels that were open then may not be any more.
    pub fn add(&mut self, record: &UsageRecord) {
        self.add_with(record, |sums| UsageSums { open: 0, ..sums });
    }

    /// Adds the interval under way.
    pub fn finish(mut self, present: &UsageRecord) -> UsageReport {
        self.add_with(present, |sums| sums);
        let Self { by, from, intervals, groups, others } = self;
        let mut total = others;
        let mut rows: Vec<UsageReportRow> = groups
            .into_iter()
            .map(|(group, (uuid, sums))| {
                total.add(&sums);
                let (principal, credential, device) = match group {
                    ReportGroup::Principal(principal) => (Some(principal), None, None),
                    ReportGroup::Device(device) => (None, None, Some(device)),
                    ReportGroup::Credential(principal, credential) => (Some(principal), credential, None),
                };
                UsageReportRow { principal, principal_name: None, credential, device, uuid, sums }
            })
            .collect();
        rows.sort_by_key(|row| {
            let bytes = row.sums.bytes_up.saturating_add(row.sums.bytes_down);
            (Reverse((bytes, row.sums.tunnel_ms)), row.principal, row.credential, row.device)
        });
        UsageReport { by, from, to: present.to, intervals, rows, others, total }
    }

    fn add_with(&mut self, record: &UsageRecord, sums_of: impl Fn(UsageSums) -> UsageSums) {
        self.from = if self.intervals == 0 { record.from } else { self.from.min(record.from) };
        self.intervals += 1;
        for row in record.table.rows() {
            self.add_row(&row, &sums_of(row.sums));
        }
        self.others.add(&sums_of(record.table.others()));
    }

    fn add_row(&mut self, row: &UsageRow, sums: &UsageSums) {
        let group = ReportGroup::of(&row.key, self.by);
        let has_room = self.groups.len() < REPORT_ROWS_MAX;
        match self.groups.get_mut(&group) {
            Some((_, known)) => known.add(sums),
            None if has_room => {
                let uuid = row.uuid.filter(|_| self.by == UsageBy::Device);
                self.groups.insert(group, (uuid, *sums));
            }
            None => self.others.add(sums),
        }
    }
}

/// Rows of a report; what is beyond them is summed in `others`. Some 15 MiB of JSON.
pub const REPORT_ROWS_MAX: usize = 50_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::record::tests::record;

    fn report(by: UsageBy, devices: i64) -> UsageReport {
        let mut builder = ReportBuilder::new(UnixMillis(0), by);
        builder.add(&record(1_000, 2_000, devices, 10));
        builder.add(&record(2_000, 3_000, devices, 5));
        builder.finish(&record(3_000, 3_500, 1, 1))
    }

    #[test]
    fn a_report_sums_by_what_was_asked_for_and_its_total_is_the_same() {
        let counts = UsageBy::ALL.map(|by| {
            let report = report(by, 4);
            assert_eq!((report.from.0, report.to.0, report.intervals), (1_000, 3_500, 3));
            assert_eq!((report.total.bytes_up, report.total.bytes_down), (4 * 15 + 1, 9));
            report.rows.len()
        });
        assert_eq!(counts, [2, 4, 2]);
        let by_device = report(UsageBy::Device, 4);
        assert_eq!(by_device.rows[0].device, Some(DeviceId(0)), "the most first");
        assert!(by_device.rows.iter().all(|row| row.uuid.is_some() && row.principal.is_none()));
    }

    #[test]
    fn what_is_beyond_the_bound_of_a_report_is_in_its_total() {
        let mut builder = ReportBuilder::new(UnixMillis(0), UsageBy::Device);
        let sums = UsageSums { bytes_up: 1, ..UsageSums::default() };
        for device in 0..REPORT_ROWS_MAX as i64 + 5 {
            let key = UsageKey { principal: PrincipalId(1), credential: None, device: DeviceId(device) };
            builder.add_row(&UsageRow { key, uuid: None, sums }, &sums);
        }
        let report = builder.finish(&record(0, 1, 0, 0));
        assert_eq!((report.rows.len(), report.others.bytes_up), (REPORT_ROWS_MAX, 5));
        assert_eq!(report.total.bytes_up, REPORT_ROWS_MAX as u64 + 5);
    }
}
