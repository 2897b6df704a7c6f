//! Says in plain words what the parser of a configuration says, with an example of the key as it is written.

use super::guard::FORMER_KEYS;
use super::reference;

/// The parser's message about `key` in one line. It has what was found, what is allowed, and an example, and never the
/// name of a type of ours. `written` is the value as it stands in the file.
pub(super) fn plain(message: &str, key: Option<&str>, written: Option<&str>) -> String {
    if message.starts_with("unknown field") {
        return unknown_key(message, key);
    }
    let (problem, is_own) = match translated(message, written) {
        Some(problem) => (problem, false),
        None => (message.replace('\n', ", "), message.contains('`')),
    };
    // Messages of our own types already say what to write.
    let key = key.filter(|_| !is_own);
    let example = match message.strip_prefix(MISSING) {
        Some(field) => {
            let section = key.map(|key| format!("{key}.")).unwrap_or_default();
            reference::example_of(&format!("{section}{}", field.trim_matches('`')))
        }
        None => key.and_then(reference::example_of),
    };
    match example {
        Some(example) => format!("{problem}; for example `{example}`"),
        None => problem,
    }
}

/// The words for a message of serde; `None` where it is a message of a value's own type.
fn translated(message: &str, written: Option<&str>) -> Option<String> {
    for kind in ["invalid type: ", "invalid value: "] {
        if let Some((found, expected)) =
            message.strip_prefix(kind).and_then(|rest| rest.split_once(", expected "))
        {
            return Some(format!(
                "{} stands here, and it must be {}",
                found_words(found),
                expected_words(expected)
            ));
        }
    }
    if let Some(expected) = message.strip_prefix("wanted ") {
        let written = written.unwrap_or("another value");
        return Some(format!("{written} stands here, and it must be {}", expected_words(expected)));
    }
    if let Some((found, known)) =
        message.strip_prefix("unknown variant ").and_then(|rest| rest.split_once(", expected "))
    {
        let known = known.strip_prefix("one of ").unwrap_or(known);
        return Some(format!("{found} is not one of the values that it may have: {known}"));
    }
    if let Some(field) = message.strip_prefix(MISSING) {
        return Some(format!("the key {field} is missing here"));
    }
    if message.starts_with("invalid length") {
        return Some("a list stands here, and it must be a table with keys".to_owned());
    }
    // Only values that are no secrets, such as the URL of a store, have these messages.
    for (theirs, ours) in VALUE_MESSAGES {
        if message == format!("invalid {theirs} syntax") {
            let written = written.unwrap_or("another value");
            return Some(format!("{written} stands here, and it must be {ours}"));
        }
    }
    None
}

/// What was found, in the words of the file.
fn found_words(found: &str) -> String {
    if let Some(text) = found.strip_prefix("string ") {
        return format!("the text {text}");
    }
    match found {
        "map" => "a table".to_owned(),
        "sequence" => "a list".to_owned(),
        _ => match found.split_once('`') {
            Some((_, value)) => value.trim_end_matches('`').to_owned(),
            None => found.to_owned(),
        },
    }
}

/// What is allowed, in the words of the file.
fn expected_words(expected: &str) -> String {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number that is not negative".to_owned(),
        "i32" | "i64" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "`true` or `false`".to_owned(),
        "a sequence" => "a list in `[` and `]`".to_owned(),
        "a string" | "path string" | "string or table" | "a borrowed string" => "a text in quotes".to_owned(),
        "a duration" => DURATION.to_owned(),
        "a map" => A_TABLE.to_owned(),
        _ if expected.starts_with("struct ") => A_TABLE.to_owned(),
        _ if expected.starts_with("enum ") => "a text in quotes".to_owned(),
        _ => VALUE_MESSAGES
            .iter()
            .find(|(theirs, _)| expected.contains(theirs))
            .map_or_else(|| expected.to_owned(), |(_, ours)| (*ours).to_owned()),
    }
}

/// The message about a key that no section has, with the nearest one that it has.
fn unknown_key(message: &str, key: Option<&str>) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(unknown) = quoted.next() else { return message.to_owned() };
    let name = key.and_then(|key| key.strip_prefix(GUARD));
    if let Some((former, instead)) = FORMER_KEYS.iter().find(|(former, _)| name == Some(former)) {
        return format!("`{former}` is a key of earlier versions; {instead}");
    }
    let nearest =
        quoted.max_by(|a, b| strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b)));
    match nearest {
        Some(nearest) => format!("unknown key `{unknown}`; the nearest known key is `{nearest}`"),
        None => format!("unknown key `{unknown}`"),
    }
}

const MISSING: &str = "missing field ";

/// Section of the guard, as keys in it begin.
const GUARD: &str = "authz.guard.";

const A_TABLE: &str = "a table of keys in `{` and `}`, or a section";

const DURATION: &str = "a time in quotes, a number with its unit (`us`, `ms`, `s`, `m`, `h`, `days`)";

const NETWORK: &str = "a network in quotes, an address with the length of its prefix";

/// The names that messages give to values with a syntax of their own, and what each wants.
const VALUE_MESSAGES: &[(&str, &str)] = &[
    ("socket address", "an address with a port in quotes; an IPv6 address stands in `[` and `]`"),
    ("network address", NETWORK),
    ("IP address", NETWORK),
];
