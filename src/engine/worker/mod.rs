//! One engine thread: takes completions, lets sessions act, submits, and sleeps when there is nothing.

pub(super) mod idle;
pub(super) mod scheduler;
pub(super) mod serve_requests;
pub(super) mod signals;
pub(super) mod slab;
pub(super) mod streams;
pub(super) mod timer_wheel;

use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::clock::Clock;
use super::forward::Outcome;
use super::kernel::RingKernel;
use super::listener::Listener;
use super::session::{Accepted, Session, Turn};
use super::shared::{Shared, ThreadShared};
use super::timers::{Instant, Tick};
use crate::authz::PinnedView;
use crate::engine::requests::SESSION_NUMBER_BITS;
use crate::engine::user_data::{Slot, UserData};
use crate::engine::worker::idle::IdlePolicy;
use crate::engine::worker::scheduler::Scheduler;
use crate::engine::worker::signals::{Recheck, SignalReader};
use crate::engine::worker::slab::Sessions;
use crate::engine::worker::streams::Streams;
use crate::engine::worker::timer_wheel::{Timer, TimerWheel};
use crate::sys::ring::{Completion, Operation, Wait};
use crate::sys::socket;
use serve_requests::RequestsInProgress;

/// An engine thread's own state. Nothing in it is shared but `shared`.
pub(super) struct Worker {
    /// Above the sessions, whose operations point to their sockets: the kernel is done with all of them
    /// when `run` returns.
    kernel: RingKernel,
    shared: Arc<Shared>,
    number: usize,
    listeners: Vec<Listener>,
    /// What the ring has completed and no scheduler holds yet; empty but while completions are taken.
    completions: Vec<Completion>,
    scheduler: Scheduler<OwnedFd>,
    sessions: Sessions<RingKernel>,
    timers: TimerWheel,
    /// Timers that are due; empty but while they are looked at.
    fired: Vec<Timer>,
    /// By slot: what the worker has set for the session there.
    arrangements: Vec<Arrangement>,
    streams: Streams,
    sessions_begun: u64,
    /// Sessions beyond the node's limit that are being told so.
    told_full: usize,
    attention: SignalReader,
    requests: RequestsInProgress,
    /// What the sweep that is under way, or was last, may end tunnels for; see [`Turn::ended_at_us`].
    ended_at_us: u64,
    /// What a drain ends at once has ended.
    has_drained: bool,
    /// When to give up on what is left; set once the node stops.
    stop_by: Option<Tick>,
    waiting: IdlePolicy,
    /// When the spare connections are to be looked at next.
    tend_spares_at: Option<Tick>,
    clock: Clock,
}

#[derive(Clone, Copy, Default)]
struct Arrangement {
    /// The slot's timer entry that is due first; it may be an earlier session's.
    timer: Option<Tick>,
    /// The session is among the streams.
    among_streams: bool,
}

impl Worker {
    pub fn new(number: usize, kernel: RingKernel, listeners: Vec<Listener>, shared: Arc<Shared>) -> Self {
        // All of the node's sessions may meet on one thread.
        let sessions_max = shared.limits.sessions_max() as usize + TOLD_FULL_MAX;
        let waiting = IdlePolicy::new(shared.config.engine.busy_poll);
        let mut worker = Self {
            kernel,
            shared,
            number,
            listeners,
            completions: Vec::with_capacity(COMPLETIONS_USUAL),
            scheduler: Scheduler::new(),
            sessions: Sessions::with_capacity(sessions_max),
            timers: TimerWheel::new(),
            fired: Vec::new(),
            arrangements: Vec::with_capacity(sessions_max),
            streams: Streams::default(),
            sessions_begun: 0,
            told_full: 0,
            attention: SignalReader::default(),
            requests: RequestsInProgress::default(),
            ended_at_us: 0,
            has_drained: false,
            stop_by: None,
            waiting,
            tend_spares_at: None,
            clock: Clock::start(),
        };
        worker.watch_wake();
        for number in 0..worker.listeners.len() {
            worker.accept(number);
        }
        worker
    }

    /// Turns until the node stops and the last session is over, or the stop takes too long.
    pub fn run(mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        while self.turn(&shared)?.is_continue() {}
        Ok(())
    }

    /// Sleeps until there is work, and does it; breaks once the thread has nothing left to live for.
    pub fn turn(&mut self, shared: &Shared) -> io::Result<ControlFlow<()>> {
        self.take_completions()?;
        let now = self.clock.read();
        if shared.is_stopping() && self.stop_by.is_none() {
            self.stop_by = Some(now.after(STOP_TIME));
            self.stop_accepting();
        }
        let recheck = self.attention.read(&shared.signals);
        // The pin lasts for this turn only, and the turn does not block.
        let view = shared.authority.pin();
        if recheck == Recheck::Asked {
            if !self.sessions.is_sweeping() {
                self.ended_at_us = shared.authority.ended_at_us();
            }
            self.sessions.start_sweep();
        }
        if shared.is_draining() && !std::mem::replace(&mut self.has_drained, true) {
            for slot in self.sessions.occupied() {
                self.with_session(slot, now, &view, Session::end_spare);
            }
        }
        self.work(now, &view);
        self.resume_accepting(now);
        self.thread().counters.hot.turns.add(1);
        self.kernel.tell(&self.thread().counters.hot);
        self.waiting.note_turn(self.spliced_bytes());
        let Some(stop_by) = self.stop_by else { return Ok(ControlFlow::Continue(())) };
        self.stop_sessions(now, &view);
        let is_over = self.has_nothing_left() || now.tick() >= stop_by;
        Ok(if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// What is due in this turn, running tunnels before those that are to be.
    fn work(&mut self, now: Instant, view: &PinnedView<'_>) {
        let mut completions = std::mem::take(&mut self.completions);
        self.scheduler.begin_turn(&mut completions);
        while let Some(completion) = self.scheduler.next_unserved() {
            self.dispatch(completion, now, view);
        }
        for completion in completions.drain(..) {
            if let Some(completion) = self.scheduler.take_up(completion) {
                self.dispatch(completion, now, view);
            }
        }
        self.completions = completions;
        self.serve_streams(now, view);
        while let Some(completion) = self.scheduler.next_handshake() {
            self.dispatch(completion, now, view);
        }
        while let Some((slot, shaken)) = self.kernel.next_shaken(now.tick()) {
            self.with_session(slot, now, view, |session, turn| session.on_shaken(shaken, turn));
        }
        while let Some(accepted) = self.scheduler.next_arrival() {
            self.begin_session(accepted, now, view);
        }
        self.recheck_some(now, view);
        self.serve_requests(now, view);
        self.look_at_timers(now, view);
        self.tend_spares(now);
    }

    /// Sees to the connections to other nodes; once in a while, and when one was taken.
    fn tend_spares(&mut self, now: Instant) {
        if self.shared.config.forward.tls.is_some() && !self.shared.is_stopping() {
            self.tend_spares_at = self.kernel.tend_spares(now.tick());
        }
    }

    /// Puts what the next sessions of a sweep rest on to the view in force.
    fn recheck_some(&mut self, now: Instant, view: &PinnedView<'_>) {
        let (slots, questions) = self.sessions.sweep(SWEEP_SESSIONS);
        let mut slots = slots.into_iter();
        view.decide_all(&questions, now.wall, |decision| {
            if let Some(slot) = slots.next() {
                self.with_session(slot, now, view, |session, turn| session.recheck(decision, turn));
            }
        });
    }

    /// Lets streams move bytes, as many as a turn has for all of them together.
    fn serve_streams(&mut self, now: Instant, view: &PinnedView<'_>) {
        self.streams.begin_turn();
        while let Some(slot) = self.streams.next() {
            self.arrangement(slot).among_streams = false;
            let before = self.streamed_cost();
            self.with_session(slot, now, view, Session::resume);
            self.streams.note_moved(self.streamed_cost() - before);
        }
    }

    /// What streams have taken since the thread began, in bytes that are spliced.
    fn streamed_cost(&self) -> u64 {
        let hot = &self.thread().counters.hot;
        self.spliced_bytes() + RECORD_COST * (hot.bytes_up_tls.get() + hot.bytes_down_tls.get())
    }

    /// Both ways, since the thread began.
    fn spliced_bytes(&self) -> u64 {
        let hot = &self.thread().counters.hot;
        hot.bytes_up_spliced.get() + hot.bytes_down_spliced.get()
    }

    /// Submits what the last turn queued and takes what has completed, after a wait where there is none.
    fn take_completions(&mut self) -> io::Result<()> {
        let wait = self.wait();
        let completions = &mut self.completions;
        if wait == Wait::No {
            return self.kernel.turn(Wait::No, None, completions);
        }
        let Some(budget) = self.waiting.budget() else {
            let asleep_at = std::time::Instant::now();
            self.kernel.turn(wait, self.waiting.gather(), completions)?;
            self.waiting.note_gap(asleep_at.elapsed());
            return Ok(());
        };
        self.kernel.turn(Wait::No, None, completions)?;
        if !completions.is_empty() {
            return Ok(());
        }
        let counters = &self.shared.threads[self.number].counters.hot;
        if self.kernel.has_work_within(budget) {
            self.waiting.hit();
            counters.spins_hit.add(1);
            self.kernel.turn(Wait::No, None, completions)
        } else {
            self.waiting.miss();
            counters.spins_missed.add(1);
            let asleep_at = std::time::Instant::now();
            self.kernel.turn(wait, self.waiting.gather(), completions)?;
            self.waiting.note_gap(budget + asleep_at.elapsed());
            Ok(())
        }
    }

    /// How long the next turn may sleep.
    fn wait(&self) -> Wait {
        let has_own_work = !self.scheduler.is_empty() || !self.streams.is_empty();
        if has_own_work
            || self.sessions.is_sweeping()
            || !self.requests.is_idle()
            || !self.attention.is_done()
        {
            return Wait::No;
        }
        let paused_until = self.listeners.iter().filter_map(Listener::paused_until).min();
        let next =
            [self.timers.next(), paused_until, self.stop_by, self.tend_spares_at].into_iter().flatten().min();
        match next {
            Some(tick) => {
                let now_us = self.clock.read().monotonic_us;
                Wait::Until(Duration::from_micros((tick.0 * 1000).saturating_sub(now_us)))
            }
            None => Wait::Forever,
        }
    }

    fn dispatch(&mut self, completion: Completion, now: Instant, view: &PinnedView<'_>) {
        match UserData::from_bits(completion.user_data) {
            Some(UserData::Session { slot, purpose }) => {
                self.waiting.note_completion(slot, purpose);
                let Completion { result, more, buffer, .. } = completion;
                let outcome = Outcome { result, more, buffer };
                self.with_session(slot, now, view, |session, turn| session.complete(purpose, outcome, turn));
            }
            Some(UserData::Accept { listener }) => {
                self.on_accept(listener as usize, completion, now);
            }
            Some(UserData::CancelOwn) => {}
            Some(UserData::PeerConnection { place, step }) => {
                self.kernel.complete_spare(place, step, completion.result, now.tick());
            }
            Some(UserData::Wake) => {
                self.attention.take(&self.shared.threads[self.number].wake);
                if !completion.more {
                    self.watch_wake();
                }
            }
            None => tracing::error!(user_data = completion.user_data, "a completion that nobody asked for"),
        }
    }

    fn on_accept(&mut self, number: usize, completion: Completion, now: Instant) {
        self.listeners[number].is_accepting = completion.more;
        if self.shared.is_stopping() {
            return;
        }
        if let Some(client) = completion.accepted {
            self.admit(self.listeners[number].place, client, now);
        } else if is_exhaustion(-completion.result) {
            self.thread().counters.sessions.accept_pauses.add(1);
            self.listeners[number].pause_until(now.after(ACCEPT_PAUSE));
            return;
        }
        if !completion.more {
            match self.listeners[number].gives_way(&self.shared, self.number) {
                Some(pause) => self.listeners[number].pause_until(now.after(pause)),
                None => self.accept(number),
            }
        }
    }

    /// Gives a client a place, or one among those that are told that there is none.
    fn admit(&mut self, listener: usize, client: OwnedFd, now: Instant) {
        let place = self.shared.limits.enter();
        if place.is_none() && self.told_full >= TOLD_FULL_MAX {
            // Not even room for a refusal: the close is all that this client gets.
            self.thread().counters.sessions.accept_dropped.add(1);
            return;
        }
        self.told_full += usize::from(place.is_none());
        let address = socket::peer_address(&client);
        self.scheduler.admit(Accepted { client, address, listener, place, at_us: now.monotonic_us });
    }

    fn begin_session(&mut self, accepted: Accepted<OwnedFd>, now: Instant, view: &PinnedView<'_>) {
        self.sessions_begun += 1;
        let id = (self.number as u64) << SESSION_NUMBER_BITS | self.sessions_begun;
        let slot = self.sessions.reserve();
        let mut turn = turn(&mut self.kernel, &self.shared, self.number, now, view, self.ended_at_us);
        let session = Session::begin(id, slot, accepted, &mut turn);
        self.sessions.fill(slot, session);
        self.after(slot, now, view);
    }

    /// Runs `act` on the session in `slot`, if there is one, and does what follows from it.
    fn with_session(
        &mut self,
        slot: Slot,
        now: Instant,
        view: &PinnedView<'_>,
        act: impl FnOnce(&mut Session<RingKernel>, &mut Turn<'_, RingKernel>),
    ) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        session.guarded(
            &mut turn(&mut self.kernel, &self.shared, self.number, now, view, self.ended_at_us),
            act,
        );
        self.after(slot, now, view);
    }

    /// A session has acted: release it, queue it, or set its timer.
    fn after(&mut self, slot: Slot, now: Instant, view: &PinnedView<'_>) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        if session.is_over() {
            self.told_full -= usize::from(session.is_told_full());
            if let Some(session) = self.sessions.take(slot) {
                session.release(&mut turn(
                    &mut self.kernel,
                    &self.shared,
                    self.number,
                    now,
                    view,
                    self.ended_at_us,
                ));
            }
            self.arrangement(slot).among_streams = false;
            for listener in &mut self.listeners {
                listener.resume_at(now.tick());
            }
            return;
        }
        let (deadline, wants_turn) = (session.deadline(), session.wants_turn());
        if wants_turn && !std::mem::replace(&mut self.arrangement(slot).among_streams, true) {
            self.streams.add(slot);
        }
        if let Some(deadline) = deadline {
            self.set_timer(slot, deadline);
        }
    }

    /// Makes sure that an entry fires no later than `deadline`.
    fn set_timer(&mut self, slot: Slot, deadline: Tick) {
        let arrangement = self.arrangement(slot);
        if arrangement.timer.is_none_or(|set| deadline < set) {
            arrangement.timer = Some(deadline);
            self.timers.insert(Timer { at: deadline, slot });
        }
    }

    fn look_at_timers(&mut self, now: Instant, view: &PinnedView<'_>) {
        let mut fired = std::mem::take(&mut self.fired);
        self.timers.advance(now.tick(), &mut fired);
        for entry in fired.drain(..) {
            self.on_timer(entry, now, view);
        }
        self.fired = fired;
    }

    fn on_timer(&mut self, entry: Timer, now: Instant, view: &PinnedView<'_>) {
        let arrangement = self.arrangement(entry.slot);
        // One that an earlier deadline has overtaken.
        if arrangement.timer != Some(entry.at) {
            return;
        }
        arrangement.timer = None;
        match self.sessions.get_mut(entry.slot).and_then(|session| session.deadline()) {
            Some(deadline) if deadline <= now.tick() => {
                self.with_session(entry.slot, now, view, Session::on_deadline);
            }
            Some(deadline) => self.set_timer(entry.slot, deadline),
            None => {}
        }
    }

    fn stop_sessions(&mut self, now: Instant, view: &PinnedView<'_>) {
        for slot in self.sessions.occupied() {
            self.with_session(slot, now, view, Session::stop);
        }
    }

    fn accept(&mut self, number: usize) {
        self.listeners[number].is_accepting = true;
        let user_data = UserData::Accept { listener: number as u32 };
        self.kernel.push(user_data, self.listeners[number].accept());
    }

    /// Takes back the accepts, so that nobody is listening any more when the thread has ended.
    fn stop_accepting(&mut self) {
        self.scheduler.turn_away();
        for (number, listener) in (0u32..).zip(&self.listeners) {
            if listener.is_accepting {
                let user_data = UserData::Accept { listener: number }.into_bits();
                self.kernel.push(UserData::CancelOwn, Operation::Cancel { user_data });
            }
        }
    }

    fn has_nothing_left(&self) -> bool {
        self.sessions.is_empty() && !self.listeners.iter().any(|listener| listener.is_accepting)
    }

    fn resume_accepting(&mut self, now: Instant) {
        if self.shared.is_stopping() {
            return;
        }
        for number in 0..self.listeners.len() {
            if self.listeners[number].take_resumed(now.tick()) {
                self.accept(number);
            }
        }
    }

    fn watch_wake(&mut self) {
        let shared = Arc::clone(&self.shared);
        let wake = &shared.threads[self.number].wake;
        self.kernel.push(UserData::Wake, Operation::PollReadableMultishot { fd: wake.as_fd() });
    }

    fn arrangement(&mut self, slot: Slot) -> &mut Arrangement {
        let place = slot.0 as usize;
        if self.arrangements.len() <= place {
            self.arrangements.resize(place + 1, Arrangement::default());
        }
        &mut self.arrangements[place]
    }

    fn thread(&self) -> &ThreadShared {
        &self.shared.threads[self.number]
    }
}

fn turn<'a>(
    kernel: &'a mut RingKernel,
    shared: &'a Shared,
    number: usize,
    now: Instant,
    view: &'a PinnedView<'a>,
    ended_at_us: u64,
) -> Turn<'a, RingKernel> {
    let ThreadShared { counters, decision_log, .. } = &shared.threads[number];
    Turn { kernel, now, view, shared, counters, decision_log, ended_at_us }
}

/// Whether accept failed because the process or the system has no more to give.
fn is_exhaustion(errno: i32) -> bool {
    matches!(errno, libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
}

/// How long accept waits for something to be given back before it tries again by itself.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Clients beyond the node's limit that one thread tells so at a time; more are closed without a word.
const TOLD_FULL_MAX: usize = 256;

/// Bytes that are spliced in the time that one takes to be opened or sealed.
const RECORD_COST: u64 = 8;

/// Sessions whose decision is put again in one turn.
const SWEEP_SESSIONS: usize = 256;

/// Completions per turn that no memory has to be found for.
const COMPLETIONS_USUAL: usize = 1024;

/// What a thread grants its sessions to come to their ends when the node stops.
const STOP_TIME: Duration = Duration::from_secs(3);
