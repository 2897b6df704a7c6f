//! `sluicegate usage`: who used how much of a running relay.

use std::time::Duration;

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::Loaded;
use super::admin_client::AdminClient;
use super::output::{AnswerTable, Cell, CommandAnswer, CommandError, OutputFormat, print, rfc3339};
use super::principal_names::PrincipalNames;
use super::watch::bytes;
use crate::admin::api::{UsageBy, UsageReport, UsageReportRow};
use crate::admin::routes;
use crate::authz::UnixMillis;
use crate::telemetry::UsageSums;

#[derive(Debug, Args)]
pub struct UsageArgs {
    /// Count from this time on: a duration back from now such as 12h or 7days, or a time such as 2030-01-31T12:00:00Z. The
    /// whole interval counts that it is in.
    #[arg(long, value_name = "TIME", default_value = "1day", value_parser = parse_since)]
    since: UnixMillis,
    /// Sum by this.
    #[arg(long, value_name = "WHAT", default_value = "principal")]
    by: GroupBy,
    /// Print CSV instead of text, with whole numbers.
    #[arg(long)]
    csv: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum GroupBy {
    Principal,
    Device,
    Credential,
}

impl From<GroupBy> for UsageBy {
    fn from(by: GroupBy) -> Self {
        match by {
            GroupBy::Principal => Self::Principal,
            GroupBy::Device => Self::Device,
            GroupBy::Credential => Self::Credential,
        }
    }
}

pub fn run(args: &UsageArgs, loaded: &Loaded, output: OutputFormat) -> Result<(), CommandError> {
    if args.csv && output == OutputFormat::Json {
        return Err(CommandError::Usage("--csv and --json exclude each other".to_owned()));
    }
    if loaded.config.usage.interval.is_zero() {
        eprintln!("usage.interval is 0s, so that nothing is counted now");
    }
    let relay = AdminClient::of(&loaded.config.admin)?;
    let names = PrincipalNames::read(&loaded.config);
    let mut report: UsageReport = relay.get(&routes::usage(args.since, args.by.into()))?.read()?;
    // The relay may not have read the names yet.
    for row in &mut report.rows {
        let name = row.principal.and_then(|id| names.name(id)).map(str::to_owned);
        row.principal_name = name.or(row.principal_name.take());
    }
    match output {
        OutputFormat::Json => {
            let json = serde_json::to_value(&report).map_err(CommandError::failed)?;
            print(&format!("{json:#}\n"))
        }
        OutputFormat::Text if args.csv => print(&csv(&report)),
        OutputFormat::Text => {
            eprintln!("from {} to {}", rfc3339(report.from), rfc3339(report.to));
            CommandAnswer::Table(table(&report)).print(output)
        }
    }
}

/// Parses a duration back from now, or an RFC 3339 time.
fn parse_since(text: &str) -> Result<UnixMillis, String> {
    if let Ok(span) = humantime::parse_duration(text) {
        let span_ms = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        return Ok(UnixMillis(UnixMillis::now().0.saturating_sub(span_ms).max(0)));
    }
    let parsed = text.parse::<Timestamp>();
    let at = parsed.map_err(|_| "use a duration such as 12h, or a time such as 2030-01-31T12:00:00Z")?;
    Ok(UnixMillis(at.as_millisecond().max(0)))
}

/// The columns that name a row, and their values.
fn naming(by: UsageBy) -> &'static [&'static str] {
    match by {
        UsageBy::Principal => &["principal", "name"],
        UsageBy::Device => &["device", "uuid"],
        UsageBy::Credential => &["principal", "name", "credential"],
    }
}

fn names_of(row: &UsageReportRow, by: UsageBy) -> Vec<Option<String>> {
    let number = |number: i64| number.to_string();
    let principal = row.principal.map(|principal| number(principal.0));
    let device = row.device.map(|device| number(device.0));
    match by {
        UsageBy::Principal => vec![principal, row.principal_name.clone()],
        UsageBy::Device => vec![device, row.uuid.map(|uuid| uuid.to_string())],
        UsageBy::Credential => {
            let credential = row.credential.map(|credential| credential.to_string());
            vec![principal, row.principal_name.clone(), credential]
        }
    }
}

/// The row of everything beyond the bounds, where there is any, by the name `others`.
fn others(report: &UsageReport) -> Option<(Vec<Option<String>>, UsageSums)> {
    let mut names = vec![None; naming(report.by).len()];
    names[0] = Some("others".to_owned());
    Some((names, report.others)).filter(|(_, sums)| !sums.is_nothing())
}

fn lines(report: &UsageReport) -> impl Iterator<Item = (Vec<Option<String>>, UsageSums)> {
    let rows = report.rows.iter().map(|row| (names_of(row, report.by), row.sums));
    rows.chain(others(report))
}

fn table(report: &UsageReport) -> AnswerTable {
    let mut total = vec![None; naming(report.by).len()];
    total[0] = Some("total".to_owned());
    let rows = lines(report).chain([(total, report.total)]).map(|(names, sums)| {
        let time = Duration::from_secs(sums.tunnel_ms / 1000);
        let figures = [
            Cell::from(bytes(sums.bytes_up)),
            Cell::from(bytes(sums.bytes_down)),
            Cell::from(sums.opened.to_string()),
            Cell::from(sums.open.to_string()),
            Cell::from(humantime::format_duration(time).to_string()),
        ];
        names.into_iter().map(Cell::from).chain(figures).collect()
    });
    let columns: &[&str] = match report.by {
        UsageBy::Principal => &["principal", "name", "up", "down", "opened", "open", "tunnel_time"],
        UsageBy::Device => &["device", "uuid", "up", "down", "opened", "open", "tunnel_time"],
        UsageBy::Credential => {
            &["principal", "name", "credential", "up", "down", "opened", "open", "tunnel_time"]
        }
    };
    AnswerTable { columns, rows: rows.collect() }
}

/// The rows as CSV (RFC 4180), without a total.
fn csv(report: &UsageReport) -> String {
    let mut text = naming(report.by).join(",");
    text.push_str(",bytes_up,bytes_down,opened,open,tunnel_ms\r\n");
    for (names, sums) in lines(report) {
        let UsageSums { bytes_up, bytes_down, opened, open, tunnel_ms } = sums;
        let names: Vec<String> = names.into_iter().map(|name| csv_field(&name.unwrap_or_default())).collect();
        text.push_str(&names.join(","));
        text.push_str(&format!(",{bytes_up},{bytes_down},{opened},{open},{tunnel_ms}\r\n"));
    }
    text
}

/// Quotes a value where it needs that. A name that a table would take for a formula gets an apostrophe.
fn csv_field(text: &str) -> String {
    let guarded = match text.chars().next() {
        Some('=' | '+' | '-' | '@') if text.parse::<i64>().is_err() => format!("'{text}"),
        _ => text.to_owned(),
    };
    match guarded.contains([',', '"', '\r', '\n']) {
        true => format!("\"{}\"", guarded.replace('"', "\"\"")),
        false => guarded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{CredentialId, PrincipalId};

    fn report(by: UsageBy) -> UsageReport {
        let sums = UsageSums { bytes_up: 1536, bytes_down: 7, opened: 2, open: 1, tunnel_ms: 61_000 };
        let row = UsageReportRow {
            principal: Some(PrincipalId(-4)),
            principal_name: Some("=a,\"b\"".to_owned()),
            credential: CredentialId::parse("00ff00ff00ff00ff"),
            device: None,
            uuid: None,
            sums,
        };
        let others = UsageSums { bytes_up: 1, ..UsageSums::default() };
        let total = UsageSums { bytes_up: 1537, ..sums };
        let (from, to) = (UnixMillis(0), UnixMillis(1000));
        UsageReport { by, from, to, intervals: 1, rows: vec![row], others, total }
    }

    #[test]
    fn csv_quotes_what_needs_it_and_has_no_total() {
        assert_eq!(
            csv(&report(UsageBy::Principal)),
            "principal,name,bytes_up,bytes_down,opened,open,tunnel_ms\r\n\
             -4,\"'=a,\"\"b\"\"\",1536,7,2,1,61000\r\n\
             others,,1,0,0,0,0\r\n"
        );
        let by_credential = csv(&report(UsageBy::Credential));
        assert!(by_credential.contains(",00ff00ff00ff00ff,1536,"), "{by_credential}");
    }

    #[test]
    fn the_table_ends_with_the_total() {
        let text = CommandAnswer::Table(table(&report(UsageBy::Principal))).rendered(OutputFormat::Text);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0], ["PRINCIPAL", "NAME", "UP", "DOWN", "OPENED", "OPEN", "TUNNEL", "TIME"]);
        assert_eq!(words[3], ["total", "-", "1.50", "KiB", "7", "B", "2", "1", "1m", "1s"]);
        assert_eq!(words.len(), 4);
    }

    #[test]
    fn since_is_a_span_back_or_a_time() {
        let now = UnixMillis::now().0;
        assert!((now - 3_600_100..=now - 3_600_000 + 1000).contains(&parse_since("1h").unwrap().0));
        assert_eq!(parse_since("2030-01-01T00:00:00Z"), Ok(UnixMillis(1_893_456_000_000)));
        assert!(parse_since("yesterday").unwrap_err().contains("such as 12h"));
    }
}
