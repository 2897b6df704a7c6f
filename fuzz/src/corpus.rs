//! The files of `corpus/`: inputs as they are, or in hex (`.hex`, where `#` begins a comment).

use std::path::{Path, PathBuf};

/// The inputs of a target, by the names of their files.
pub fn inputs(target: &str) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(folder(target)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a file of the corpus").path()).collect();
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

/// The folder of a target.
pub fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

fn read(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).expect("a file of the corpus");
    if path.extension().is_none_or(|extension| extension != "hex") {
        return bytes;
    }
    let text = String::from_utf8(bytes).expect("hex is text");
    let digits: String =
        text.lines().flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace()).collect();
    hex::decode(digits).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
