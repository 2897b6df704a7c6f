//! Plays histories of an engine with a known fault, for each of `tests/simulate/mutations.toml`, and prints how long it
//! took to find it. The exit code is 1 where one was not found.
//!
//! The faults are in a copy of the sources, in the target folder; the relay's own files have no trace of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde::Deserialize;

/// The file with the faults.
#[derive(Deserialize)]
struct Mutations {
    mutation: Vec<Mutation>,
}

/// One fault: a place in a file, and what stands there instead.
#[derive(Deserialize)]
struct Mutation {
    name: String,
    what: String,
    file: String,
    find: String,
    replace: String,
}

/// Arguments: names of mutations; none means all.
fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(2)
        }
    }
}

fn run(wanted: &[String]) -> Result<bool, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let copy = target.join("simulate-mutations");
    let text = read(&root.join("tests/simulate/mutations.toml"))?;
    let Mutations { mutation: all } = toml::from_str(&text).map_err(|error| error.to_string())?;
    copy_sources(&root, &copy)?;
    for mutation in &all {
        apply(mutation, &copy)?;
    }
    let main = copy.join("tests/simulate/src/main.rs");
    let text = read(&main)?.replacen("\n#[path", &format!("\n{SWITCH}\n#[path"), 1);
    write(&main, &text)?;
    // Under another name, so that neither build takes the other's place in the target folder.
    for file in ["Cargo.toml", "Cargo.lock", "tests/simulate/Cargo.toml"] {
        let path = copy.join(file);
        write(&path, &read(&path)?.replace("sluicegate-simulate", "sluicegate-mutated"))?;
    }
    let built = Command::new("cargo")
        .args(["build", "--locked", "--quiet", "-p", "sluicegate-mutated", "--bin", "sluicegate-mutated"])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(&copy)
        .status()
        .map_err(|error| error.to_string())?;
    if !built.success() {
        return Err("the copy does not build".to_owned());
    }
    let program = target.join("debug/sluicegate-mutated");
    let mut found_all = true;
    let mut chosen: Vec<&Mutation> = all.iter().collect();
    if !wanted.is_empty() {
        chosen.retain(|mutation| wanted.contains(&mutation.name));
    }
    for Mutation { name, what, .. } in chosen {
        let played = Command::new(&program)
            .args(["--seconds", "60", "--shrink", "0"])
            .env("SLUICEGATE_MUTATION", name)
            .output()
            .map_err(|error| error.to_string())?;
        let output = String::from_utf8_lossy(&played.stdout);
        let is_found = played.status.code() == Some(1);
        found_all &= is_found;
        let verdict = if is_found { "found" } else { "NOT FOUND" };
        println!("{name}: {what}\n    {verdict}: {}", output.lines().next().unwrap_or_default());
    }
    Ok(found_all)
}

/// Copies what the simulation is built of. A file that is the same keeps its time, so that little is built again.
fn copy_sources(root: &Path, copy: &Path) -> Result<(), String> {
    for part in SOURCES {
        copy_tree(&root.join(part), &copy.join(part))?;
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), String> {
    if !from.is_dir() {
        let same = fs::read(to).ok() == fs::read(from).ok();
        let folder = to.parent().ok_or("a file has a folder")?;
        fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        return if same { Ok(()) } else { fs::copy(from, to).map(drop).map_err(|error| error.to_string()) };
    }
    for entry in fs::read_dir(from).map_err(|error| format!("{}: {error}", from.display()))? {
        let entry = entry.map_err(|error| error.to_string())?;
        copy_tree(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

fn apply(mutation: &Mutation, copy: &Path) -> Result<(), String> {
    let Mutation { name, file, find, replace, .. } = mutation;
    let path = copy.join(file);
    let text = read(&path)?;
    match text.matches(find.as_str()).count() {
        1 => write(&path, &text.replacen(find.as_str(), replace, 1)),
        count => {
            Err(format!("{name}: {file} has its place {count} times, and not once; mend mutations.toml"))
        }
    }
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// What the copy has.
const SOURCES: [&str; 11] = [
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "docs/reference.toml",
    "src",
    "benches",
    "fuzz",
    "tests/mutation",
    "tests/house",
    "tests/loom",
    "tests/simulate",
];

/// The switch of the faults, for the copy.
const SWITCH: &str = r#"
macro_rules! mutated {
    ($name:literal) => {
        crate::is_mutated($name)
    };
}

fn is_mutated(name: &str) -> bool {
    static NAME: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("SLUICEGATE_MUTATION").ok());
    NAME.as_deref() == Some(name)
}
"#;
