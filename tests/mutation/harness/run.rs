//! Runs one case: breaks what a running relay reads, ends some rows meanwhile, mends it, and judges the decisions.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use sluicegate::authz::{Scope, UnixMillis};
use sluicegate::control::api::ChangeKind;
use sluicegate::store::Relation;

use super::bed::{Bed, EndStyle, Fault, Ground, Scene};
use super::case::{Case, Schedule};
use super::law;
use super::operator::Part;
use super::relay::{Guard, RunningRelay};
use super::rights::{Installation, Question, Rights, RightsKey, RightsRow, Verdict};
use super::store::AnswerRow;
use super::traffic::Traffic;
use super::witness::{Inquiry, Wrong, changes};

/// The figures of a case, and the promises that it broke.
pub struct Outcome {
    pub case: Case,
    pub kinds: Vec<ChangeKind>,
    /// Rows that the fault got wrong in the answer.
    pub touched: usize,
    /// Rows that were decided wrongly at the same time, at most.
    pub wrong: usize,
    pub budget: usize,
    /// Rows for which clients got 503 because it could not be told whose an address is, at most.
    pub disputed: usize,
    /// Reads from the mend to the last wrong decision; the first may have begun before it.
    pub heal_reads: usize,
    /// Longest time from an end to the first refusal.
    pub end_latency: Duration,
    /// Ends that the answer did not show.
    pub unseen_ends: usize,
    /// Ends that probation undid together with the fault, until the mend. Where no outbox names the row that ended, the
    /// one looks like the other.
    pub given_back: usize,
    /// Devices at an address that its owner has left, as the answer has it, at most.
    pub inherited: usize,
    pub requests: usize,
    pub failures: Vec<String>,
}

impl Outcome {
    fn new(case: Case) -> Self {
        Self {
            case,
            kinds: Vec::new(),
            touched: 0,
            wrong: 0,
            budget: 0,
            disputed: 0,
            heal_reads: 0,
            end_latency: Duration::ZERO,
            unseen_ends: 0,
            given_back: 0,
            inherited: 0,
            requests: 0,
            failures: Vec::new(),
        }
    }

    /// The outcome of a case that came to no end.
    pub fn not_run(case: Case) -> Self {
        Self {
            failures: vec!["it did not come to its end; the panic above says why".to_owned()],
            ..Self::new(case)
        }
    }
}

/// A case that is running.
struct Run<'a> {
    case: Case,
    guard: Guard,
    installation: Installation,
    scene: Scene<'a>,
    relay: Option<RunningRelay>,
    traffic: Traffic,
    /// The rights as they are, without those that were ended.
    rights: Rights,
    inquiry: Inquiry,
    ended: Vec<(Relation, usize)>,
    /// Rows whose ends were seen to count.
    refused: Vec<usize>,
    /// Rows that are a base question's and were decided wrongly at some time.
    ever_wrong: HashSet<Question>,
    /// Probation has undone something, in this relay or one before it.
    has_undone: bool,
    outcome: Outcome,
}

pub fn run(case: Case, bed: &Bed, guard: Guard) -> Outcome {
    let mut run = Run::new(case, bed, guard);
    run.breaks();
    run.ends();
    run.tunnels_close();
    if case.schedule == Schedule::Restart {
        run.restarts_the_same();
    }
    run.mends();
    run.ended_stay_ended("after the mend");
    if case.schedule == Schedule::Restart {
        run.restart();
        run.reads(2);
        run.nothing_is_wrong("H4: after the mend and a restart");
        run.ended_stay_ended("after the mend and a restart");
    }
    run.over()
}

impl<'a> Run<'a> {
    fn new(case: Case, bed: &'a Bed, guard: Guard) -> Self {
        let (installation, scene) = (bed.installation, bed.scene());
        let rights = installation.rights();
        let inquiry = Inquiry::new(&installation, &rights, case.mutator.relation, &[], installation.now);
        let outcome = Outcome::new(case);
        let sample = sample(&installation);
        let mut run = Self {
            case,
            guard,
            installation,
            scene,
            relay: None,
            traffic: Traffic::start(installation, sample.clone()),
            rights,
            inquiry,
            ended: Vec::new(),
            refused: Vec::new(),
            ever_wrong: HashSet::new(),
            has_undone: false,
            outcome,
        };
        run.restart();
        run.nothing_is_wrong("at the start");
        let address = run.relay().address();
        let ending = Relation::ALL.map(|relation| run.ending(relation));
        run.traffic.open(address, sample.into_iter().take(TUNNELS).chain(ending));
        run
    }

    fn relay(&self) -> &RunningRelay {
        self.relay.as_ref().expect("a relay runs from the start to the end of a case")
    }

    /// Starts the relay, again where one runs.
    fn restart(&mut self) {
        self.traffic.lead_to(None);
        self.has_undone |= self.relay.as_ref().is_some_and(RunningRelay::has_undone);
        self.relay = None;
        let read_every = if self.case.size < 1000 { READ_EVERY } else { READ_EVERY_OF_MANY };
        let relay = RunningRelay::start(&self.scene, self.guard, self.installation.port, read_every);
        self.traffic.lead_to(Some(relay.address()));
        self.relay = Some(relay);
    }

    fn fails(&mut self, failure: String) {
        let holds = self.relay().holds();
        let failure = if holds.is_empty() { failure } else { format!("{failure} [{holds}]") };
        // One of a kind is enough.
        let is_new = self.outcome.failures.iter().all(|other| other.get(..2) != failure.get(..2));
        if is_new && self.outcome.failures.len() < FAILURES_MAX {
            self.outcome.failures.push(failure);
        }
    }

    fn reads(&mut self, times: usize) {
        if !self.relay().is_read(self.case.mutator.relation, times) {
            self.fails("the store is not read any more".to_owned());
        }
    }

    fn wrong(&mut self) -> Wrong {
        let wrong = self.inquiry.wrong(|question| self.relay().decide(question));
        self.ever_wrong.extend(&wrong.questions);
        wrong
    }

    fn nothing_is_wrong(&mut self, when: &str) {
        let wrong = self.wrong();
        if wrong.rows + wrong.disputed > 0 {
            self.fails(format!(
                "{when}: {} rows are wrong, such as {:?}",
                wrong.rows + wrong.disputed,
                wrong.examples
            ));
        }
    }

    /// Brings the fault about, and judges while it lasts.
    fn breaks(&mut self) {
        let parts = match self.case.schedule {
            Schedule::Drifting => self.case.part.steps(DRIFT_STEPS),
            _ => vec![self.case.part],
        };
        let reads = if parts.len() > 1 { 2 } else { 4 };
        for part in parts {
            let answer = self.scene.inject(self.fault(part));
            self.looks_for_changes(answer.as_deref());
            for _ in 0..reads {
                self.reads(1);
                self.is_bounded();
            }
        }
        self.reads(2);
        self.is_bounded();
    }

    fn fault(&self, part: Part) -> Fault {
        let slow = (self.case.schedule == Schedule::Slow).then_some(SLOW);
        Fault { mutator: self.case.mutator, part, slow }
    }

    /// Takes up the questions that the answer's differences from the rights raise.
    fn looks_for_changes(&mut self, answer: Option<&[AnswerRow]>) {
        let (relation, now) = (self.case.mutator.relation, UnixMillis::now());
        let changes = changes(&self.rights, relation, answer);
        self.inquiry = Inquiry::new(&self.installation, &self.rights, relation, &changes, now);
        let live = |kind| self.rights.live(relation, kind, now);
        let budget = match self.case.ground {
            Ground::Statements => law::explicit_budget(live(ChangeKind::Ended)),
            _ => self.inquiry.kinds.iter().map(|kind| law::budget(*kind, live(*kind))).sum(),
        };
        let outcome = &mut self.outcome;
        outcome.kinds.extend(self.inquiry.kinds.iter().copied());
        outcome.kinds.sort();
        outcome.kinds.dedup();
        outcome.touched = outcome.touched.max(self.inquiry.witnesses.len());
        outcome.budget = outcome.budget.max(budget);
    }

    /// H1 and H5.
    fn is_bounded(&mut self) {
        let wrong = self.wrong();
        self.outcome.wrong = self.outcome.wrong.max(wrong.rows);
        self.outcome.disputed = self.outcome.disputed.max(wrong.disputed);
        self.outcome.inherited = self.outcome.inherited.max(wrong.inherited);
        if wrong.rows > self.outcome.budget {
            let (rows, budget) = (wrong.rows, self.outcome.budget);
            let kinds = &self.inquiry.kinds;
            self.fails(format!(
                "H1: {rows} rows are wrong, the budget of {kinds:?} is {budget}; such as {:?}",
                wrong.examples
            ));
        }
        if let Some(first) = wrong.misrouted.first() {
            let count = wrong.misrouted.len();
            self.fails(format!("H5: {count} devices are at another's address, such as {first}"));
        }
    }

    /// H3: ends a credential, a grant and a device.
    fn ends(&mut self) {
        let style = match (self.case.number() / 7) % 3 {
            0 => EndStyle::Delete,
            1 => EndStyle::Revoke,
            _ => EndStyle::Expire,
        };
        for relation in Relation::ALL {
            self.end(relation, style);
        }
        let answer = self.scene.answer(self.case.mutator.relation);
        self.looks_for_changes(answer.as_deref());
        for row in endings(&self.installation) {
            self.inquiry.spare(&self.installation.question(row));
        }
        self.reads(2);
        self.is_bounded();
    }

    fn end(&mut self, relation: Relation, style: EndStyle) {
        let row = self.ending(relation);
        let n = match relation {
            Relation::Devices => self.installation.target(row),
            _ => row,
        };
        let key = match relation {
            Relation::Credentials => RightsRow::Credential(self.installation.credential(n)).key(),
            Relation::Grants => RightsRow::Grant(self.installation.grant(n)).key(),
            Relation::Devices => RightsRow::Device(self.installation.device(n)).key(),
        };
        let question = self.installation.question(row);
        let before = self.scene.answer(relation);
        let began = Instant::now();
        self.scene.end(relation, n, style);
        self.rights = self.rights.with(key, None);
        self.ended.push((relation, n));
        let is_shown = self.is_shown(relation, key, before.as_deref());
        if !is_shown {
            self.outcome.unseen_ends += 1;
            return;
        }
        let is_refused = self.is_refused(relation, &question);
        self.outcome.end_latency = self.outcome.end_latency.max(began.elapsed());
        if !is_refused {
            self.fails(format!("H3: {key:?} has ended ({style:?}), and is not refused"));
            return;
        }
        self.traffic.end(row);
        self.refused.push(row);
    }

    /// True where the relay can know that a row has ended: the outbox says it, or the answer has it as live before and
    /// as ended or absent now, and not among so many that they are a mass.
    fn is_shown(&mut self, relation: Relation, key: RightsKey, before: Option<&[AnswerRow]>) -> bool {
        let now = UnixMillis::now();
        if self.case.ground == Ground::Statements && relation == self.case.mutator.relation {
            // A part of the mass, or one more of it.
            return false;
        }
        let live = |answer: Option<&[AnswerRow]>| {
            let rows = answer.unwrap_or_default().iter().filter_map(|row| row.as_ref().ok());
            rows.filter(|row| row.key() == key && !row.has_ended(now)).count()
        };
        let after = self.scene.answer(relation);
        // Of a row that does not decode, the last good version stays.
        let is_readable = !after.iter().flatten().any(|row| matches!(row, Err(Some(of)) if *of == key));
        let is_seen = live(before) == 1 && live(after.as_deref()) == 0 && is_readable;
        if self.case.ground != Ground::Foreign {
            return true;
        }
        is_seen && !self.is_budget_used_up(relation, after.as_deref())
    }

    /// True where wrong rows that are in force, or are about to be, leave no room for an end that nothing but the answer
    /// tells.
    fn is_budget_used_up(&self, relation: Relation, answer: Option<&[AnswerRow]>) -> bool {
        let now = UnixMillis::now();
        let changes = changes(&self.rights, relation, answer);
        let wrong = self.inquiry.wrong(|question| self.relay().decide(question));
        [ChangeKind::Absent, ChangeKind::Ended].into_iter().any(|kind| {
            let budget = law::budget(kind, self.rights.live(relation, kind, now));
            let so_far = changes.iter().filter(|change| law::kinds(change, now).contains(&kind)).count();
            let in_force = wrong.by_kind.get(&kind).copied().unwrap_or_default();
            let in_force = if relation == self.case.mutator.relation { in_force } else { 0 };
            // What drifts takes effect until the budget is used up.
            let is_drifting = self.case.schedule == Schedule::Drifting;
            let is_used_up = so_far + 1 > budget && (is_drifting || so_far <= budget);
            is_used_up || in_force + 1 > budget
        })
    }

    fn is_refused(&self, relation: Relation, question: &Question) -> bool {
        let is_refused = || matches!(self.relay().decide(question), Verdict::Refuse);
        if self.case.ground == Ground::Foreign {
            // The first of these reads may have begun before the end.
            let is_in_time = (0..HEALS_WITHIN).any(|_| self.relay().is_read(relation, 1) && is_refused());
            // What was read is put in force a moment later.
            let settles_until = Instant::now() + SETTLES_WITHIN;
            let mut is_settled = is_in_time;
            while !is_settled && Instant::now() < settles_until {
                std::thread::sleep(Duration::from_millis(10));
                is_settled = is_refused();
            }
            return is_settled;
        }
        let give_up_at = Instant::now() + ENDS_WITHIN;
        while !is_refused() {
            if Instant::now() > give_up_at {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    fn ended_stay_ended(&mut self, when: &str) {
        for relation in Relation::ALL {
            let question = self.installation.question(self.ending(relation));
            if !matches!(self.relay().decide(&question), Verdict::Refuse) {
                self.fails(format!("H3: what ended in {} is back {when}", relation.name()));
            }
        }
    }

    /// H4.
    fn restarts_the_same(&mut self) {
        // Answers that were under way at the last change are judged first, and two from after it.
        self.reads(2);
        let questions: Vec<_> = self.inquiry.questions().copied().collect();
        let decisions =
            |run: &Self| questions.iter().map(|question| run.relay().decide(question)).collect::<Vec<_>>();
        let before = decisions(self);
        self.traffic.forget_tunnels();
        self.restart();
        self.reads(3);
        let after = decisions(self);
        let different =
            before.iter().zip(&after).zip(&questions).filter(|((before, after), _)| before != after);
        let different: Vec<_> = different.collect();
        if let Some(((before, after), question)) = different.first() {
            let count = different.len();
            self.fails(format!("H4: {count} decisions differ after a restart, such as {before:?} -> {after:?} of {question:?}"));
        }
        self.is_bounded();
    }

    /// H2.
    fn mends(&mut self) {
        let ended = self.ended.clone();
        self.scene.mend(&ended);
        // The same questions, and none of them is spared any more.
        self.inquiry.spare_none();
        for reads in 1..=HEALS_MAX {
            self.reads(1);
            let mut wrong = self.wrong();
            let settles_until = Instant::now() + SETTLES_WITHIN;
            while wrong.rows + wrong.disputed > 0 && reads == HEALS_WITHIN && Instant::now() < settles_until {
                std::thread::sleep(Duration::from_millis(10));
                wrong = self.wrong();
            }
            if wrong.rows + wrong.disputed == 0 {
                self.outcome.heal_reads = reads;
                break;
            }
            if reads == HEALS_WITHIN {
                let rows = wrong.rows + wrong.disputed;
                self.fails(format!("H2: {rows} rows are wrong after the mend, such as {:?}", wrong.examples));
            }
            self.outcome.heal_reads = reads + 1;
        }
    }

    /// H3: tunnels of ended rights close. One whose end was inferred gets some seconds, which not every case waits for.
    fn tunnels_close(&mut self) {
        let is_explicit = self.case.ground != Ground::Foreign;
        for row in std::mem::take(&mut self.refused) {
            let is_waited_for = is_explicit || self.case.number().is_multiple_of(FEW);
            if is_waited_for && !self.traffic.closes(row, CLOSES_WITHIN) {
                self.lives_on(format!("H3: what row {row} rests on has ended, and its tunnel stays open"));
            }
        }
    }

    /// A right that has ended is used before the mend.
    fn lives_on(&mut self, failure: String) {
        self.has_undone |= self.relay().has_undone();
        if self.case.ground == Ground::Foreign && self.has_undone {
            self.outcome.given_back += 1;
        } else {
            self.fails(failure);
        }
    }

    fn over(mut self) -> Outcome {
        let closed = self.traffic.closed();
        let unexplained = closed.into_iter().filter(|row| {
            let question = self.installation.question(*row);
            !self.ever_wrong.contains(&question) && self.inquiry.right(&question) != Verdict::Refuse
        });
        if let Some(row) = unexplained.min() {
            self.fails(format!("a tunnel by row {row} was closed, and its right was never gone"));
        }
        let (by_ended, others): (Vec<_>, Vec<_>) =
            self.traffic.failures().into_iter().partition(|failure| failure.starts_with("H3"));
        by_ended.into_iter().take(1).for_each(|failure| self.lives_on(failure));
        others.into_iter().take(1).for_each(|failure| self.fails(failure));
        self.outcome.requests = self.traffic.requests();
        self.outcome
    }

    /// The row by which the ended row of a relation is asked for.
    fn ending(&self, relation: Relation) -> usize {
        let place = Relation::ALL.iter().position(|each| *each == relation);
        endings(&self.installation)[place.expect("one of all")]
    }
}

/// Rows that a case ends: the last ones that are good and have a grant on one device. `Part::One` touches none of them.
fn endings(installation: &Installation) -> [usize; 3] {
    let rights = installation.rights();
    let is_plain = |n: &usize| {
        let is_allowed = rights.decide(&installation.question(*n), installation.now) != Verdict::Refuse;
        let is_of_one = matches!(installation.grant(*n).scope, Scope::Device(_));
        is_allowed && is_of_one && *n > 0 && ![2, 3].contains(n) && ![2, 3].contains(&installation.target(*n))
    };
    let mut plain = (0..installation.devices).rev().filter(is_plain);
    let mut next = || plain.next().or((0..installation.devices).rev().find(|n| *n > 3));
    [(); 3].map(|()| next().expect("an installation of five devices or more"))
}

/// Rows that clients ask by: good ones, and a few that have ended.
fn sample(installation: &Installation) -> Vec<usize> {
    let rights = installation.rights();
    let is_good = |n: &usize| rights.decide(&installation.question(*n), installation.now) != Verdict::Refuse;
    let good = (0..installation.devices).filter(is_good).take(SAMPLE);
    good.chain(installation.devices..installation.rows().min(installation.devices + 4)).collect()
}

/// Time that a slow query takes.
const SLOW: Duration = Duration::from_millis(700);

/// Steps in which a fault drifts to its part.
const DRIFT_STEPS: u8 = 5;

/// Reads within which nothing is wrong any more after the mend: two, and one that had begun before.
const HEALS_WITHIN: usize = 3;

/// Time from a read to the decisions by it, at most. The control thread sorts an answer in parts, and a busy machine may
/// leave it aside meanwhile.
const SETTLES_WITHIN: Duration = Duration::from_millis(500);

/// Reads after which a case stops waiting for decisions to be right again.
const HEALS_MAX: usize = 8;

/// Time from an end that the outbox records to the refusal, at most. The figure is much smaller; machines that run
/// tests are busy.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// Time from the refusal to the end of the tunnel. An end that was inferred closes a tunnel after five seconds.
const CLOSES_WITHIN: Duration = Duration::from_secs(12);

/// Time between two reads.
const READ_EVERY: Duration = Duration::from_millis(20);
const READ_EVERY_OF_MANY: Duration = Duration::from_millis(150);

/// Good rows that clients ask by.
const SAMPLE: usize = 24;

/// Tunnels that stay open, beside those of rows that are ended.
const TUNNELS: usize = 4;

/// One case of so many waits for tunnels that close slowly.
const FEW: usize = 8;

const FAILURES_MAX: usize = 4;
