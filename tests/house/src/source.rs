//! The files under `src/`, each read and parsed once.

use std::path::{Path, PathBuf};
use std::{fs, io};

use proc_macro2::Span;

/// A module's names from the root of the crate; `lib.rs` has none.
pub type ModulePath = Vec<String>;

pub struct Source {
    /// Path for messages.
    pub path: PathBuf,
    pub module: ModulePath,
    pub text: String,
    pub syntax: syn::File,
}

impl Source {
    /// Reads all Rust files under `folder`, in the order of their paths.
    pub fn read_all(folder: &Path) -> Result<Vec<Self>, String> {
        let mut paths = Vec::new();
        find_rust_files(folder, &mut paths).map_err(|error| format!("{}: {error}", folder.display()))?;
        paths.sort();
        paths.into_iter().map(|path| Self::read(folder, path)).collect()
    }

    fn read(folder: &Path, path: PathBuf) -> Result<Self, String> {
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let syntax = syn::parse_file(&text)
            .map_err(|error| format!("{}:{}: {error}", path.display(), line_of(error.span())))?;
        let module = module_path(path.strip_prefix(folder).unwrap_or(&path));
        Ok(Self { path, module, text, syntax })
    }

    /// Makes a source of `text` for tests, as if it stood at `src/PATH`.
    #[cfg(test)]
    pub fn parse(path: &str, text: &str) -> Self {
        let module = module_path(Path::new(path));
        let syntax = syn::parse_file(text).unwrap();
        Self { path: Path::new("src").join(path), module, text: text.to_string(), syntax }
    }

    /// Describes a finding: `file:line: text`.
    pub fn place(&self, line: usize, text: impl std::fmt::Display) -> String {
        format!("{}:{line}: {text}", self.path.display())
    }
}

/// Line on which a piece of syntax begins, from 1.
pub fn line_of(span: Span) -> usize {
    span.start().line
}

/// Whether the item is marked `#[cfg(test)]`.
pub fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        _ => false,
    })
}

fn find_rust_files(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find_rust_files(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// Module of a file whose path is relative to `src/`.
fn module_path(path: &Path) -> ModulePath {
    let path = path.with_extension("");
    let mut names: ModulePath = path.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    if names.last().is_some_and(|name| name == "mod") || names == ["lib"] {
        names.pop();
    }
    names
}
