//! The table of docs/faults.md.

use std::collections::BTreeMap;
use std::path::Path;

use super::outcome::{End, Outcome};

/// A table of calls, errors, and what happens at each moment.
pub fn of_outcomes(outcomes: &[Outcome]) -> String {
    let mut rows: BTreeMap<(&str, String), BTreeMap<String, String>> = BTreeMap::new();
    for outcome in outcomes {
        let case = &outcome.case;
        let row = rows.entry((case.call.name, format!("{:?}", case.error))).or_default();
        row.insert(format!("{:?}", case.moment), words(outcome));
    }
    let mut table = "| call | error | at start | first second | one call later | every call for 0.5 s |\n|---|---|---|---|---|---|\n".to_owned();
    for ((call, error), moments) in rows {
        let cell = |moment: &str| moments.get(moment).map_or("", String::as_str);
        table += &format!(
            "| `{call}` | {error} | {} | {} | {} | {} |\n",
            cell("Start"),
            cell("FirstSecond"),
            cell("Once"),
            cell("Burst")
        );
    }
    table
}

fn words(outcome: &Outcome) -> String {
    let mut parts = Vec::new();
    match &outcome.end {
        _ if outcome.failed_calls == 0 => return "not made".to_owned(),
        End::Ended(message) => parts.push(format!("ends: {}", shortened(message))),
        End::Serves => {}
    }
    match outcome.tunnels_ended {
        0 => {}
        1 => parts.push("one tunnel ends".to_owned()),
        count => parts.push(format!("{count} tunnels end")),
    }
    let refused: Vec<&str> =
        outcome.replies.iter().map(String::as_str).filter(|reply| *reply != "200").collect();
    if !refused.is_empty() {
        parts.push(format!("new tunnels: {}", refused.join(", ")));
    }
    if let Some(line) = outcome.log.first() {
        parts.push(format!("log: {}", shortened(line)));
    }
    if !outcome.broken.is_empty() {
        parts.push(format!("**{}**", shortened(&outcome.broken.join("; "))));
    }
    if parts.is_empty() { "goes on".to_owned() } else { parts.join("; ") }
}

fn shortened(text: &str) -> String {
    let text = text.replace('|', "/");
    let mut short: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Puts `table` into the page between its marks.
pub fn put_into_page(page: &Path, table: &str) -> std::io::Result<()> {
    let text = std::fs::read_to_string(page)?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) =
        parts.ok_or_else(|| std::io::Error::other("the page has no marks for the table"))?;
    std::fs::write(page, format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

const BEGIN: &str = "<!-- table: `make faults` writes it -->";
const END: &str = "<!-- end of the table -->";

const SHOWN_CHARS_MAX: usize = 110;
