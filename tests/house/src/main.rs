//! Checks how the source is built: layers, import cycles, and the words of comments and names.
//!
//! `cargo run -q --locked -p sluicegate-house [-- -v] [ROOT]` measures the checkout at `ROOT`, by default the
//! current folder. It prints one line per figure, and under each figure over its limit the places, as
//! `file:line`. `-v` lists the places of all figures. The exit code is 1 when a figure is over its limit, and
//! 2 when the source cannot be read.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use report::Figure;
use source::Source;

mod graph;
mod paths;
mod prose;
mod report;
mod source;

fn main() -> ExitCode {
    let mut root = PathBuf::new();
    let mut lists_all = false;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "-v" => lists_all = true,
            path => root = PathBuf::from(path),
        }
    }
    match measure(&root) {
        Ok(figures) => {
            for figure in &figures {
                figure.print(lists_all);
            }
            ExitCode::from(u8::from(figures.iter().any(Figure::is_over)))
        }
        Err(error) => {
            eprintln!("sluicegate-house: {error}");
            ExitCode::from(2)
        }
    }
}

fn measure(root: &Path) -> Result<Vec<Figure>, String> {
    let sources = Source::read_all(&root.join("src"))?;
    if sources.is_empty() {
        return Err(format!("there is no Rust file in {}", root.join("src").display()));
    }
    let mut figures = figures(&sources);
    figures.push(report::test_programs(&root.join("tests"))?);
    Ok(figures)
}

fn figures(sources: &[Source]) -> Vec<Figure> {
    let mut figures = graph::figures(sources);
    figures.extend(prose::figures(sources));
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_tree_passes() {
        let sources = [
            Source::parse("lib.rs", "//! A relay.\npub mod sys;\npub mod wire;\npub mod node;\n"),
            Source::parse("sys/mod.rs", "/// A clock.\npub struct Clock;\n"),
            Source::parse("wire/mod.rs", "pub mod head;\npub use head::Head;\n"),
            Source::parse(
                "wire/head.rs",
                "use crate::sys::Clock;\n/// Parses a head.\npub struct Head(Clock);\n",
            ),
            Source::parse(
                "node.rs",
                "use crate::wire::Head;\n/// Starts a node.\npub fn start(head: Head) {}\n",
            ),
        ];
        for figure in figures(&sources) {
            assert!(!figure.is_over(), "{figure:?}");
            assert!(figure.places.is_empty(), "{figure:?}");
        }
    }
}
