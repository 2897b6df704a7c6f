//! The words of comments and names.
//!
//! A doc comment begins with a noun or a verb, a type name stands for one type, and a function's name says
//! how it reports.

use std::collections::{BTreeMap, HashSet};

use syn::visit::{self, Visit};

use crate::report::Figure;
use crate::source::{Source, is_for_tests, line_of};

pub fn figures(sources: &[Source]) -> Vec<Figure> {
    let mut comments = 0;
    let (mut fragments, mut vague, mut told) = (Vec::new(), Vec::new(), Vec::new());
    let mut types = BTreeMap::<String, Vec<String>>::new();
    for source in sources {
        let mut names = Names::default();
        names.visit_file(&source.syntax);
        for (line, opener) in doc_comments(&source.text) {
            if names.test_lines.contains(&line) {
                continue;
            }
            comments += 1;
            if begins_with(opener, FRAGMENT_OPENERS) {
                fragments.push(source.place(line, opener));
            } else if begins_with(opener, VAGUE_OPENERS) {
                vague.push(source.place(line, opener));
            }
        }
        told.extend(names.told.iter().map(|(line, name)| source.place(*line, name)));
        for (line, name) in names.types {
            types.entry(name.clone()).or_default().push(source.place(line, name));
        }
    }
    let names = types.len();
    types.retain(|_, places| places.len() > 1);
    let overloaded = types.len();
    vec![
        Figure::percent("fragments", FRAGMENTS_MAX, fragments.len(), comments, fragments),
        Figure::percent("vague", VAGUE_MAX, vague.len(), comments, vague),
        Figure::percent(
            "overloaded",
            OVERLOADED_MAX,
            overloaded,
            names,
            types.into_values().flatten().collect(),
        ),
        Figure::count("told", TOLD_MAX, told),
    ]
}

/// First lines of the doc comments in `text`, each with its line number.
fn doc_comments(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_inside = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let comment = line.trim_start().strip_prefix("///");
        let is_first = comment.is_some() && !is_inside;
        is_inside = comment.is_some();
        comment.filter(|_| is_first).map(|comment| (index + 1, comment.trim_start()))
    })
}

fn begins_with(comment: &str, openers: &[&str]) -> bool {
    openers.iter().any(|opener| {
        comment
            .strip_prefix(opener)
            .is_some_and(|rest| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_'))
    })
}

/// Names that one file defines, each with its line. Test modules are left out.
#[derive(Default)]
struct Names {
    types: Vec<(usize, String)>,
    /// Functions that are named with "tell" or "told".
    told: Vec<(usize, String)>,
    /// Lines of test modules.
    test_lines: HashSet<usize>,
}

impl Names {
    fn add_type(&mut self, name: &syn::Ident) {
        self.types.push((line_of(name.span()), name.to_string()));
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        match &item.content {
            Some((braces, _)) if is_for_tests(&item.attrs) => {
                self.test_lines.extend(line_of(item.mod_token.span)..=line_of(braces.span.close()));
            }
            _ => visit::visit_item_mod(self, item),
        }
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.add_type(&item.ident);
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.add_type(&item.ident);
        visit::visit_item_enum(self, item);
    }

    fn visit_item_union(&mut self, item: &'ast syn::ItemUnion) {
        self.add_type(&item.ident);
        visit::visit_item_union(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.add_type(&item.ident);
        visit::visit_item_trait(self, item);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.add_type(&item.ident);
        visit::visit_item_type(self, item);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        let name = signature.ident.to_string();
        if name.contains("tell") || name.contains("told") {
            self.told.push((line_of(signature.ident.span()), name));
        }
        visit::visit_signature(self, signature);
    }
}

/// Prepositions and conjunctions: what follows is a fragment, and names nothing.
#[rustfmt::skip]
const FRAGMENT_OPENERS: &[&str] = &[
    "Of", "By", "For", "That", "The same", "To", "From", "In", "On", "Whose", "Whom", "Since", "Until",
    "Between", "Beyond", "Beside", "As", "With", "Without",
];

/// Words that put off the noun or the verb.
#[rustfmt::skip]
const VAGUE_OPENERS: &[&str] = &[
    "What", "Whether", "How", "Who", "Which", "Why", "Where", "When", "After", "Before", "Some", "Here",
    "There", "Only", "Up to", "At most",
];

/// Doc comments that may begin with a preposition, in percent: a sentence can begin so.
const FRAGMENTS_MAX: usize = 1;

/// Doc comments that may open vaguely, in percent.
const VAGUE_MAX: usize = 6;

/// Type names that may stand for several types, in percent. rustls has as many.
const OVERLOADED_MAX: usize = 6;

const TOLD_MAX: usize = 0;

#[cfg(test)]
mod tests {
    use super::*;

    fn places(name: &str, text: &str) -> Vec<String> {
        let figures = figures(&[Source::parse("wire/head.rs", text)]);
        figures.into_iter().find(|figure| figure.name == name).unwrap().places
    }

    #[test]
    fn a_fragment_is_found_where_its_comment_begins() {
        let text = "/// Of a status line.\n/// By default.\nfn a() {}\n\n/// Office hours.\nfn b() {}\n";
        assert_eq!(places("fragments", text), ["src/wire/head.rs:1: Of a status line."]);
    }

    #[test]
    fn a_vague_opener_is_found_on_a_field() {
        let text = "struct A {\n    /// How long it takes.\n    time: u64,\n}\n";
        assert_eq!(places("vague", text), ["src/wire/head.rs:2: How long it takes."]);
    }

    #[test]
    fn a_name_of_two_types_is_found_at_each() {
        let text = "struct A;\nmod inner {\n    enum A {}\n    struct B;\n}\n";
        assert_eq!(places("overloaded", text), ["src/wire/head.rs:1: A", "src/wire/head.rs:3: A"]);
    }

    #[test]
    fn associated_types_may_share_a_name() {
        let text =
            "impl Iterator for A {\n    type Item = u8;\n}\nimpl Iterator for B {\n    type Item = u8;\n}\n";
        assert_eq!(places("overloaded", text), [""; 0]);
    }

    #[test]
    fn functions_and_methods_that_are_named_tell_or_told_are_found() {
        let text = "fn is_told() {}\nimpl A {\n    async fn tell_all() {}\n}\n";
        assert_eq!(places("told", text), ["src/wire/head.rs:1: is_told", "src/wire/head.rs:3: tell_all"]);
    }

    #[test]
    fn test_modules_are_left_out() {
        let text =
            "#[cfg(test)]\nmod tests {\n    /// Of a test.\n    fn tell() {}\n    struct A;\n}\nstruct A;\n";
        for name in ["fragments", "told", "overloaded"] {
            assert_eq!(places(name, text), [""; 0], "{name}");
        }
    }
}
