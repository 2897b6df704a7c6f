//! The annotated reference configuration, `docs/reference.toml`: every key with its meaning, default and example.
//!
//! The examples in errors and the manual page `sluicegate.toml(5)` are made from it.

use std::sync::LazyLock;

/// A section of the reference, or the list that a section is an element of.
pub struct ReferenceSection {
    /// The header as it is written, such as `[store]` or `[[listen]]`.
    pub header: &'static str,
    pub meaning: String,
    pub keys: Vec<ReferenceKey>,
}

/// A key of the reference.
pub struct ReferenceKey {
    pub name: &'static str,
    pub meaning: String,
    /// The default, or the example of a key without a default, as it is written.
    pub value: &'static str,
    pub has_default: bool,
}

impl ReferenceSection {
    /// The dotted name of the section.
    pub fn name(&self) -> &'static str {
        self.header.trim_matches(['[', ']'])
    }
}

/// The text of the reference.
pub const REFERENCE: &str = include_str!("../../docs/reference.toml");

/// All sections in the order of the reference.
pub fn sections() -> &'static [ReferenceSection] {
    static SECTIONS: LazyLock<Vec<ReferenceSection>> = LazyLock::new(parse);
    &SECTIONS
}

/// An example of the dotted `key`, or of the nearest key or section that contains it, as it is written. Places in lists
/// are left out of the search.
pub(super) fn example_of(key: &str) -> Option<String> {
    let names: Vec<&str> = key.split('.').filter(|name| name.parse::<usize>().is_err()).collect();
    (1..=names.len()).rev().find_map(|count| example(&names[..count].join(".")))
}

fn example(key: &str) -> Option<String> {
    let of_section = |section: &ReferenceSection| {
        let known = section.keys.iter().find(|each| key == format!("{}.{}", section.name(), each.name))?;
        Some(format!("{} = {}", known.name, known.value))
    };
    sections().iter().find_map(of_section).or_else(|| {
        let section = sections().iter().find(|section| section.name() == key)?;
        let first = section.keys.first()?;
        Some(format!("{} with {} = {}", section.header, first.name, first.value))
    })
}

fn parse() -> Vec<ReferenceSection> {
    let mut sections: Vec<ReferenceSection> = Vec::new();
    let mut meaning = String::new();
    for line in REFERENCE.lines() {
        if let Some(words) = line.strip_prefix("# ") {
            if !meaning.is_empty() {
                meaning.push(' ');
            }
            meaning.push_str(words);
            continue;
        }
        let (written, has_default) = match line.strip_prefix('#') {
            Some(written) => (written, false),
            None => (line, true),
        };
        let meaning = std::mem::take(&mut meaning);
        if written.starts_with('[') {
            sections.push(ReferenceSection { header: written, meaning, keys: Vec::new() });
        } else if let (Some((name, value)), Some(section)) = (written.split_once(" = "), sections.last_mut())
        {
            section.keys.push(ReferenceKey { name, meaning, value, has_default });
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use toml::{Table, Value};

    use super::*;
    use crate::config::Config;

    /// One part of a dotted key, and whether its value is a list.
    type Step = (String, bool);

    /// The keys below `path`, which the parser names where it finds one that is unknown; empty below a plain value.
    fn keys_below(path: &[Step]) -> Vec<String> {
        let unknown = Value::Table(Table::from_iter([("no_such_key".to_owned(), Value::Integer(0))]));
        let text = path.iter().rev().fold(unknown, |inner, (name, is_list)| {
            let value = if *is_list { Value::Array(vec![inner]) } else { inner };
            Value::Table(Table::from_iter([(name.clone(), value)]))
        });
        let message = text.try_into::<Config>().unwrap_err().message().to_owned();
        let known = message.strip_prefix("unknown field `no_such_key`, expected ");
        known.map_or(Vec::new(), |known| known.split('`').skip(1).step_by(2).map(str::to_owned).collect())
    }

    /// Adds every dotted key below `path` that has no keys below it.
    fn collect(path: &[Step], found: &mut Vec<String>) {
        for key in keys_below(path) {
            let count = found.len();
            for is_list in [false, true] {
                collect(&[path, &[(key.clone(), is_list)]].concat(), found);
                if found.len() > count {
                    // A section would be read from a list of its values as well.
                    break;
                }
            }
            if found.len() == count {
                let names = path.iter().map(|(name, _)| name.as_str()).chain([key.as_str()]);
                found.push(names.collect::<Vec<_>>().join("."));
            }
        }
    }

    fn all_keys() -> Vec<String> {
        let mut found = Vec::new();
        collect(&[], &mut found);
        found
    }

    #[test]
    fn every_key_of_the_configuration_is_in_the_reference_and_no_other() {
        let keys = all_keys();
        assert!(keys.len() > 90 && keys.contains(&"forward.tls.ca".to_owned()), "{keys:?}");
        let written = |key: &str| example(key).is_some();
        // A table in one line shows its keys: `budgets.gained = { rows = …, share = … }`.
        let is_shown = |key: &str| {
            key.rsplit_once('.').is_some_and(|(table, name)| {
                example(table).is_some_and(|line| line.contains(&format!("{name} = ")))
            })
        };
        let missing: Vec<_> = keys.iter().filter(|key| !written(key) && !is_shown(key)).collect();
        assert!(missing.is_empty(), "docs/reference.toml lacks {missing:?}");
        for section in sections() {
            for key in &section.keys {
                let name = format!("{}.{}", section.name(), key.name);
                let is_known =
                    keys.iter().any(|known| *known == name || known.starts_with(&format!("{name}.")));
                assert!(is_known, "there is no key {name}");
                assert!(!key.meaning.is_empty(), "{name} has no explanation");
            }
        }
    }

    #[test]
    fn every_key_of_the_configuration_is_in_the_table_of_the_readme() {
        let readme = include_str!("../../README.md");
        let rows: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("| `")).collect();
        for key in all_keys() {
            let mut names = key.split('.');
            let (section, name) = (names.next().unwrap(), names.next().unwrap());
            let is_named = rows.iter().filter_map(|row| row.split(" | ").next()).any(|cell| {
                let exact = cell.contains(&format!("{section}.{name}"));
                let short = cell.starts_with(&format!("{section}.")) && cell.contains(&format!("`.{name}`"));
                exact
                    || short
                    || cell.starts_with(&format!("{section}.*"))
                    || cell.starts_with(&format!("{section}`"))
            });
            assert!(is_named, "README.md's table lacks {section}.{name}");
        }
    }

    /// How a reload takes a key over, by tests/fixtures/reloaded-keys.txt.
    struct Reloaded<'a> {
        key: &'a str,
        way: &'a str,
        shown_by: &'a str,
    }

    fn reloaded() -> Vec<Reloaded<'static>> {
        let lines = include_str!("../../tests/fixtures/reloaded-keys.txt").lines();
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let parse = |line: &'static str| {
            let (key, rest) = line.split_once(' ').expect("a key, a way, and what shows it");
            let (way, shown_by) = rest.trim_start().split_once(' ').expect("a way, and what shows it");
            Reloaded { key, way, shown_by: shown_by.trim() }
        };
        lines.map(parse).collect()
    }

    #[test]
    fn every_key_has_a_test_that_a_reload_takes_it_over() {
        let (keys, reloaded) = (all_keys(), reloaded());
        for key in &keys {
            let count = reloaded.iter().filter(|each| each.key == *key).count();
            assert_eq!(count, 1, "tests/fixtures/reloaded-keys.txt has {key} {count} times");
        }
        for Reloaded { key, way, shown_by } in reloaded {
            assert!(keys.iter().any(|known| known == key), "there is no key {key}");
            let name = key.rsplit('.').next().unwrap();
            match way {
                "act" => assert!(body_of(shown_by).contains(name), "{shown_by} says nothing of {key}"),
                "section" => drop(body_of(shown_by)),
                "process" => assert_needs_new_process(key, shown_by),
                _ => panic!("{key}: there is no way {way}"),
            }
        }
    }

    /// The text of a test, by its path: a module of the integration tests, or one of this crate.
    fn body_of(test: &str) -> String {
        let (module, name) = test.rsplit_once("::").unwrap();
        let path = module.replace("::tests::", "/tests/").replace("::tests", "").replace("::", "/");
        let root = env!("CARGO_MANIFEST_DIR");
        let files = [
            format!("{root}/tests/integration/{path}.rs"),
            format!("{root}/src/{path}.rs"),
            format!("{root}/src/{path}/mod.rs"),
        ];
        let text = files.iter().find_map(|file| std::fs::read_to_string(file).ok());
        let text = text.unwrap_or_else(|| panic!("no file has {test}"));
        let begin = format!("#[test]\nfn {name}(");
        let indented = format!("#[test]\n    fn {name}(");
        let at = text.find(&begin).or_else(|| text.find(&indented));
        let body = &text[at.unwrap_or_else(|| panic!("there is no test {test}"))..];
        body[..body.find("\n}\n").unwrap_or(body.len())].to_owned()
    }

    /// A reload asks for a new process where `key` has `value`.
    fn assert_needs_new_process(key: &str, value: &str) {
        let (section, name) = key.split_once('.').unwrap();
        let text = match section {
            "listen" => format!("listen = [{{ {name} = {value} }}]"),
            _ => format!("{section}.{name} = {value}"),
        };
        let next: Config = toml::from_str(&text).unwrap();
        let changed = Config::default().needs_new_process(&next);
        let named = changed.iter().map(|name| name.replace("listen.0.", "listen."));
        assert_eq!(named.collect::<Vec<_>>(), [key], "{text}");
    }

    #[test]
    fn the_values_without_a_mark_are_the_defaults() {
        let written: Config = toml::from_str(REFERENCE).unwrap();
        let default = Config::default();
        assert_eq!(written.store, default.store);
        assert_eq!(written.listen, default.listen);
        assert_eq!(written.engine, default.engine);
        assert_eq!((written.limits, written.timeouts), (default.limits, default.timeouts));
        assert_eq!((written.vpn, written.forward), (default.vpn, default.forward));
        assert_eq!(written.authz, default.authz);
        assert_eq!((written.admin, written.probe), (default.admin, default.probe));
        assert_eq!((written.audit, written.log), (default.audit, default.log));
    }

    #[test]
    fn an_example_is_the_line_of_the_key_or_of_what_contains_it() {
        assert_eq!(example_of("limits.sessions").unwrap(), "sessions = 8000");
        assert_eq!(example_of("listen.1.address").unwrap(), "address = \"127.0.0.1:3128\"");
        assert_eq!(
            example_of("authz.guard.budgets.gained.rows").unwrap(),
            "gained = { rows = 50, share = 0.01 }"
        );
        assert_eq!(example_of("vpn.allow.0").unwrap(), "allow = [\"10.8.0.0/16\"]");
        assert!(example_of("limits").unwrap().starts_with("[limits] with sessions"));
        assert_eq!(example_of("nonsense"), None);
    }
}
