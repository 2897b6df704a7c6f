//! Answers of `sluicegate authz` as text for people. Names stand in one column, what they are in the next.

use crate::admin::api::{
    Accepted, DiffCounts, DiffReport, DiffRow, Expectation, Group, HoldStatus, Publication, RelationStatus,
    RolledBack, SourceStatus,
};
use crate::cli::output::{AnswerTable, Cell, CommandAnswer, OutputFormat, rfc3339};

/// Lines of a name and a value. A line without a name goes on with the one above.
#[derive(Default)]
struct NamedLines(Vec<String>);

impl NamedLines {
    fn add(&mut self, name: &str, words: &str) {
        self.0.push(format!("{name:<NAME_WIDTH$}{words}").trim_end().to_owned());
    }

    /// Adds lines under one name.
    fn add_all(&mut self, name: &str, lines: impl IntoIterator<Item = String>) {
        for (place, line) in lines.into_iter().enumerate() {
            self.add(if place == 0 { name } else { "" }, &line);
        }
    }

    fn finish(self) -> String {
        self.0.join("\n")
    }
}

pub(super) fn status(status: &SourceStatus) -> String {
    let SourceStatus { store, last_error, holds, expectations, relations, state_unsaved, figures } = status;
    let mut lines = NamedLines::default();
    match figures.generation {
        Some(generation) => lines.add("in force", &format!("generation {}", generation.0)),
        None => lines.add("in force", "nothing, so nothing can be decided"),
    }
    let rows = figures.rows;
    lines.add(
        "",
        &format!("{} credentials, {} grants, {} devices", rows.credentials, rows.grants, rows.devices),
    );
    lines.add("store", &format!("{store}, last heard {}", rfc3339(figures.confirmed_at)));
    if let Some(error) = last_error {
        lines.add("", &format!("CANNOT BE READ: {error}"));
    }
    lines.add_all("relations", relations.iter().map(relation));
    if let Some(reason) = state_unsaved {
        lines.add("state", &format!("NOT SAVED: {reason}"));
        lines.add("", "a restart would begin with an older state; mend the folder `authz.state`");
    }
    match holds.len() {
        0 => lines.add("guard", "holds nothing: what the store says is in force"),
        1 => lines.add("guard", "HOLDS 1 group of changes; everything else takes effect"),
        many => lines.add("guard", &format!("HOLDS {many} groups of changes; everything else takes effect")),
    }
    for (count, text) in [
        (
            figures.disputed_devices as u64,
            "devices are disputed: clients get 503 until it is clear whose their address is",
        ),
        (figures.quarantined as u64, "rows do not decode; their last good versions are in force"),
        (
            figures.absences_waiting as u64,
            "rows were absent from one read, and stay until a second confirms it",
        ),
        (figures.regressions, "refusals so far that the previous generation would not have given"),
        (figures.rollbacks, "rollbacks so far"),
    ] {
        if count > 0 {
            lines.add("", &format!("{count} {text}"));
        }
    }
    lines.add_all("expected", expectations.iter().map(expectation));
    lines.add_all("warnings", figures.warnings.iter().cloned());
    let mut parts = vec![lines.finish()];
    parts.extend(holds.iter().map(hold));
    parts.join("\n\n")
}

fn relation(status: &RelationStatus) -> String {
    let RelationStatus { relation, rows, read_at, error, errors } = status;
    let read = read_at.map_or_else(|| "never read".to_owned(), |at| format!("read {}", rfc3339(at)));
    let failed = if *errors > 0 { format!(", {errors} reads failed") } else { String::new() };
    let error = error.as_ref().map(|error| format!("; CANNOT BE READ: {error}")).unwrap_or_default();
    format!("{relation:<11} {rows} rows, {read}{failed}{error}")
}

fn expectation(expected: &Expectation) -> String {
    let Expectation { relation, kind, rows, used, until } = expected;
    format!("{relation}.{kind}: {used} of {rows} rows so far, until {}", rfc3339(*until))
}

fn hold(held: &HoldStatus) -> String {
    let mut lines = NamedLines::default();
    lines.add("held", &format!("{}, by rule {}", held.subject(), held.rule));
    lines.add("since", &rfc3339(held.since));
    lines.add("rows", &held.rows.to_string());
    lines.add("why", &held.figures);
    if !held.examples.is_empty() {
        lines.add("such as", &held.examples.join(", "));
    }
    lines.add("to do", &held.advice);
    lines.finish()
}

pub(super) fn diff(report: &DiffReport) -> String {
    if report.holds.is_empty() && report.rows.is_empty() {
        return "nothing is held: what the store says is in force".to_owned();
    }
    let mut lines = changes(report);
    let digest = &report.digest;
    lines.push(String::new());
    lines.push(format!("digest {digest}"));
    lines.push(format!("to publish all of it:  sluicegate authz accept {digest}"));
    let mut groups: Vec<Group> = report.holds.iter().filter_map(|held| held.group).collect();
    groups.sort_unstable();
    groups.dedup();
    if groups.len() > 1 {
        let accept =
            |group: &Group| format!("to publish one group:  sluicegate authz accept {digest} {group}");
        lines.extend(groups.iter().map(accept));
    }
    lines.join("\n")
}

/// What other queries would change, and the guard's verdict.
pub(super) fn comparison(report: &DiffReport) -> String {
    let mut lines = changes(report);
    if report.holds.is_empty() {
        lines.push("guard: would let them pass".to_owned());
    }
    for held in &report.holds {
        lines.push(format!("guard: would HOLD {} by rule {}", held.subject(), held.rule));
        lines.push(format!("  {}", held.figures));
        lines.extend(held.examples.iter().map(|example| format!("  such as {example}")));
    }
    lines.join("\n")
}

fn changes(report: &DiffReport) -> Vec<String> {
    let mut lines = Vec::new();
    for (relation, DiffCounts { gone, new, changed }) in report.by_relation() {
        lines.push(format!("{relation:<11} {gone} gone, {new} new, {changed} changed"));
    }
    if report.devices_unlocated > 0 {
        lines.push(format!("{:<11} {} could no longer be dialled", "", report.devices_unlocated));
    }
    let mut rows: Vec<&DiffRow> = report.rows.iter().collect();
    rows.sort_by_key(|row| row.group);
    let mut group_before = None;
    for DiffRow { relation, row, group, before, after } in rows {
        if *group != group_before {
            group_before = *group;
            lines.extend(group.map(|group| format!("{group}:")));
        }
        let name = format!("{relation} {row}");
        lines.push(match (before, after) {
            (Some(before), Some(after)) => format!("~ {name}: {before} -> {after}"),
            (Some(before), None) => format!("- {name}: {before}"),
            (None, after) => format!("+ {name}: {}", after.as_deref().unwrap_or_default()),
        });
    }
    let total: usize = report.by_relation().iter().map(|(_, counts)| counts.total()).sum();
    let unlisted = total.saturating_sub(report.rows.len());
    if unlisted > 0 {
        lines.push(format!("and {unlisted} more"));
    }
    lines
}

pub(super) fn accepted(accepted: &Accepted) -> String {
    let Accepted { groups, rows, generation } = accepted;
    format!("published {rows} changed rows{} as generation {}", named(groups), generation.0)
}

/// ` of grants.absent and devices.moved`, or nothing.
fn named(groups: &[Group]) -> String {
    if groups.is_empty() {
        return String::new();
    }
    format!(" of {}", groups.iter().map(Group::to_string).collect::<Vec<_>>().join(" and "))
}

pub(super) fn expected(expected: &Expectation) -> String {
    let Expectation { relation, kind, rows, until, .. } = expected;
    format!("{rows} rows of {relation}.{kind} may change beyond the budget until {}", rfc3339(*until))
}

pub(super) fn cleared(cleared: &Expectation) -> String {
    let Expectation { relation, kind, rows, used, .. } = cleared;
    format!("{relation}.{kind} is expected no more; {used} of {rows} rows had changed")
}

pub(super) fn history(publications: &[Publication]) -> String {
    if publications.is_empty() {
        return "nothing has been published yet".to_owned();
    }
    let row = |publication: &Publication| {
        let Publication { generation, at, by, changes, can_be_undone } = publication;
        let changes: Vec<String> = changes.iter().map(|(group, rows)| format!("{rows} {group}")).collect();
        let generation = i64::try_from(generation.0).unwrap_or(i64::MAX);
        vec![
            Cell::Number(generation),
            Cell::Time(*at),
            Cell::Text(by.clone()),
            Cell::Truth(*can_be_undone),
            if changes.is_empty() { Cell::Empty } else { Cell::Text(changes.join(", ")) },
        ]
    };
    let columns = &["generation", "at", "by", "can_be_undone", "changes"];
    let table = AnswerTable { columns, rows: publications.iter().map(row).collect() };
    CommandAnswer::Table(table).rendered(OutputFormat::Text).trim_end().to_owned()
}

pub(super) fn rolled_back(done: &RolledBack) -> String {
    let RolledBack { from, to, in_force, rows } = done;
    format!(
        "went back from generation {} to {}, which is in force as generation {}; {rows} rows changed\n\
         what was undone is held until `sluicegate authz accept`; what the store recorded as ended stays ended",
        from.0, to.0, in_force.0
    )
}

/// Width of the column of names.
const NAME_WIDTH: usize = 11;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn held() -> serde_json::Value {
        json!([
            { "rule": "budget", "group": "grants.absent", "rows": 30,
              "figures": "30 of 40 grants are absent; 4 may be within 10m", "examples": ["grants 4", "grants 5"],
              "since": 1_700_000_000_000i64, "advice": "mend the query, or accept what `authz diff` lists" },
            { "rule": "contract", "relation": "devices", "rows": 0, "figures": "the query has no column node",
              "examples": [], "since": 1_700_000_000_000i64, "advice": "mend the query" },
        ])
    }

    fn source(holds: serde_json::Value) -> SourceStatus {
        serde_json::from_value(json!({
            "store": "sqlite:store.db", "last_error": null, "holds": holds,
            "expectations": [{ "relation": "credentials", "kind": "ended", "rows": 300, "used": 12, "until": 1_700_000_900_000i64 }],
            "relations": [
                { "relation": "grants", "rows": 40, "read_at": 1_700_000_000_000i64, "error": null, "errors": 0 },
                { "relation": "devices", "rows": 0, "read_at": null, "error": "no column node", "errors": 3 },
            ],
            "state_unsaved": "no space left on the device",
            "generation": 7, "rows": { "credentials": 5, "grants": 40, "devices": 40 },
            "confirmed_at": 1_700_000_000_000i64, "holds_by_rule": {}, "budgets": [], "disputed_devices": 2,
            "quarantined": 0, "absences_waiting": 0, "absences_honoured": 0, "on_probation": false,
            "regressions": 0, "rollbacks": 0, "rights_not_understood": 0, "warnings": [],
        }))
        .unwrap()
    }

    #[test]
    fn the_status_names_each_held_group_with_its_reason_and_what_to_do() {
        let expected = "\
in force   generation 7
           5 credentials, 40 grants, 40 devices
store      sqlite:store.db, last heard 2023-11-14T22:13:20Z
relations  grants      40 rows, read 2023-11-14T22:13:20Z
           devices     0 rows, never read, 3 reads failed; CANNOT BE READ: no column node
state      NOT SAVED: no space left on the device
           a restart would begin with an older state; mend the folder `authz.state`
guard      HOLDS 2 groups of changes; everything else takes effect
           2 devices are disputed: clients get 503 until it is clear whose their address is
expected   credentials.ended: 12 of 300 rows so far, until 2023-11-14T22:28:20Z

held       grants.absent, by rule budget
since      2023-11-14T22:13:20Z
rows       30
why        30 of 40 grants are absent; 4 may be within 10m
such as    grants 4, grants 5
to do      mend the query, or accept what `authz diff` lists

held       devices, by rule contract
since      2023-11-14T22:13:20Z
rows       0
why        the query has no column node
to do      mend the query";
        assert_eq!(status(&source(held())), expected);
        assert!(status(&source(json!([]))).contains("guard      holds nothing"));
    }

    fn report(holds: serde_json::Value) -> DiffReport {
        serde_json::from_value(json!({
            "digest": "0123abcd", "holds": holds,
            "credentials": { "gone": 0, "new": 0, "changed": 0 }, "grants": { "gone": 2, "new": 0, "changed": 0 },
            "devices": { "gone": 0, "new": 0, "changed": 1 }, "devices_unlocated": 0,
            "rows": [
                { "relation": "devices", "row": "3", "group": "devices.moved", "before": "a", "after": "b" },
                { "relation": "grants", "row": "4", "group": "grants.absent", "before": "principal 1", "after": null },
            ],
        }))
        .unwrap()
    }

    #[test]
    fn a_diff_ends_in_the_lines_that_accept_it() {
        let holds = json!([
            held()[0],
            { "rule": "address", "group": "devices.moved", "rows": 1, "figures": "", "examples": [], "since": 0, "advice": "" },
        ]);
        let expected = "\
credentials 0 gone, 0 new, 0 changed
grants      2 gone, 0 new, 0 changed
devices     0 gone, 0 new, 1 changed
grants.absent:
- grants 4: principal 1
devices.moved:
~ devices 3: a -> b
and 1 more

digest 0123abcd
to publish all of it:  sluicegate authz accept 0123abcd
to publish one group:  sluicegate authz accept 0123abcd grants.absent
to publish one group:  sluicegate authz accept 0123abcd devices.moved";
        assert_eq!(diff(&report(holds)), expected);
        assert_eq!(diff(&DiffReport::default()), "nothing is held: what the store says is in force");
    }

    #[test]
    fn a_comparison_names_what_would_be_held_and_offers_nothing_to_accept() {
        let text = comparison(&report(held()));
        assert!(text.contains("guard: would HOLD grants.absent by rule budget\n  30 of 40"), "{text}");
        assert!(text.contains("guard: would HOLD devices by rule contract"), "{text}");
        assert!(!text.contains("accept"), "{text}");
        assert!(comparison(&report(json!([]))).ends_with("guard: would let them pass"));
    }

    #[test]
    fn the_history_is_a_table_of_publications() {
        let publications: Vec<Publication> = serde_json::from_value(json!([
            { "generation": 8, "at": 1_700_000_000_000i64, "by": "read", "can_be_undone": true,
              "changes": [["grants.gained", 3], ["devices.moved", 1]] },
            { "generation": 7, "at": 1_700_000_000_000i64, "by": "start", "can_be_undone": false, "changes": [] },
        ]))
        .unwrap();
        let expected = "\
GENERATION  AT                    BY     CAN BE UNDONE  CHANGES
8           2023-11-14T22:13:20Z  read   yes            3 grants.gained, 1 devices.moved
7           2023-11-14T22:13:20Z  start  no             -";
        assert_eq!(history(&publications), expected);
    }
}
