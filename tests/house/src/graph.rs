//! Which file imports which: the layers from the ground up, and import cycles.
//!
//! An import is an arrow from a file to the file of the module that a path leads to. The path counts as it is
//! written: `crate::authz::Decision` leads to `authz/mod.rs`, even where that one re-exports the name.

use std::collections::{BTreeMap, BTreeSet};

use crate::paths::paths_of;
use crate::report::Figure;
use crate::source::{ModulePath, Source};

pub fn figures(sources: &[Source]) -> Vec<Figure> {
    let graph = Graph::new(sources);
    let cycles = graph.cycles();
    let mut places = Vec::new();
    for (index, cycle) in cycles.iter().enumerate() {
        let arrows = graph.arrows.iter().filter(|arrow| arrow.makes_cycles());
        let inside = arrows.filter(|arrow| cycle.contains(arrow.from) && cycle.contains(arrow.to));
        places.extend(inside.map(|arrow| arrow.place(&format!("cycle {}: ", index + 1))));
    }
    vec![
        Figure::count("climbs", CLIMBS_MAX, graph.climbs()),
        Figure::count_of("cycles", CYCLES_MAX, cycles.len(), places),
    ]
}

struct Graph<'a> {
    sources: &'a [Source],
    arrows: Vec<Arrow<'a>>,
}

/// One file's import of another; the first, where there are several.
struct Arrow<'a> {
    source: &'a Source,
    line: usize,
    from: &'a ModulePath,
    to: &'a ModulePath,
}

impl<'a> Graph<'a> {
    fn new(sources: &'a [Source]) -> Self {
        let files: BTreeSet<&ModulePath> = sources.iter().map(|source| &source.module).collect();
        let mut arrows = Vec::new();
        for source in sources {
            let mut lines = BTreeMap::new();
            for (path, line) in paths_of(source) {
                // The longest part of the path that is a file; what follows it is an item in that file.
                let to = (0..=path.len()).rev().find_map(|length| files.get(&path[..length].to_vec()));
                if let Some(&to) = to.filter(|to| **to != &source.module) {
                    let first: &mut usize = lines.entry(to).or_insert(line);
                    *first = line.min(*first);
                }
            }
            let from = &source.module;
            arrows.extend(lines.into_iter().map(|(to, line)| Arrow { source, line, from, to }));
        }
        Self { sources, arrows }
    }

    /// Imports from a lower floor to a higher one, and files that stand on no floor.
    fn climbs(&self) -> Vec<String> {
        let mut places = Vec::new();
        for source in self.sources {
            if floor(&source.module).is_none() {
                places.push(source.place(1, "a new floor: add it to FLOORS"));
            }
        }
        for arrow in &self.arrows {
            if !arrow.to.is_empty() && floor(arrow.to) > floor(arrow.from) {
                places.push(arrow.place("climbs: "));
            }
        }
        places
    }

    /// Groups of files in which each file reaches each other one by imports.
    fn cycles(&self) -> Vec<BTreeSet<&'a ModulePath>> {
        let files = self.sources.iter().map(|source| &source.module);
        let reached: BTreeMap<_, _> = files.map(|file| (file, self.reached_from(file))).collect();
        let mut cycles = BTreeSet::new();
        for (file, others) in &reached {
            let cycle: BTreeSet<_> =
                others.iter().copied().filter(|other| reached[other].contains(file)).collect();
            if !cycle.is_empty() {
                cycles.insert(cycle);
            }
        }
        cycles.into_iter().collect()
    }

    /// All files that `file` imports, and those that they import, and so on. `file` itself is among them when
    /// it is in a cycle.
    fn reached_from(&self, file: &'a ModulePath) -> BTreeSet<&'a ModulePath> {
        let (mut reached, mut next) = (BTreeSet::new(), vec![file]);
        while let Some(file) = next.pop() {
            for arrow in self.arrows.iter().filter(|arrow| arrow.from == file && arrow.makes_cycles()) {
                if reached.insert(arrow.to) {
                    next.push(arrow.to);
                }
            }
        }
        reached
    }
}

impl Arrow<'_> {
    /// False between a folder's `mod.rs` and the files in the folder, which may import each other.
    fn makes_cycles(&self) -> bool {
        !self.from.starts_with(self.to) && !self.to.starts_with(self.from)
    }

    fn place(&self, label: &str) -> String {
        let (from, to) = (self.from.join("/"), self.to.join("/"));
        self.source.place(self.line, format!("{label}{from} imports {to}"))
    }
}

/// Height of a module's floor, from 0 at the ground. `lib.rs` and `main.rs` stand above all.
fn floor(module: &[String]) -> Option<usize> {
    match module.first().map(String::as_str) {
        None | Some("main") => Some(FLOORS.len()),
        Some(name) => FLOORS.iter().position(|floor| *floor == name),
    }
}

/// Top modules from the ground up. A module imports only from its own floor and from those below.
#[rustfmt::skip]
const FLOORS: [&str; 13] = [
    "sys", "config", "wire", "authz", "telemetry", "store", "engine", "usage", "control", "handover", "admin", "node",
    "cli",
];

const CLIMBS_MAX: usize = 0;

const CYCLES_MAX: usize = 0;

#[cfg(test)]
mod tests {
    use super::*;

    /// Places of climbs and of cycles in a tree of `(path, text)`.
    fn measure(files: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let sources: Vec<_> = files.iter().map(|(path, text)| Source::parse(path, text)).collect();
        let [climbs, cycles] = figures(&sources).try_into().unwrap();
        (climbs.places, cycles.places)
    }

    const NOTHING: [&str; 0] = [];

    #[test]
    fn a_climb_is_found_at_its_import() {
        let (climbs, _) = measure(&[
            ("config/tls.rs", "use std::io;\nuse crate::wire::Head;\n"),
            ("wire/mod.rs", "use crate::config::tls;\n"),
        ]);
        assert_eq!(climbs, ["src/config/tls.rs:2: climbs: config/tls imports wire"]);
    }

    #[test]
    fn a_folder_without_a_floor_is_found() {
        let (climbs, _) = measure(&[("cellar/mod.rs", ""), ("main.rs", ""), ("lib.rs", "")]);
        assert_eq!(climbs, ["src/cellar/mod.rs:1: a new floor: add it to FLOORS"]);
    }

    #[test]
    fn a_cycle_of_three_files_is_found_with_each_import() {
        let (_, cycles) = measure(&[
            ("sys/ring.rs", "use super::buffers;\n"),
            ("sys/buffers.rs", "use super::features;\n"),
            ("sys/features.rs", "\nuse super::ring;\nuse super::clock;\n"),
            ("sys/clock.rs", ""),
            ("sys/mod.rs", ""),
        ]);
        let expected = [
            "src/sys/ring.rs:1: cycle 1: sys/ring imports sys/buffers",
            "src/sys/buffers.rs:1: cycle 1: sys/buffers imports sys/features",
            "src/sys/features.rs:2: cycle 1: sys/features imports sys/ring",
        ];
        assert_eq!(cycles, expected);
    }

    #[test]
    fn a_folder_and_what_is_in_it_may_import_each_other() {
        let (_, cycles) = measure(&[
            ("sys/mod.rs", "pub mod ring;\npub use ring::Ring;\n"),
            ("sys/ring.rs", "use super::Clock;\n"),
        ]);
        assert_eq!(cycles, NOTHING);
    }

    #[test]
    fn a_re_export_counts_as_the_folder_that_it_stands_in() {
        let (_, cycles) = measure(&[
            ("authz/mod.rs", "pub use decide::Decision;\n"),
            ("authz/decide.rs", "use crate::wire::Head;\n"),
            ("wire/mod.rs", "use crate::authz::Decision;\n"),
        ]);
        assert_eq!(cycles, NOTHING);
    }
}
