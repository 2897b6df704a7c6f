//! Sets of keys that change while the relay runs: engine threads look keys up in them, and a thread for each set reads
//! it anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::{Mutex, RwLock};

use super::SessionTokenError;
use crate::config::{KeyPlace, KeySet, KeySource, TokenAlgorithm, TokenKey};

/// All sets of the configuration in force.
#[derive(Default)]
pub struct KeySets {
    sets: RwLock<Vec<Arc<SharedKeySet>>>,
}

/// The set of one source, as far as it could be read.
pub struct SharedKeySet {
    source: KeySource,
    keys: RwLock<Option<Arc<KeySet>>>,
    reading: AtomicU8,
    /// Time in ms from which on an unknown key may have the set read early.
    early_from_ms: AtomicI64,
    state: Mutex<KeySetState>,
    /// Wakes the thread that reads the set. It holds one word.
    wanted: (Sender<()>, Receiver<()>),
}

/// The outcome of reading a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySetState {
    /// The usable keys, each counted once for each algorithm; 0 where none could be read ever.
    pub keys: usize,
    /// Time of the last read that succeeded, in ms since the epoch; it may be that of a process before.
    pub read_at_ms: Option<i64>,
    /// The reason why the last read failed. `None` where it succeeded, or none has ended yet.
    pub error: Option<String>,
}

impl KeySets {
    /// Makes the sets of these sources the ones in force. A set that was there before keeps its keys.
    pub fn replace<'a>(&self, sources: impl Iterator<Item = &'a KeySource>) {
        let mut sets = self.sets.write();
        let mut next: Vec<Arc<SharedKeySet>> = Vec::new();
        for source in sources {
            if next.iter().any(|set| set.source == *source) {
                continue;
            }
            let set = match sets.iter().find(|set| set.source == *source) {
                Some(same) => Arc::clone(same),
                None => {
                    let before = sets.iter().find(|set| set.source.place.is_at(&source.place));
                    Arc::new(SharedKeySet::new(source.clone(), before.map(AsRef::as_ref)))
                }
            };
            next.push(set);
        }
        *sets = next;
    }

    pub fn all(&self) -> Vec<Arc<SharedKeySet>> {
        self.sets.read().clone()
    }

    pub fn of(&self, source: &KeySource) -> Option<Arc<SharedKeySet>> {
        self.sets.read().iter().find(|set| set.source == *source).cloned()
    }
}

impl SharedKeySet {
    /// A set with what is known of its place: the file as the configuration was read, or the keys of `before`.
    fn new(source: KeySource, before: Option<&Self>) -> Self {
        let set = Self {
            keys: RwLock::default(),
            reading: AtomicU8::new(IDLE),
            early_from_ms: AtomicI64::new(0),
            state: Mutex::default(),
            wanted: bounded(1),
            source,
        };
        match (&set.source.place, before) {
            (KeyPlace::File { set: keys, .. }, _) => set.keep(Arc::new(keys.clone()), None),
            (_, Some(before)) => {
                *set.keys.write() = before.keys.read().clone();
                *set.state.lock() = before.state();
            }
            (_, None) => {}
        }
        set
    }

    /// Puts keys in force that were read at some time before: in another process, or with the configuration.
    pub fn keep(&self, keys: Arc<KeySet>, read_at_ms: Option<i64>) {
        *self.state.lock() = KeySetState { keys: keys.keys().len(), read_at_ms, error: None };
        *self.keys.write() = Some(keys);
    }

    /// Puts in force what a read has brought; where it failed, what was read before stays. An unknown key has it read
    /// early again only after a pause.
    pub fn end_read(&self, outcome: Result<Arc<KeySet>, String>, now_ms: i64) {
        let is_read = outcome.is_ok();
        match outcome {
            Ok(keys) => self.keep(keys, Some(now_ms)),
            Err(error) => self.state.lock().error = Some(error),
        }
        let pause_ms = EARLY_PAUSE.as_millis() as i64;
        self.early_from_ms.store(now_ms.saturating_add(pause_ms), Ordering::Relaxed);
        self.reading.store(if is_read { IDLE } else { FAILING }, Ordering::Release);
    }

    pub fn source(&self) -> &KeySource {
        &self.source
    }

    pub fn state(&self) -> KeySetState {
        self.state.lock().clone()
    }

    /// The keys in force.
    pub fn keys(&self) -> Option<Arc<KeySet>> {
        self.keys.read().clone()
    }

    /// The channel on which engine threads ask for an early read.
    pub fn wanted(&self) -> &Receiver<()> {
        &self.wanted.1
    }

    /// The keys that may have signed a token with this algorithm and key name. A token that names no key could be by
    /// any; where the set has several for the algorithm, it has to name one (OpenID Connect Core 1.0, section 10.1), so
    /// that a forged one costs one check.
    ///
    /// # Errors
    /// Without such a key, the reason: the set has none, or it could not be read, or is about to be read once more.
    pub(super) fn keys_for(
        &self,
        algorithm: TokenAlgorithm,
        kid: Option<&str>,
        now_ms: i64,
    ) -> Result<Vec<TokenKey>, SessionTokenError> {
        if algorithm == TokenAlgorithm::HS256 || self.source.algorithm.is_some_and(|only| only != algorithm) {
            return Err(SessionTokenError::Algorithm);
        }
        let Some(set) = self.keys() else { return Err(SessionTokenError::NoKeys) };
        let of_algorithm = set.keys().iter().filter(|each| each.key.algorithm() == algorithm);
        let keys: Vec<_> = match kid {
            Some(kid) => of_algorithm.filter(|each| each.id.as_deref() == Some(kid)).collect(),
            None => of_algorithm.collect(),
        };
        match &keys[..] {
            [_, _, ..] if kid.is_none() => Err(SessionTokenError::Key),
            [] => Err(self.lacks_key(now_ms)),
            keys => Ok(keys.iter().map(|each| each.key.clone()).collect()),
        }
    }

    /// A token names a key that the set lacks: it may be a new one. Has the set read early, unless that was done a moment
    /// ago.
    fn lacks_key(&self, now_ms: i64) -> SessionTokenError {
        match self.reading.load(Ordering::Acquire) {
            FAILING => return SessionTokenError::NoKeys,
            WANTED => return SessionTokenError::KeyAwaited,
            _ => {}
        }
        if now_ms < self.early_from_ms.load(Ordering::Relaxed) {
            return SessionTokenError::Key;
        }
        let is_first =
            self.reading.compare_exchange(IDLE, WANTED, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if is_first {
            // Full only where the thread is about to read in any case.
            let _is_full = self.wanted.0.try_send(());
        }
        SessionTokenError::KeyAwaited
    }
}

/// The last read succeeded, or none has ended yet.
const IDLE: u8 = 0;
/// A token has asked for an early read.
const WANTED: u8 = 1;
/// The last read failed.
const FAILING: u8 = 2;

/// Time between two reads that tokens with unknown keys ask for, so that whoever makes up names of keys costs the login
/// service six requests a minute.
pub const EARLY_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HttpsUrl;

    const SET: &[u8] = br#"{"keys":[
        {"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty":"OKP","crv":"Ed25519","kid":"a","x":"CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk"},
        {"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
         "y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

    fn source(algorithm: Option<TokenAlgorithm>) -> KeySource {
        let place = KeyPlace::Url(HttpsUrl::parse("https://login.example/keys").unwrap());
        KeySource { place, ca: None, refresh: Duration::from_secs(60), algorithm }
    }

    fn set() -> Arc<KeySet> {
        Arc::new(KeySet::parse(SET).unwrap())
    }

    #[test]
    fn an_unknown_key_has_the_set_read_early_and_not_again_for_a_while() {
        let shared = SharedKeySet::new(source(None), None);
        let by =
            |kid, now_ms| shared.keys_for(TokenAlgorithm::EdDsa, Some(kid), now_ms).map(|keys| keys.len());
        assert_eq!(by("a", 0), Err(SessionTokenError::NoKeys), "nothing was read");
        shared.end_read(Ok(set()), 0);
        assert_eq!((by("a", 1), by("b", 1)), (Ok(2), Err(SessionTokenError::Key)));
        assert!(shared.wanted().is_empty());
        let later = EARLY_PAUSE.as_millis() as i64;
        assert_eq!(by("b", later), Err(SessionTokenError::KeyAwaited));
        assert_eq!(by("c", later), Err(SessionTokenError::KeyAwaited));
        assert_eq!((shared.wanted().try_recv(), shared.wanted().len()), (Ok(()), 0), "once");
        shared.end_read(Ok(set()), later);
        assert_eq!(by("b", later + 1), Err(SessionTokenError::Key));
        shared.end_read(Err("away".to_owned()), later);
        assert_eq!((by("b", later), by("a", later)), (Err(SessionTokenError::NoKeys), Ok(2)));
        let state = KeySetState { keys: 3, read_at_ms: Some(later), error: Some("away".to_owned()) };
        assert_eq!(shared.state(), state);
    }

    #[test]
    fn a_token_that_names_no_key_is_by_the_only_one_of_its_algorithm() {
        let shared = SharedKeySet::new(source(None), None);
        shared.end_read(Ok(set()), 0);
        let by = |algorithm| shared.keys_for(algorithm, None, 1).map(|keys| keys.len());
        assert_eq!(by(TokenAlgorithm::ES256), Ok(1));
        assert_eq!(by(TokenAlgorithm::EdDsa), Err(SessionTokenError::Key));
        assert_eq!(by(TokenAlgorithm::RS256), Err(SessionTokenError::Key));
        assert_eq!(by(TokenAlgorithm::HS256), Err(SessionTokenError::Algorithm));
        let only = SharedKeySet::new(source(Some(TokenAlgorithm::EdDsa)), Some(&shared));
        assert_eq!(only.keys_for(TokenAlgorithm::ES256, None, 1), Err(SessionTokenError::Algorithm));
        assert_eq!(only.keys_for(TokenAlgorithm::EdDsa, Some("a"), 1).map(|keys| keys.len()), Ok(2));
    }

    #[test]
    fn a_source_that_stays_keeps_its_keys() {
        let sets = KeySets::default();
        sets.replace([source(None), source(None)].iter());
        let [set_before] = &sets.all()[..] else { panic!("one set for one source") };
        set_before.end_read(Ok(set()), 0);
        let rarer = KeySource { refresh: Duration::from_secs(90), ..source(None) };
        sets.replace([rarer.clone()].iter());
        assert_eq!(sets.of(&rarer).unwrap().keys(), Some(set()));
        assert!(sets.of(&source(None)).is_none());
        sets.replace(std::iter::empty());
        assert!(sets.all().is_empty());
    }
}
