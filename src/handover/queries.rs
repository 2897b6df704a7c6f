//! The queries that the old process reads the store by: a new one with others compares them before it takes over, as a
//! process that takes other queries over by itself does.

use std::path::PathBuf;

use super::message::Step;
use crate::config::{Config, Profile, Queries, RelationQuery, StoreUrl, TEXT_FILE_BYTES_MAX};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedQueries {
    /// The kind of the store and its profile. Queries of another one say nothing.
    schema: String,
    queries: Queries,
}

impl PassedQueries {
    pub fn of(config: &Config) -> Self {
        Self { schema: schema(config), queries: config.authz.queries.clone() }
    }

    pub(super) fn of_schema(schema: String) -> Self {
        Self { schema, queries: Queries::default() }
    }

    /// The queries that those of `config` are to be compared with; `None` where there is nothing to compare.
    pub fn changed_by(self, config: &Config) -> Option<Queries> {
        let text = |queries: &Queries| {
            let Queries { credentials, grants, devices, ended } = queries;
            [credentials, grants, devices, ended].map(|query| query.as_ref().map(|query| query.sql.clone()))
        };
        let is_changed = self.schema == schema(config) && text(&self.queries) != text(&config.authz.queries);
        is_changed.then_some(self.queries)
    }

    /// The messages that pass them on.
    pub(super) fn steps(&self) -> impl Iterator<Item = Step> {
        let Queries { credentials, grants, devices, ended } = &self.queries;
        let named = NAMES.into_iter().zip([credentials, grants, devices, ended]);
        let queries = named.filter_map(|(name, query)| Some((name, query.as_ref()?)));
        let parts = queries.flat_map(|(name, query)| {
            let parts = split(&query.sql);
            parts.map(move |text| Step::Query { relation: name.to_owned(), text: text.to_owned() })
        });
        std::iter::once(Step::Schema { name: self.schema.clone() }).chain(parts)
    }

    /// Adds a part of a query. Returns `false` where there is no such query, or it would be longer than it may be.
    pub(super) fn add(&mut self, relation: &str, text: &str) -> bool {
        let Queries { credentials, grants, devices, ended } = &mut self.queries;
        let queries = [credentials, grants, devices, ended];
        let Some((_, query)) = NAMES.into_iter().zip(queries).find(|(name, _)| *name == relation) else {
            return false;
        };
        let query = query.get_or_insert_with(|| RelationQuery { file: PathBuf::new(), sql: String::new() });
        query.sql.push_str(text);
        query.sql.len() as u64 <= TEXT_FILE_BYTES_MAX
    }
}

fn schema(config: &Config) -> String {
    let kind = match (&config.store.url, config.store.profile) {
        (StoreUrl::Sqlite(_), _) => "sqlite",
        (StoreUrl::Postgres(_), Profile::Reference) => "postgres",
        (StoreUrl::Postgres(_), Profile::OpenBalena) => "openbalena",
    };
    kind.to_owned()
}

/// The text in parts of at most [`PART_BYTES_MAX`].
fn split(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let end = (0..=PART_BYTES_MAX.min(text.len())).rev().find(|place| text.is_char_boundary(*place));
        let (part, rest) = text.split_at(end.unwrap_or_default());
        text = rest;
        (!part.is_empty()).then_some(part)
    })
}

/// In the order of [`Queries`].
const NAMES: [&str; 4] = ["credentials", "grants", "devices", "ended"];

/// Bytes of a query that one message has. It fits even where each letter is escaped.
const PART_BYTES_MAX: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::super::message::MESSAGE_BYTES_MAX;
    use super::*;

    fn config(grants: Option<String>) -> Config {
        let mut config = Config::default();
        config.authz.queries.grants = grants.map(|sql| RelationQuery { file: PathBuf::from("/a"), sql });
        config
    }

    fn passed(config: &Config) -> PassedQueries {
        let mut steps = PassedQueries::of(config).steps().collect::<Vec<_>>().into_iter();
        let Some(Step::Schema { name }) = steps.next() else { panic!("the schema comes first") };
        let mut passed = PassedQueries::of_schema(name);
        for step in steps {
            assert!(serde_json::to_vec(&step).unwrap().len() <= MESSAGE_BYTES_MAX);
            let Step::Query { relation, text } = step else { panic!("{step:?}") };
            assert!(passed.add(&relation, &text));
        }
        passed
    }

    #[test]
    fn a_long_query_comes_whole_and_only_another_one_is_compared() {
        let long = config(Some("ä\u{1}".repeat(20_000)));
        assert_eq!(passed(&long).changed_by(&long), None);
        let was = passed(&long).changed_by(&config(None)).unwrap();
        assert_eq!(was.grants.map(|query| query.sql), long.authz.queries.grants.map(|query| query.sql));
        assert_eq!(passed(&config(None)).changed_by(&config(None)), None);
        assert_eq!(passed(&config(None)).changed_by(&config(Some("x".to_owned()))), Some(Queries::default()));
    }

    #[test]
    fn queries_of_another_schema_are_not_compared() {
        let mut other = config(Some("x".to_owned()));
        other.store.url = "postgres://relay@db/sluicegate".to_owned().try_into().unwrap();
        assert_eq!(passed(&config(None)).changed_by(&other), None);
    }

    #[test]
    fn what_is_no_query_of_ours_is_refused() {
        let mut passed = PassedQueries::of_schema("sqlite".to_owned());
        assert!(!passed.add("rights", "x"));
        let long = "x".repeat(TEXT_FILE_BYTES_MAX as usize);
        assert!(passed.add("grants", &long) && !passed.add("grants", "x"));
    }
}
