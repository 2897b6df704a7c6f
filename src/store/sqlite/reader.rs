//! The relay's side of a store file, one relation at a time.

use std::path::Path;

use super::SqlitePath;
use crate::config::{Authz, Queries, Store};
use crate::store::{
    Bookmark, Comparison, KnownPosition, Relation, RelationAnswer, StoreError, StoreReader, WordsAnswer,
};

/// A reader on an SQLite file.
pub struct SqliteReader {
    path: SqlitePath,
    queries: Queries,
    bookmark: Option<Bookmark>,
    _known: KnownPosition,
}

impl SqliteReader {
    pub fn new(path: &Path, _store: &Store, authz: &Authz, known: KnownPosition) -> Self {
        Self { path: SqlitePath::new(path), queries: authz.queries.clone(), bookmark: None, _known: known }
    }

    fn later(&self) -> StoreError {
        StoreError::Query {
            store: self.path.describe(),
            detail: "it cannot be read by relation yet".to_owned(),
        }
    }
}

impl StoreReader for SqliteReader {
    fn read_relation(&mut self, _: Relation) -> Result<RelationAnswer, StoreError> {
        Err(self.later())
    }

    fn read_words(&mut self) -> Result<WordsAnswer, StoreError> {
        Err(self.later())
    }

    fn bookmark(&self) -> Option<Bookmark> {
        self.bookmark.clone()
    }

    fn resume(&mut self, bookmark: Bookmark) {
        self.bookmark = Some(bookmark);
    }

    fn compare(&mut self, _: &Queries) -> Result<Comparison, StoreError> {
        Err(self.later())
    }

    fn replace_queries(&mut self, queries: Queries) {
        self.queries = queries;
    }

    fn follows_outbox(&self) -> bool {
        !self.queries.are_replaced()
    }

    fn describe(&self) -> String {
        self.path.describe()
    }
}
