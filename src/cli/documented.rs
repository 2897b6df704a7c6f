//! A test: every command that the documentation shows is one that the command line understands.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;

use super::CommandLine;

/// README.md and all pages beside it that show commands.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages: Vec<PathBuf> = fs::read_dir(root.join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "md"))
        .collect();
    let others = ["README.md", "systemd/README.md", "tuning/README.md", "monitoring/OPERATIONS.md"];
    pages.extend(others.map(|page| root.join(page)));
    pages.sort();
    pages
}

/// The commands of ours in a line of a block, with values in the place of variables.
fn commands(line: &str) -> Vec<Vec<String>> {
    let line = line.split(" # ").next().unwrap_or_default().split("   #").next().unwrap_or_default();
    let uuid = "0123456789abcdef0123456789abcdef";
    let line = line
        .replace("$(systemctl show -P MainPID sluicegate)", "1")
        .replace("$UUID", uuid)
        .replace("$OTHER", uuid)
        .replace("DIGEST", "0123456789abcdef")
        .replace("[GROUP]", "grants.absent")
        .replace("/usr/bin/", "")
        .replace("$(", "|");
    line.split(['"', ';', '|', '&', ')'])
        .map(|part| part.trim().trim_start_matches("$ "))
        .map(|part| part.split_once(" -- ").map_or(part, |(_, command)| command))
        .filter(|part| part.starts_with("sluicegate "))
        .map(|part| part.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect())
        .collect()
}

#[test]
fn every_command_in_the_documentation_is_understood() {
    let (mut count, mut refused) = (0, Vec::new());
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let mut language = None;
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = line.strip_prefix("```") {
                language = language.is_none().then(|| word.to_owned());
                continue;
            }
            // In a console, the other lines are answers.
            let is_shown = match language.as_deref() {
                Some("console") => line.starts_with("$ "),
                other => other.is_some(),
            };
            if is_shown {
                for words in commands(line) {
                    count += 1;
                    if let Err(error) = CommandLine::try_parse_from(&words) {
                        let place = format!("{}:{}", page.display(), number + 1);
                        refused.push(format!("{place}: {}: {error}", words.join(" ")));
                    }
                }
            }
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    assert!(count > 40, "only {count} commands were found");
}
