//! A store in memory that says what a bench has it say, and a control thread that reads it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender};
use parking_lot::Mutex;
use sluicegate::authz::{Authority, Change, Device, Grant, GrantId};
use sluicegate::config::{Config, Queries};
use sluicegate::control::{Control, StoreAccess};
use sluicegate::store::{
    AddressLayer, Bookmark, Comparison, KnownPosition, Position, Relation, RelationAnswer, RelationRows,
    ReportQueue, Standing, StoreError, StoreId, StoreReader, Word, Words, WordsAnswer,
};
use sluicegate::telemetry::AuditSender;

use super::support::Population;

/// The store, for the bench.
#[derive(Clone)]
pub struct MadeStore {
    state: Arc<Mutex<State>>,
    wake: Sender<()>,
    woken: Receiver<()>,
}

/// How the answers about a relation differ from the population.
#[derive(Clone, Copy, Default)]
pub struct Slip {
    /// Grants that are missing, from the first.
    pub absent_grants: usize,
    /// Devices that have another address, from the first.
    pub moved_devices: usize,
}

struct State {
    grants: usize,
    slip: Slip,
    words: VecDeque<Vec<Word>>,
    /// The grants of words, as whole answers have them from then on: `None` where it is deleted.
    grants_told: HashMap<GrantId, Option<Grant>>,
    /// The same for devices.
    devices_told: HashMap<i64, Device>,
    /// Words and changes so far.
    log: u64,
    /// Changes of whole relations so far.
    version: u64,
}

struct MadeReader {
    store: MadeStore,
    has_begun: bool,
    /// Version of each relation that this reader has read last.
    seen: [Option<u64>; 3],
}

impl MadeStore {
    pub fn new(grants: usize) -> Self {
        let (wake, woken) = channel::bounded(WAKE_UPS_MAX);
        let state = State {
            grants,
            slip: Slip::default(),
            words: VecDeque::new(),
            grants_told: HashMap::new(),
            devices_told: HashMap::new(),
            log: 1,
            version: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), wake, woken }
    }

    /// Records words that a relay reads together.
    pub fn say(&self, words: Vec<Word>) {
        let mut state = self.state.lock();
        state.log += 1;
        words.iter().for_each(|word| state.tell(word));
        state.words.push_back(words);
        drop(state);
        self.wake.send(()).expect("the store lives as long as its readers");
    }

    /// Has all relations read whole again, as they are now.
    pub fn change(&self, slip: Slip) {
        let mut state = self.state.lock();
        state.log += 1;
        state.version += 1;
        state.slip = slip;
    }
}

impl State {
    /// Has whole answers show what a word says of the population's rows.
    fn tell(&mut self, word: &Word) {
        let is_known = |id: GrantId, grants: usize| (0..grants as i64).contains(&id.0);
        match word {
            Word::Row(Change::Grant(grant)) if is_known(grant.id, self.grants) => {
                self.grants_told.insert(grant.id, Some(*grant));
            }
            Word::Row(Change::GrantGone(id)) if is_known(*id, self.grants) => {
                self.grants_told.insert(*id, None);
            }
            Word::Row(Change::Device(device)) => {
                self.devices_told.insert(device.id.0, device.clone());
            }
            _ => {}
        }
    }

    fn rows(&self, relation: Relation) -> RelationRows {
        match relation {
            Relation::Credentials => RelationRows::Credentials(Population::credentials_of(self.grants)),
            Relation::Grants => {
                let rows = Population::grants_of(self.grants).into_iter().skip(self.slip.absent_grants);
                let told = |grant: Grant| self.grants_told.get(&grant.id).copied().unwrap_or(Some(grant));
                RelationRows::Grants(rows.filter_map(told).collect())
            }
            Relation::Devices => {
                let mut rows = Population::devices_of(self.grants);
                rows.iter_mut().take(self.slip.moved_devices).for_each(|device| *device = moved(device));
                let told = rows.iter_mut().filter_map(|row| Some((self.devices_told.get(&row.id.0)?, row)));
                told.for_each(|(told, row)| *row = told.clone());
                RelationRows::Devices(rows)
            }
        }
    }
}

impl StoreReader for MadeReader {
    fn read_relation(&mut self, relation: Relation) -> Result<RelationAnswer, StoreError> {
        let state = self.store.state.lock();
        let position = position(state.log);
        let rows = if self.seen[relation as usize].replace(state.version) == Some(state.version) {
            RelationRows::Unchanged
        } else {
            state.rows(relation)
        };
        drop(state);
        let (quarantined, ended) = Default::default();
        let standing = Standing::Newer;
        Ok(RelationAnswer { rows, quarantined, ended, position, durable: position, standing })
    }

    fn read_words(&mut self) -> Result<WordsAnswer, StoreError> {
        let mut state = self.store.state.lock();
        let words = match state.words.pop_front() {
            _ if !std::mem::replace(&mut self.has_begun, true) => Words::Behind,
            Some(words) => Words::Some { words, quarantined: Vec::new() },
            None => Words::Nothing,
        };
        let position = position(state.log);
        let standing = Standing::Newer;
        Ok(WordsAnswer { words, position, durable: position, standing, readable_since: None })
    }

    fn bookmark(&self) -> Option<Bookmark> {
        self.has_begun.then(|| Bookmark(Vec::new()))
    }

    fn resume(&mut self, _: Bookmark) {}

    fn compare(&mut self, _: &Queries) -> Result<Comparison, StoreError> {
        unreachable!("no bench compares queries")
    }

    fn replace_queries(&mut self, _: Queries) {}

    fn follows_outbox(&self) -> bool {
        true
    }

    fn wake_ups(&mut self) -> Receiver<()> {
        self.store.woken.clone()
    }

    fn describe(&self) -> String {
        "a made store".to_owned()
    }
}

/// A running control thread on a made store.
pub struct Node {
    pub store: MadeStore,
    pub authority: Arc<Authority>,
    pub control: Control,
    /// One for each publication.
    pub published: Receiver<()>,
}

impl Node {
    pub fn start(store: MadeStore, config: &Config) -> Self {
        let reader = store.clone();
        let access = StoreAccess {
            readers: Arc::new(move || {
                Box::new(MadeReader { store: reader.clone(), has_begun: false, seen: [None; 3] })
            }),
            known: KnownPosition::default(),
            layer: AddressLayer::new(config, &ReportQueue::default()),
            running: None,
            peer_tls: None,
        };
        let authority = Arc::new(Authority::new(Duration::from_secs(3600), None));
        let (publishes, published) = channel::unbounded();
        let on_publish = move || publishes.send(()).unwrap_or_default();
        let audit = AuditSender::disabled();
        let control = Control::start(access, Arc::clone(&authority), on_publish, audit, config).unwrap();
        Self { store, authority, control, published }
    }

    /// Waits until `is_so`, for minutes.
    pub fn wait_for(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..WAITS_MAX {
            if is_so(self) {
                return;
            }
            std::thread::sleep(WAIT);
        }
        panic!("{what} does not come: {:?}", self.control.status().get());
    }
}

/// The device at an address that no other has.
pub fn moved(device: &Device) -> Device {
    let free = std::net::Ipv4Addr::from_bits(0x6440_0000 + device.id.0 as u32);
    Device { address: Some(free.into()), ..device.clone() }
}

fn position(log: u64) -> Position {
    Position { store: StoreId([7; 16]), timeline: 0, log, mark: 0 }
}

/// Wake-ups that wait for the reader.
const WAKE_UPS_MAX: usize = 100_000;

const WAIT: Duration = Duration::from_millis(50);

const WAITS_MAX: usize = 6_000;
