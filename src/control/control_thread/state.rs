//! How the reading of the store stands: errors, positions, confirmations.

use crate::authz::UnixMillis;
use crate::control::api::{HoldStatus, Rule};
use crate::control::readers::{ReadContext, ReadError};
use crate::store::{Bookmark, Position, Relation, Standing, StoreWarnings};
use crate::telemetry::LogOnChange;

/// See the module.
pub(super) struct StoreState {
    name: String,
    words: ReaderState,
    relations: [ReaderState; 3],
    bookmark: Option<Bookmark>,
    follows_outbox: bool,
    errors: u64,
    last_error: Option<String>,
}

#[derive(Default)]
struct ReaderState {
    error: Option<String>,
    contract: Option<HoldStatus>,
    errors: u64,
    heard_at: Option<UnixMillis>,
    warnings: StoreWarnings,
    trouble: LogOnChange,
    /// The store is older than what was known, or another one.
    position: Option<PositionTrouble>,
}

struct PositionTrouble {
    standing: Standing,
    position: Position,
    since: UnixMillis,
    /// It has lasted, and is held.
    is_logged: bool,
}

impl PositionTrouble {
    /// A standby may be behind for a moment; another store is one at once.
    fn is_lasting(&self, now: UnixMillis) -> bool {
        self.standing == Standing::Elsewhere || now.0.saturating_sub(self.since.0) >= BEHIND_MS
    }

    fn figures(&self, store: &str) -> String {
        match self.standing {
            Standing::Elsewhere => format!("{store} is another store than the one that was followed"),
            _ => {
                format!("{store} is older than what was read before: it was restored, or a standby is behind")
            }
        }
    }
}

impl StoreState {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            words: ReaderState::default(),
            relations: Default::default(),
            bookmark: None,
            follows_outbox: false,
            errors: 0,
            last_error: None,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn bookmark(&self) -> Option<Bookmark> {
        self.bookmark.clone()
    }

    /// Sets the place from which a restart reads words on.
    pub(super) fn set_bookmark(&mut self, bookmark: Option<Bookmark>) {
        if bookmark.is_some() {
            self.bookmark = bookmark;
        }
    }

    pub(super) fn follows_outbox(&self) -> bool {
        self.follows_outbox
    }

    /// A read has succeeded, `None` for words. Says it where it had failed before.
    pub(super) fn succeed(
        &mut self,
        relation: Option<Relation>,
        context: &ReadContext,
        heard_at: UnixMillis,
    ) {
        if relation.is_none() {
            self.follows_outbox = context.follows_outbox;
        }
        let (what, name) = (what(relation), self.name.clone());
        let reader = self.reader(relation);
        reader.error = None;
        reader.contract = None;
        reader.heard_at = Some(heard_at);
        reader.warnings = context.warnings.clone();
        if reader.trouble.ends() {
            tracing::info!("{what} of {name} can be read again");
        }
        if self.errors_now().next().is_none() {
            self.last_error = None;
        }
    }

    /// A read has failed. It is told once, and then when it changes.
    pub(super) fn fail_read(&mut self, relation: Option<Relation>, error: &ReadError, now: UnixMillis) {
        if let (Some(relation), ReadError::Store(error)) = (relation, error)
            && error.breaks_contract()
        {
            let since = self.reader(Some(relation)).contract.as_ref().map_or(now, |hold| hold.since);
            self.reader(Some(relation)).contract = Some(HoldStatus {
                rule: Rule::Contract,
                group: None,
                relation: Some(relation.name().to_owned()),
                rows: 0,
                figures: error.to_string(),
                examples: Vec::new(),
                since,
                advice: "mend the query or the schema; the other relations are read as ever".to_owned(),
            });
        }
        self.fail(relation, error.to_string());
    }

    pub(super) fn fail(&mut self, relation: Option<Relation>, error: String) {
        self.errors += 1;
        self.last_error = Some(error.clone());
        let what = what(relation);
        let reader = self.reader(relation);
        reader.errors += 1;
        reader.error = Some(error.clone());
        if reader.trouble.changes_to(error.clone()) {
            tracing::warn!("{what}: {error}; until then the last good rows decide");
        }
    }

    /// Compares a position with what was known; false where the answer is not to be believed.
    pub(super) fn check(
        &mut self,
        relation: Option<Relation>,
        standing: Standing,
        position: Position,
        now: UnixMillis,
    ) -> bool {
        let name = self.name.clone();
        let reader = self.reader(relation);
        if standing == Standing::Newer {
            if reader.position.take().is_some_and(|trouble| trouble.is_logged) {
                tracing::info!("{} of {name} is where it was again", what(relation));
            }
            return true;
        }
        let before = reader.position.take().filter(|trouble| trouble.standing == standing);
        let since = before.as_ref().map_or(now, |trouble| trouble.since);
        let was_logged = before.is_some_and(|trouble| trouble.is_logged);
        let mut trouble = PositionTrouble { standing, position, since, is_logged: was_logged };
        if trouble.is_lasting(now) && !was_logged {
            tracing::warn!("{}: {}; the last good rows decide", what(relation), trouble.figures(&name));
            trouble.is_logged = true;
        }
        reader.position = Some(trouble);
        false
    }

    /// The position that is held, for a person who accepts it.
    pub(super) fn accept_position(&mut self) -> Option<Position> {
        let position = self.held_position();
        for relation in READERS {
            self.reader(relation).position = None;
        }
        position
    }

    pub(super) fn held_position(&self) -> Option<Position> {
        self.lasting_trouble().map(|trouble| trouble.position)
    }

    pub(super) fn position_hold(&self) -> Option<HoldStatus> {
        let trouble = self.lasting_trouble()?;
        Some(HoldStatus {
            rule: Rule::Position,
            group: None,
            relation: None,
            rows: 0,
            figures: trouble.figures(&self.name),
            examples: Vec::new(),
            since: trouble.since,
            advice: "a standby catches up by itself; a restored or another store is followed after `sluicegate authz \
                     diff` and `accept` with its digest"
                .to_owned(),
        })
    }

    /// A store that is not the one that was followed, or that has been behind for a while.
    fn lasting_trouble(&self) -> Option<&PositionTrouble> {
        let troubles =
            self.relations.iter().chain([&self.words]).filter_map(|reader| reader.position.as_ref());
        troubles.filter(|trouble| trouble.is_logged).min_by_key(|trouble| trouble.since)
    }

    pub(super) fn contract_holds(&self) -> impl Iterator<Item = HoldStatus> {
        self.relations.iter().filter_map(|reader| reader.contract.clone())
    }

    /// Time since which the rights in force are what the store says: ends that came later may not be known.
    pub(super) fn confirmed_at(&self) -> Option<UnixMillis> {
        if self.follows_outbox {
            return self.words.heard_at.filter(|_| self.words.error.is_none());
        }
        let [credentials, grants, _] = &self.relations;
        let is_heard = |reader: &ReaderState| reader.heard_at.filter(|_| reader.error.is_none());
        is_heard(credentials).zip(is_heard(grants)).map(|(one, other)| one.min(other))
    }

    /// Returns whether an unknown credential may be refused: the store has been asked of late.
    pub(super) fn is_reachable(&self) -> bool {
        let words = !self.follows_outbox || self.words.error.is_none();
        let is_behind =
            |reader: &ReaderState| reader.position.as_ref().is_some_and(|trouble| trouble.is_logged);
        let is_old = is_behind(if self.follows_outbox { &self.words } else { &self.relations[0] });
        words && self.relations[0].error.is_none() && !is_old
    }

    pub(super) fn errors(&self) -> u64 {
        self.errors
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.errors_now().next().map(str::to_owned).or_else(|| self.last_error.clone())
    }

    pub(super) fn relation_error(&self, relation: Relation) -> (Option<String>, u64) {
        let reader = &self.relations[relation as usize];
        (reader.error.clone(), reader.errors)
    }

    /// Things that the reads so far met and could not use.
    pub(super) fn warnings(&self) -> StoreWarnings {
        let mut warnings = StoreWarnings::default();
        for reader in self.relations.iter().chain([&self.words]) {
            if warnings.not_understood == Default::default() {
                warnings.not_understood = reader.warnings.not_understood.clone();
            }
        }
        warnings
    }

    fn errors_now(&self) -> impl Iterator<Item = &str> {
        self.relations.iter().chain([&self.words]).filter_map(|reader| reader.error.as_deref())
    }

    fn reader(&mut self, relation: Option<Relation>) -> &mut ReaderState {
        match relation {
            None => &mut self.words,
            Some(relation) => &mut self.relations[relation as usize],
        }
    }
}

fn what(relation: Option<Relation>) -> &'static str {
    relation.map_or("the outbox", Relation::name)
}

/// The readers of a store.
const READERS: [Option<Relation>; 4] =
    [None, Some(Relation::Credentials), Some(Relation::Grants), Some(Relation::Devices)];

/// Time for which a store may be older than what was known, in ms, before that is a hold. Its answers count for nothing
/// from the first.
const BEHIND_MS: i64 = 2_000;
