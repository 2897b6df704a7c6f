//! A figure, its limit, and how it is printed.

use std::fs;
use std::path::Path;

#[derive(Debug)]
pub struct Figure {
    pub name: &'static str,
    value: Value,
    /// The greatest value that passes, in the unit of `value`.
    limit: usize,
    /// Findings, each as `file:line: text`.
    pub places: Vec<String>,
}

#[derive(Debug)]
enum Value {
    Count(usize),
    /// Share of a whole, in percent, rounded to a tenth.
    Percent(f64),
}

impl Figure {
    /// Counts findings of which each has one place.
    pub fn count(name: &'static str, limit: usize, places: Vec<String>) -> Self {
        Self { name, value: Value::Count(places.len()), limit, places }
    }

    /// Counts findings of which each may have several places.
    pub fn count_of(name: &'static str, limit: usize, count: usize, places: Vec<String>) -> Self {
        Self { name, value: Value::Count(count), limit, places }
    }

    /// Compares `part` with `whole`; `limit` is in percent.
    pub fn percent(name: &'static str, limit: usize, part: usize, whole: usize, places: Vec<String>) -> Self {
        let tenths = (1000.0 * part as f64 / whole.max(1) as f64).round();
        Self { name, value: Value::Percent(tenths / 10.0), limit, places }
    }

    pub fn is_over(&self) -> bool {
        match self.value {
            Value::Count(count) => count > self.limit,
            Value::Percent(percent) => percent > self.limit as f64,
        }
    }

    /// Prints the figure, and its places when it is over its limit or `lists_all` is set.
    pub fn print(&self, lists_all: bool) {
        let (value, unit) = match self.value {
            Value::Count(count) => (count.to_string(), ""),
            Value::Percent(percent) => (format!("{percent:.1} %"), " %"),
        };
        let over = if self.is_over() { "  OVER" } else { "" };
        println!("{:13} {value} (at most {}{unit}){over}", self.name, self.limit);
        if lists_all || self.is_over() {
            for place in &self.places {
                println!("    {place}");
            }
        }
    }
}

/// Counts the test programs in `folder`. Cargo links one for each file there, and for each `main.rs` in a
/// folder there.
pub fn test_programs(folder: &Path) -> Result<Figure, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut programs = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| format!("{}: {error}", folder.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            programs.push(format!("{}:1: a test program", path.display()));
        } else if path.join("main.rs").exists() {
            programs.push(format!("{}:1: a test program", path.join("main.rs").display()));
        }
    }
    programs.sort();
    Ok(Figure::count("test-programs", TEST_PROGRAMS_MAX, programs))
}

/// Each test program links the whole relay again, which costs time and disk.
const TEST_PROGRAMS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_at_its_limit_passes_and_one_above_is_over() {
        assert!(!Figure::count_of("cycles", 2, 2, Vec::new()).is_over());
        assert!(Figure::count_of("cycles", 2, 3, Vec::new()).is_over());
        assert!(!Figure::percent("vague", 6, 6, 100, Vec::new()).is_over());
        assert!(Figure::percent("vague", 6, 61, 1000, Vec::new()).is_over());
        assert!(!Figure::percent("vague", 6, 0, 0, Vec::new()).is_over());
    }

    #[test]
    fn a_test_program_is_a_file_or_a_folder_with_a_main() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["a.rs", "b/main.rs", "support/mod.rs", "notes.md"] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let expected = ["a.rs", "b/main.rs"];
        let expected =
            expected.map(|path| format!("{}:1: a test program", folder.path().join(path).display()));
        assert_eq!(test_programs(folder.path()).unwrap().places, expected);
    }
}
