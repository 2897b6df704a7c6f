//! The paths in a file that can lead to another module: in imports, types, expressions and macro calls.

use std::collections::BTreeMap;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Ident, UseTree};

use crate::source::{ModulePath, Source, is_for_tests, line_of};

/// The paths of a file from the root of the crate, each with its line. They end in the names of items, not of
/// modules, and a path into another crate looks like one into the file itself. Test modules are left out.
pub fn paths_of(source: &Source) -> Vec<(Vec<String>, usize)> {
    let mut paths = Paths { scope: source.module.clone(), imported: BTreeMap::new(), found: Vec::new() };
    paths.visit_file(&source.syntax);
    paths.found.iter().map(|(scope, path, line)| (paths.absolute(scope, path), *line)).collect()
}

struct Paths {
    /// Module that is being read: the file's, or one inside it.
    scope: ModulePath,
    /// Imported names, with the module that imports and the path of the import.
    imported: BTreeMap<(ModulePath, String), Vec<String>>,
    /// Modules, paths as written there, and lines.
    found: Vec<(ModulePath, Vec<String>, usize)>,
}

impl Paths {
    /// Replaces the start of a path (`crate`, `self`, `super` or an imported name) by names from the root.
    fn absolute(&self, scope: &[String], path: &[String]) -> Vec<String> {
        let mut path = path.to_vec();
        for _ in 0..IMPORTS_IN_A_ROW_MAX {
            let Some(import) = self.imported.get(&(scope.to_vec(), path[0].clone())) else { break };
            path.splice(..1, import.iter().cloned());
        }
        let mut names = scope.to_vec();
        for step in path {
            match step.as_str() {
                "crate" => names.clear(),
                "super" => drop(names.pop()),
                "self" => {}
                _ => names.push(step),
            }
        }
        names
    }

    fn add(&mut self, path: &[Ident]) {
        if let Some(first) = path.first() {
            let names = path.iter().map(Ident::to_string).collect();
            self.found.push((self.scope.clone(), names, line_of(first.span())));
        }
    }

    /// Takes one `use` apart: `a::{b, c::d}` is `a::b` and `a::c::d`.
    fn add_use(&mut self, path: &[Ident], tree: &UseTree) {
        match tree {
            UseTree::Path(next) => {
                self.add_use(&[path, std::slice::from_ref(&next.ident)].concat(), &next.tree)
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_use(path, tree)),
            UseTree::Name(name) if name.ident == "self" => {
                if let Some(last) = path.last() {
                    self.add_import(path, last);
                }
            }
            UseTree::Name(name) => {
                self.add_import(&[path, std::slice::from_ref(&name.ident)].concat(), &name.ident);
            }
            UseTree::Rename(name) => {
                self.add_import(&[path, std::slice::from_ref(&name.ident)].concat(), &name.rename);
            }
            _ => self.add(path),
        }
    }

    fn add_import(&mut self, path: &[Ident], name: &Ident) {
        self.add(path);
        let names = path.iter().map(Ident::to_string).collect();
        self.imported.insert((self.scope.clone(), name.to_string()), names);
    }

    /// Finds `a::b` in the tokens of a macro call, which syn does not parse.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let (mut path, mut colons) = (Vec::new(), 0);
        for token in tokens {
            match token {
                TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
                TokenTree::Ident(name) if colons == 2 => {
                    path.push(name);
                    colons = 0;
                }
                token => {
                    self.add(&std::mem::take(&mut path));
                    colons = 0;
                    match token {
                        TokenTree::Ident(name) => path.push(name),
                        TokenTree::Group(group) => self.add_tokens(group.stream()),
                        _ => {}
                    }
                }
            }
        }
        self.add(&path);
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if item.content.is_some() && is_for_tests(&item.attrs) {
            return;
        }
        self.scope.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.scope.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if item.leading_colon.is_none() {
            self.add_use(&[], &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            let names: Vec<_> = path.segments.iter().map(|segment| segment.ident.clone()).collect();
            self.add(&names);
        }
        visit::visit_path(self, path);
    }

    fn visit_token_stream(&mut self, tokens: &'ast TokenStream) {
        self.add_tokens(tokens.clone());
    }
}

/// Imports that are followed from name to name; a bound, so that names cannot lead in a circle.
const IMPORTS_IN_A_ROW_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a path of `text`, which stands in `engine/tls/stream.rs`, leads to `path`.
    fn leads_to(text: &str, path: &str) -> bool {
        let paths = paths_of(&Source::parse("engine/tls/stream.rs", text));
        paths.iter().any(|(names, _)| names.join("::") == path)
    }

    #[test]
    fn each_branch_of_a_nested_import_is_seen() {
        let text = "pub(crate) use crate::{sys, wire::{self, tls::{Load as Loader, *}}};\n\
                    use super::super::kernel;\n";
        for path in ["sys", "wire", "wire::tls::Load", "wire::tls", "engine::kernel"] {
            assert!(leads_to(text, path), "{path}");
        }
    }

    #[test]
    fn a_path_in_a_type_an_expression_and_a_macro_call_is_seen() {
        let text = "fn a(b: Vec<crate::sys::Fd>) {\n    super::ktls::start();\n\
                    assert!(x && [crate::wire::Head::new()]);\n}\n";
        for path in ["sys::Fd", "engine::tls::ktls::start", "wire::Head::new"] {
            assert!(leads_to(text, path), "{path}");
        }
    }

    #[test]
    fn an_imported_module_is_followed() {
        let text = "use io::Outcome;\nuse kernel::io;\nuse crate::engine::kernel;\n\
                    fn a() { kernel::uring::open() }\n";
        for path in ["engine::kernel::io::Outcome", "engine::kernel::uring::open"] {
            assert!(leads_to(text, path), "{path}");
        }
    }

    #[test]
    fn a_module_inside_the_file_is_a_step_deeper() {
        let text = "mod inner {\n    use super::super::handshake;\n}\n";
        assert!(leads_to(text, "engine::tls::handshake"));
    }

    #[test]
    fn test_modules_are_left_out() {
        assert!(!leads_to("#[cfg(test)]\nmod tests {\n    use crate::sys;\n}\n", "sys"));
    }
}
