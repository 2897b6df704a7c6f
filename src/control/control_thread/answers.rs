//! Whole answers on their way to the guard.
//!
//! To find where an answer differs takes a look at every row. That is done beside the control thread, and what differs is
//! sorted here some rows at a time, so that no word and no command waits for either.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender};

use super::ControlThread;
use crate::authz::{Snapshot, UnixMillis};
use crate::control::guard::{ComparedAnswer, ComparisonBase, Judged, Sorting, WholeAnswer};
use crate::control::readers::{ReadContext, ReadError, message};
use crate::store::Relation;
use crate::sys::service_thread::ServiceThread;

/// Answers that are compared, and those that wait for the guard.
pub(super) struct Answers {
    jobs: Sender<Job>,
    /// Answers that nobody needs any more.
    spent: Sender<Arc<Snapshot>>,
    done: Receiver<Done>,
    /// Answers of each relation that the guard has not judged.
    under_way: [usize; 3],
    compared: VecDeque<Done>,
    sorting: Option<(Sorting, Heard)>,
    _thread: ServiceThread,
}

/// When an answer was read, and the state of its reader then.
pub(super) struct Heard {
    pub(super) at: UnixMillis,
    pub(super) context: ReadContext,
}

struct Job {
    answer: WholeAnswer,
    base: ComparisonBase,
    heard: Heard,
}

/// A comparison that has ended. A fault in it is one of our own.
pub(super) struct Done {
    relation: Relation,
    compared: Result<ComparedAnswer, String>,
    heard: Heard,
}

impl Answers {
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, received) = channel::bounded::<Job>(JOBS_MAX);
        let (spent, unneeded) = channel::bounded::<Arc<Snapshot>>(JOBS_MAX);
        let (results, done) = channel::bounded(JOBS_MAX);
        let thread = ServiceThread::start_detached("answers", move |stop| {
            loop {
                channel::select! {
                    recv(stop.channel()) -> _ => return,
                    recv(unneeded) -> answer => drop(answer),
                    recv(received) -> job => {
                        let Ok(Job { answer, base, heard }) = job else { return };
                        let relation = answer.relation;
                        let compared = catch_unwind(AssertUnwindSafe(|| answer.compare(base)));
                        let compared = compared.map_err(|panic| message(&*panic));
                        if results.send(Done { relation, compared, heard }).is_err() {
                            return;
                        }
                    }
                }
            }
        })?;
        let (compared, under_way) = (VecDeque::new(), [0; 3]);
        Ok(Self { jobs, spent, done, under_way, compared, sorting: None, _thread: thread })
    }

    pub(super) const fn done(&self) -> &Receiver<Done> {
        &self.done
    }

    pub(super) fn push(&mut self, done: Done) {
        self.compared.push_back(done);
    }

    /// A channel that has something at once while there is something to sort.
    pub(super) fn work(&self) -> Receiver<std::time::Instant> {
        let has_work = self.sorting.is_some() || !self.compared.is_empty();
        if has_work { channel::after(Duration::ZERO) } else { channel::never() }
    }

    /// Leaves an answer to the other thread: to free millions of rows takes a second.
    fn discard(&self, answer: Option<Arc<Snapshot>>) {
        // Where that has no room, it is freed here.
        let _freed_here = answer.map(|answer| self.spent.try_send(answer));
    }

    fn end(&mut self, relation: Relation) {
        let count = &mut self.under_way[relation as usize];
        *count = count.saturating_sub(1);
    }

    fn is_idle(&self) -> bool {
        self.under_way == [0; 3]
    }
}

impl ControlThread {
    /// Has `answer` compared. One that comes while others of its relation wait is read again later.
    pub(super) fn compare_answer(&mut self, answer: WholeAnswer, heard: Heard) {
        let relation = answer.relation;
        if self.answers.under_way[relation as usize] >= UNDER_WAY_MAX {
            self.readers.read_afresh(relation);
            return;
        }
        let base = self.guard.begin_comparison(heard.at);
        self.answers.under_way[relation as usize] += 1;
        if self.answers.jobs.try_send(Job { answer, base, heard }).is_err() {
            // There is room for all that may be under way, so the thread has ended.
            self.give_up(relation, "its thread has ended");
        }
    }

    /// Goes on with the answer that came first.
    pub(super) fn judge_some(&mut self) {
        let now = self.now();
        let (mut sorting, heard) = match self.answers.sorting.take() {
            Some(begun) => begun,
            None => {
                let Some(Done { relation, compared, heard }) = self.answers.compared.pop_front() else {
                    return;
                };
                match compared {
                    Ok(compared) => (self.guard.begin_sorting(compared, now), heard),
                    Err(fault) => return self.give_up(relation, &fault),
                }
            }
        };
        if !self.guard.sort_some(&mut sorting, now) {
            self.answers.sorting = Some((sorting, heard));
            return;
        }
        let relation = sorting.relation();
        self.answers.end(relation);
        let answer = sorting.answer();
        let judged = self.guard.finish(sorting, now);
        self.answers.discard(answer);
        match judged {
            Some(judged) => {
                self.store.succeed(Some(relation), &heard.context, heard.at);
                self.publish(judged, None);
                self.confirm();
            }
            None => {
                self.readers.read_afresh(relation);
                self.publish(Judged::default(), None);
            }
        }
    }

    /// Judges everything that has come, and waits for what is being compared.
    pub(super) fn settle_answers(&mut self) {
        while !self.answers.is_idle() {
            if let Ok(done) = self.answers.done.try_recv() {
                self.answers.push(done);
            } else if self.answers.sorting.is_some() || !self.answers.compared.is_empty() {
                self.judge_some();
            } else if let Ok(done) = self.answers.done.recv() {
                self.answers.push(done);
            } else {
                return;
            }
        }
    }

    /// Gives up what is under way, after a fault of our own.
    pub(super) fn drop_answers(&mut self) {
        self.guard.forget_comparisons();
        (self.answers.sorting, self.answers.under_way) = (None, [0; 3]);
    }

    fn give_up(&mut self, relation: Relation, fault: &str) {
        self.answers.end(relation);
        self.guard.forget_comparisons();
        self.readers.read_afresh(relation);
        let now = self.now();
        self.store.fail_read(Some(relation), &ReadError::Fault(fault.to_owned()), now);
        self.publish(Judged::default(), None);
    }
}

/// Answers of one relation that may be under way: one that is compared or sorted, and the next.
const UNDER_WAY_MAX: usize = 2;

/// Answers of all relations that may be under way.
const JOBS_MAX: usize = 3 * UNDER_WAY_MAX;
