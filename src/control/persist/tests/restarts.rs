//! A restart decides as if there had been none, wherever a crash came.

use std::fs;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::store::StoreId;

#[derive(Clone, Debug)]
enum Event {
    Step(JournalRecord),
    /// A state is written, and this step comes while it is.
    Save(JournalRecord),
    Outdate,
    Confirm,
    Restart,
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (0..4_u8, any::<bool>()).prop_map(|(token, revoked)| Change::Credential(credential(token, revoked))),
        (0..4_u8).prop_map(|token| Change::CredentialGone(KeyHash::of_token(&[token]))),
        (0..6_i64, any::<bool>()).prop_map(|(id, revoked)| Change::Grant(grant(id, revoked))),
        (0..6_i64).prop_map(|id| Change::GrantGone(GrantId(id))),
        (0..4_i64, any::<u8>()).prop_map(|(id, address)| Change::Device(device(id, address))),
        (0..4_i64).prop_map(|id| Change::DeviceGone(DeviceId(id))),
    ]
}

fn any_end() -> impl Strategy<Value = End> {
    prop_oneof![
        (0..4_u8).prop_map(|token| End::Credential(KeyHash::of_token(&[token]))),
        (0..6_i64).prop_map(grant_end),
        (0..3_i64).prop_map(|id| End::Principal(PrincipalId(id))),
    ]
}

fn any_memory() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![Just(None), vec(any::<u8>(), 0..20).prop_map(Some),]
}

fn any_step() -> impl Strategy<Value = JournalRecord> {
    let rows = (vec(any_change(), 0..3), vec(any_change(), 0..3));
    let ends = (vec(any_end(), 0..3), vec(any_end(), 0..3));
    let places = (proptest::option::of(any::<[u8; 4]>()), proptest::option::of(1..9_u64));
    (rows, ends, any_memory(), places).prop_map(|((inferred, words), (lifted, ended), memory, places)| {
        let (bookmark, log) = places;
        let position = |log| Position { store: StoreId([7; 16]), timeline: 1, log, mark: 0 };
        JournalRecord {
            generation: log.map(|log| Generation(10 + log)),
            inferred,
            words,
            lifted,
            ended,
            memory,
            bookmark: bookmark.map(|bytes| Bookmark(bytes.to_vec())),
            position: log.map(position),
        }
    })
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => any_step().prop_map(Event::Step),
        2 => any_step().prop_map(Event::Save),
        1 => Just(Event::Outdate),
        1 => Just(Event::Confirm),
        1 => Just(Event::Restart),
    ]
}

/// A node that is told what happens, and what is expected of a restart.
struct History {
    folder: StateFolder,
    process: Persistence,
    in_force: InForce,
    /// What a restart begins with; it differs from what is in force where a step was not recorded whole.
    on_disk: Option<InForce>,
    has_gap: bool,
}

impl History {
    fn new() -> Self {
        let folder = StateFolder::new();
        let mut process = folder.process();
        process.limits.file = 300;
        assert!(process.load().unwrap().is_none());
        Self { folder, process, in_force: InForce::new(0..3), on_disk: None, has_gap: false }
    }

    fn go_on(&mut self, event: &Event) {
        match event {
            Event::Step(record) => self.step(record),
            Event::Save(record) => self.save(record),
            Event::Outdate => {
                let change = [Change::Grant(grant(5, false))];
                self.in_force.snapshot =
                    self.in_force.snapshot.apply(self.in_force.snapshot.generation(), &change);
                self.process.outdate();
                self.has_gap = true;
            }
            Event::Confirm => self.process.confirm(UnixMillis(self.process.confirmed_at.0 + 20_000)),
            Event::Restart => self.restart(),
        }
        self.assert_restart(&self.folder.path());
    }

    fn step(&mut self, record: &JournalRecord) {
        let before = self.on_disk.clone();
        let path = self.journal();
        let bytes_before = path.as_ref().map_or(0, |path| fs::metadata(path).unwrap().len());
        self.record(record);
        if let (Some(before), Some(path)) = (before, path) {
            assert_torn_is_none(&self.folder.path(), &path, bytes_before, &before);
        }
    }

    fn record(&mut self, record: &JournalRecord) {
        self.process.record(record);
        self.in_force.apply(record);
        let recorded = if self.has_gap { record.clone().words_alone() } else { record.clone() };
        if let Some(on_disk) = &mut self.on_disk {
            on_disk.apply(&recorded);
        }
    }

    /// Saves, and restarts at each point at which a crash can come.
    fn save(&mut self, record: &JournalRecord) {
        let path = self.folder.path();
        let before = Image::of(&path);
        self.process.keep(&self.in_force.view(), self.in_force.beside());
        let in_force = self.in_force.clone();
        self.record(record);
        let journals = Image::of(&path).journals();
        self.process.finish_saving();
        let after = Image::of(&path);
        // Only the state, without the step that came meanwhile.
        let with_gap = std::mem::replace(&mut self.has_gap, false);
        let on_disk_before = self.on_disk.replace(in_force);
        self.on_disk.as_mut().unwrap().apply(record);

        let state = after.state().unwrap();
        if before.state().is_some() {
            // The journal of the next state was begun, and the state written in part.
            self.has_gap = with_gap;
            let on_disk_after = std::mem::replace(&mut self.on_disk, on_disk_before);
            for len in [0, 30, state.len() / 2, state.len()] {
                let mut files = before.clone().with(&journals);
                files.0.push(("last-good.new".to_owned(), state[..len].to_vec()));
                files.put(|folder| self.assert_restart(folder));
            }
            (self.on_disk, self.has_gap) = (on_disk_after, false);
        }
        // The state was moved to its place, and the old journals are there still.
        before.with(&after).put(|folder| self.assert_restart(folder));
    }

    fn restart(&mut self) {
        drop(std::mem::replace(&mut self.process, process(&std::env::temp_dir().join("none"))));
        let mut process = self.folder.process();
        process.limits.file = 300;
        if let Some(kept) = process.load().unwrap() {
            self.in_force = InForce::of(kept);
        }
        self.process = process;
    }

    fn journal(&self) -> Option<PathBuf> {
        let number = self.process.journal.as_ref()?.place().number;
        Some(self.folder.path().join(format!("last-good.journal.{number}")))
    }

    fn assert_restart(&self, folder: &Path) {
        let restored = restored(folder).unwrap();
        let has_gap = restored.as_ref().is_some_and(|kept| kept.has_gap);
        let expected = self.on_disk.as_ref().map(InForce::facts);
        assert_eq!(restored.map(InForce::of).as_ref().map(InForce::facts), expected);
        assert_eq!(has_gap, self.has_gap && self.on_disk.is_some());
    }
}

/// A step that was torn off at any byte has not been.
fn assert_torn_is_none(folder: &Path, journal: &Path, bytes_before: u64, before: &InForce) {
    let whole = fs::read(journal).unwrap();
    for len in bytes_before as usize..whole.len() {
        fs::write(journal, &whole[..len]).unwrap();
        let kept = restored(folder).unwrap().unwrap();
        assert_eq!(InForce::of(kept).facts(), before.facts(), "{len} of {} bytes", whole.len());
    }
    fs::write(journal, &whole).unwrap();
}

/// The files of a folder.
#[derive(Clone)]
struct Image(Vec<(String, Vec<u8>)>);

impl Image {
    fn of(folder: &Path) -> Self {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        Self(
            entries
                .filter_map(|e| Some((e.file_name().into_string().ok()?, fs::read(e.path()).ok()?)))
                .collect(),
        )
    }

    fn state(&self) -> Option<&[u8]> {
        self.0.iter().find(|(name, _)| name == "last-good.snapshot").map(|(_, bytes)| &bytes[..])
    }

    fn journals(mut self) -> Self {
        self.0.retain(|(name, _)| name.contains("journal"));
        self
    }

    /// The files of both; where both have one, the others' counts.
    fn with(mut self, other: &Self) -> Self {
        self.0.retain(|(name, _)| other.0.iter().all(|(others, _)| others != name));
        self.0.extend(other.0.iter().cloned());
        self
    }

    fn put(&self, check: impl FnOnce(&Path)) {
        let folder = tempfile::tempdir().unwrap();
        self.0.iter().for_each(|(name, bytes)| fs::write(folder.path().join(name), bytes).unwrap());
        check(folder.path());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(16) })]

    #[test]
    fn a_crash_at_any_byte_and_between_all_steps_of_a_save_changes_no_decision(events in vec(any_event(), 1..14)) {
        let mut history = History::new();
        events.iter().for_each(|event| history.go_on(event));
    }
}

#[test]
fn rows_memory_and_bookmark_come_back_as_of_one_moment() {
    let mut in_force = InForce::new(1..=3);
    in_force.memory = vec![1, 2, 3];
    in_force.bookmark = Some(Bookmark(vec![9]));
    let (folder, mut process) = StateFolder::kept(&in_force.view(), in_force.beside());
    process.confirm(UnixMillis(1_000_000));
    process.record_time(UnixMillis(1_000_500));
    let step = JournalRecord {
        inferred: vec![Change::Grant(grant(1, true))],
        memory: Some(vec![4]),
        bookmark: Some(Bookmark(vec![10])),
        ..deletion(2)
    };
    process.record(&step);
    drop(process);

    let kept = folder.process().load().unwrap().unwrap();

    assert_eq!((kept.confirmed_at, kept.seen_at), (UnixMillis(1_000_000), UnixMillis(1_000_500)));
    assert_eq!(kept.memory, [4]);
    assert_eq!(kept.bookmark, Some(Bookmark(vec![10])));
    let kept = InForce::of(kept);
    assert_eq!([1, 2, 3].map(|id| kept.has_grant(id)), [false, false, true]);
}

#[test]
fn the_newer_word_wins() {
    let in_force = InForce::new(1..=2);
    let (folder, mut process) = StateFolder::kept(&in_force.view(), KeptBeside::default());
    let revival = |id| JournalRecord {
        words: vec![Change::Grant(grant(id, false))],
        lifted: vec![grant_end(id)],
        ..JournalRecord::default()
    };
    for record in [deletion(1), revival(1), revival(2), deletion(2)] {
        process.record(&record);
    }
    drop(process);
    assert_eq!([1, 2].map(|id| has_grant(folder.restored(), id)), [true, false]);
}

#[test]
fn the_latest_time_seen_outlives_a_restart_and_does_not_go_back() {
    let (folder, mut process) = StateFolder::kept(&InForce::new(0..1).view(), KeptBeside::default());
    process.record_time(UnixMillis(50_000));
    process.record_time(UnixMillis(20_000));
    assert_eq!(folder.restored().unwrap().unwrap().seen_at, UnixMillis(50_000));
    // Not written by itself yet, but with the next step.
    process.record_time(UnixMillis(50_001));
    process.record(&deletion(0));
    drop(process);
    let mut process = folder.process();
    assert_eq!(process.load().unwrap().unwrap().seen_at, UnixMillis(50_001));
    process.keep(&InForce::new(0..1).view(), KeptBeside::default());
    process.finish_saving();
    assert_eq!(folder.restored().unwrap().unwrap().seen_at, UnixMillis(50_001));
}

#[test]
fn other_queries_of_one_relation_are_named() {
    let (folder, mut process) = StateFolder::kept(&InForce::new(0..1).view(), KeptBeside::default());
    let mut config = Config::default();
    config.authz.queries.grants =
        Some(crate::config::RelationQuery { file: PathBuf::new(), sql: "SELECT 1".to_owned() });
    let other = queries_digest(&config.store, &config.authz);
    assert_eq!(folder.restored().unwrap().unwrap().other_queries, []);
    process.read_by(other);
    assert_eq!(folder.restored().unwrap().unwrap().other_queries, [Relation::Grants]);
}
