//! Drives the sessions of one engine thread: accepts clients, brings completions to sessions, and serves streams,
//! timers, rechecks and requests, each with its share of a turn.

mod accepting;
mod hand_over;

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::delivery_checks::DeliveryChecks;
use super::heads::AwaitedHeads;
use super::idle::IdlePolicy;
use super::scheduler::Scheduler;
use super::serve_requests::{Due, RequestsInProgress};
use super::signals::SignalReader;
use super::slab::Sessions;
use super::streams::Streams;
use super::timer_wheel::{Timer, TimerWheel};
use crate::config::Config;
use crate::engine::kernel::io::Outcome;
use crate::engine::kernel::thread::ThreadKernel;
use crate::engine::kernel::uring::UringKernel;
use crate::engine::limits::SessionLimits;
use crate::engine::listener::Listener;
use crate::engine::session::Session;
use crate::engine::shared::{Shared, ThreadShared};
use crate::engine::timers::Tick;
use crate::engine::tls::handshake_pool::HandshakeOwner;
use crate::engine::turn::TurnCx;
use crate::engine::user_data::{Slot, UserData};
use crate::sys::ring::Completion;
use crate::telemetry::HotCounters;
use hand_over::HandOver;

/// The sessions of one thread, its listeners, and everything that is due for them.
pub(super) struct SessionDriver<K: ThreadKernel = UringKernel> {
    number: usize,
    listeners: Vec<Listener<K::Listener>>,
    scheduler: Scheduler<K>,
    sessions: Sessions<K>,
    timers: TimerWheel,
    /// Timers that are due; empty between two turns.
    fired: Vec<Timer>,
    /// The timer and the stream flag of the session in each slot.
    arrangements: Vec<Arrangement>,
    streams: Streams,
    sessions_begun: u64,
    /// Sessions over a limit, which only get the reply that says so.
    over_limit: usize,
    /// As many clients wait for their sessions as may; nothing is accepted.
    is_held_back: bool,
    heads: AwaitedHeads,
    requests: RequestsInProgress,
    /// The connections that peers keep ready were ended.
    has_ended_idle_peers: bool,
    /// Tunnels whose right ends at a time.
    expiring: usize,
    delivery_checks: DeliveryChecks,
    hand_over: HandOver,
}

/// The part of a driver that outlives it, where its thread begins anew.
pub(in crate::engine) struct DriverSeat<L = OwnedFd> {
    pub listeners: Vec<Listener<L>>,
    /// Sessions so far, by which the next ones are numbered.
    pub sessions_begun: u64,
}

#[derive(Clone, Copy, Default)]
struct Arrangement {
    /// The slot's timer that is due first; it may be an earlier session's.
    timer: Option<Tick>,
    /// The session is among the streams.
    among_streams: bool,
    /// The session is counted in [`SessionDriver::over_limit`].
    over_limit: bool,
    /// The session is counted in [`SessionDriver::expiring`].
    expires: bool,
    /// The session is a connection that a peer keeps ready, and counted as such.
    idle_peer: bool,
    /// The slot is listed in [`SessionDriver::delivery_checks`]; perhaps for an earlier session.
    delivery_check: bool,
}

impl<K: ThreadKernel> SessionDriver<K> {
    pub fn new(number: usize, seat: DriverSeat<K::Listener>, shared: &Shared, kernel: &mut K) -> Self {
        let DriverSeat { listeners, sessions_begun } = seat;
        // All of the node's sessions may meet on one thread.
        let sessions_max = shared.limits.sessions_max() as usize + shared.limits.refused_max();
        let mut driver = Self {
            number,
            listeners,
            scheduler: Scheduler::new(),
            sessions: Sessions::with_capacity(sessions_max),
            timers: TimerWheel::new(),
            fired: Vec::new(),
            arrangements: Vec::with_capacity(sessions_max),
            streams: Streams::default(),
            sessions_begun,
            over_limit: 0,
            is_held_back: false,
            heads: AwaitedHeads::default(),
            requests: RequestsInProgress::default(),
            has_ended_idle_peers: false,
            expiring: 0,
            delivery_checks: DeliveryChecks::new(shared.config().timeouts.user_timeout),
            hand_over: HandOver::new(shared.starts_paused.load(Ordering::Relaxed)),
        };
        watch_wake(&shared.threads[number], kernel);
        driver.begin_accepting(kernel);
        driver
    }

    /// Puts `config` in force.
    pub fn reconfigure(&mut self, config: &Config, limits: &SessionLimits, kernel: &K) {
        self.sessions.make_room(limits.sessions_max() as usize + limits.refused_max());
        self.delivery_checks.set_user_timeout(config.timeouts.user_timeout);
        for listener in &self.listeners {
            kernel.set_silence_options(listener, config);
        }
    }

    /// Does all that is due in this turn. Running tunnels go before clients that have none yet.
    pub fn work(
        &mut self,
        completions: &mut Vec<Completion<K::Accepted>>,
        idle: &mut IdlePolicy,
        signals: &mut SignalReader,
        cx: &mut TurnCx<'_, K>,
    ) {
        self.scheduler.begin_turn(completions);
        while let Some(completion) = self.scheduler.next_unserved() {
            self.dispatch(completion, idle, signals, cx);
        }
        for completion in completions.drain(..) {
            if let Some(completion) = self.scheduler.dispatch_or_queue(completion) {
                self.dispatch(completion, idle, signals, cx);
            }
        }
        self.serve_streams(cx);
        while let Some(completion) = self.scheduler.next_request() {
            self.dispatch(completion, idle, signals, cx);
        }
        while let Some(done) = cx.handshakes.next() {
            match done.owner {
                HandshakeOwner::Session(slot) => {
                    self.with_session(slot, cx, |session, cx| session.on_handshake(done, cx));
                }
                HandshakeOwner::PeerConnection(place) => {
                    cx.with_peer_pool(|peers, pool| peers.on_handshake(place, done, pool));
                }
            }
        }
        self.begin_sessions(cx);
        self.recheck_some(cx);
        let queue = &cx.shared.threads[self.number].requests;
        match self.requests.serve(queue, &mut self.sessions, signals, cx) {
            Some(Due::End(found)) => {
                self.with_session(found.slot, cx, Session::end_by_admin);
                found.confirm();
            }
            Some(Due::Judge(verdicts)) => {
                for (slot, verdict) in verdicts {
                    self.with_session(slot, cx, |session, cx| session.judge(verdict, cx));
                }
            }
            Some(Due::Other(request)) => self.begin_request(request, cx),
            None => {}
        }
        self.hand_over_some(cx);
        self.fire_timers(cx);
        self.check_deliveries(cx);
    }

    /// Puts the queries of the next sessions of a sweep to the view in force.
    fn recheck_some(&mut self, cx: &mut TurnCx<'_, K>) {
        let (slots, questions) = self.sessions.sweep(SWEEP_SESSIONS);
        let mut left = slots.iter().zip(&questions);
        let (view, latest) = (cx.view, cx.now.latest);
        let decided = catch_unwind(AssertUnwindSafe(|| {
            view.decide_all(&questions, latest, |decision| {
                if let Some((&slot, _)) = left.next() {
                    self.with_session(slot, cx, |session, cx| session.recheck(decision, cx));
                }
            });
        }));
        if decided.is_err() {
            // Some were decided together. One by one, the panic is that of one session.
            for (&slot, question) in left {
                self.with_session(slot, cx, |session, cx| session.recheck(view.decide(question, latest), cx));
            }
        }
    }

    /// Lets streams move bytes, up to the bound that all of them share in a turn.
    fn serve_streams(&mut self, cx: &mut TurnCx<'_, K>) {
        self.streams.begin_turn();
        while let Some(slot) = self.streams.next() {
            self.arrangement(slot).among_streams = false;
            let before = stream_cost(&cx.counters.hot);
            self.with_session(slot, cx, Session::resume);
            self.streams.record_moved(stream_cost(&cx.counters.hot) - before);
        }
    }

    fn dispatch(
        &mut self,
        completion: Completion<K::Accepted>,
        idle: &mut IdlePolicy,
        signals: &mut SignalReader,
        cx: &mut TurnCx<'_, K>,
    ) {
        match UserData::from_bits(completion.user_data) {
            Some(UserData::Session { slot, purpose }) => {
                idle.record_completion(slot, purpose);
                let Completion { result, more, buffer, .. } = completion;
                let outcome = Outcome { result, more, buffer };
                self.with_session(slot, cx, |session, cx| session.complete(purpose, outcome, cx));
            }
            Some(UserData::Accept { listener }) => {
                self.on_accept(listener as usize, completion, cx);
            }
            Some(UserData::CancelOwn) => {}
            Some(UserData::PeerConnection { place, step }) => {
                let result = completion.result;
                cx.with_peer_pool(|peers, pool| peers.complete(place, step, result, pool));
            }
            Some(UserData::Wake) => {
                let thread = &cx.shared.threads[self.number];
                signals.clear(&thread.wake);
                if !completion.more {
                    watch_wake(thread, cx.kernel);
                }
            }
            None => tracing::error!(user_data = completion.user_data, "a completion that nobody asked for"),
        }
    }

    /// Runs `act` on the session in `slot`, if there is one, and does what follows from it.
    fn with_session(
        &mut self,
        slot: Slot,
        cx: &mut TurnCx<'_, K>,
        act: impl FnOnce(&mut Session<K>, &mut TurnCx<'_, K>),
    ) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        session.guarded(cx, act);
        self.after(slot, cx);
    }

    /// A session has acted: releases it, queues it among the streams, or sets its timer.
    fn after(&mut self, slot: Slot, cx: &mut TurnCx<'_, K>) {
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let expires = session.expires();
        let was_counted = std::mem::replace(&mut self.arrangement(slot).expires, expires);
        self.expiring = self.expiring + usize::from(expires) - usize::from(was_counted);
        let Some(session) = self.sessions.get_mut(slot) else { return };
        let is_idle_peer = session.is_idle_peer(cx);
        match (std::mem::replace(&mut self.arrangement(slot).idle_peer, is_idle_peer), is_idle_peer) {
            (false, true) => cx.counters.sessions.idle_peers.add(1),
            (true, false) => cx.counters.sessions.idle_peers.sub(1),
            _ => {}
        }
        let Some(session) = self.sessions.get_mut(slot) else { return };
        if session.is_over() {
            let was_over_limit = std::mem::take(&mut self.arrangement(slot).over_limit);
            self.over_limit -= usize::from(was_over_limit);
            if let Some(session) = self.sessions.take(slot) {
                session.release(cx);
            }
            self.arrangement(slot).among_streams = false;
            for listener in &mut self.listeners {
                listener.resume_at(cx.now.tick());
            }
            return;
        }
        let (deadline, wants_turn, has_sent) = (session.deadline(), session.wants_turn(), session.has_sent());
        if wants_turn && !std::mem::replace(&mut self.arrangement(slot).among_streams, true) {
            self.streams.add(slot);
        }
        if let Some(deadline) = deadline {
            self.set_timer(slot, deadline);
        }
        if has_sent && !std::mem::replace(&mut self.arrangement(slot).delivery_check, true) {
            self.delivery_checks.add(slot, cx.now.tick());
        }
    }

    /// Checks the next tunnels whose peers may not have taken what was sent to them.
    fn check_deliveries(&mut self, cx: &mut TurnCx<'_, K>) {
        for _ in 0..CHECKS_PER_TURN {
            let Some(slot) = self.delivery_checks.next_due(cx.now.tick()) else { return };
            self.arrangement(slot).delivery_check = false;
            self.with_session(slot, cx, Session::check_delivery);
        }
    }

    /// Makes sure that a timer fires no later than `deadline`.
    fn set_timer(&mut self, slot: Slot, deadline: Tick) {
        let arrangement = self.arrangement(slot);
        if arrangement.timer.is_none_or(|set| deadline < set) {
            arrangement.timer = Some(deadline);
            self.timers.insert(Timer { at: deadline, slot });
        }
        // One timer of each slot counts.
        if self.timers.len() > 2 * self.arrangements.len() + TIMERS_KEPT {
            let arrangements = &self.arrangements;
            self.timers.retain(|timer| arrangements[timer.slot.0 as usize].timer == Some(timer.at));
        }
    }

    fn fire_timers(&mut self, cx: &mut TurnCx<'_, K>) {
        let mut fired = std::mem::take(&mut self.fired);
        self.timers.advance(cx.now.tick(), &mut fired);
        for timer in fired.drain(..) {
            self.on_timer(timer, cx);
        }
        self.fired = fired;
    }

    fn on_timer(&mut self, timer: Timer, cx: &mut TurnCx<'_, K>) {
        let arrangement = self.arrangement(timer.slot);
        // An earlier deadline has overtaken this one.
        if arrangement.timer != Some(timer.at) {
            return;
        }
        arrangement.timer = None;
        match self.sessions.get_mut(timer.slot).and_then(|session| session.deadline()) {
            Some(deadline) if deadline <= cx.now.tick() => {
                self.with_session(timer.slot, cx, Session::on_deadline);
            }
            Some(deadline) => self.set_timer(timer.slot, deadline),
            None => {}
        }
    }

    /// Begins to recheck every session, or begins anew.
    pub fn start_sweep(&mut self) {
        self.sessions.start_sweep();
    }

    pub fn is_sweeping(&self) -> bool {
        self.sessions.is_sweeping()
    }

    /// The node is about to end: ends the connections that peers keep ready, once.
    pub fn end_idle_peers(&mut self, cx: &mut TurnCx<'_, K>) {
        if !std::mem::replace(&mut self.has_ended_idle_peers, true) {
            for slot in self.sessions.occupied() {
                self.with_session(slot, cx, Session::end_idle_peer);
            }
        }
    }

    /// Ends some of the tunnels that have stalled longest: memory for TCP runs short.
    pub fn shed_stalled(&mut self, cx: &mut TurnCx<'_, K>) {
        let stalled_until = Tick(cx.now.tick().0.saturating_sub(STALLED_FOR.as_millis() as u64));
        let mut stalled: Vec<(Tick, Slot)> = self.sessions.stalled_until(stalled_until);
        let count = stalled.len().min(SHED_AT_ONCE);
        if count == 0 {
            return;
        }
        stalled.select_nth_unstable_by_key(count - 1, |(since, _)| *since);
        for &(_, slot) in &stalled[..count] {
            self.with_session(slot, cx, Session::end_stalled);
        }
    }

    /// The thread's ring is lost, or the thread has panicked: ends every session by resets. Drop the ring before
    /// [`leave`](Self::leave) closes their sockets.
    pub fn abandon_sessions(&mut self, cx: &mut TurnCx<'_, K>) -> usize {
        let slots = self.sessions.occupied();
        for &slot in &slots {
            if let Some(session) = self.sessions.get_mut(slot) {
                session.guarded(cx, Session::abandon);
            }
        }
        slots.len()
    }

    /// Drops everything but what a new driver of the thread goes on with.
    pub fn leave(self) -> DriverSeat<K::Listener> {
        let listeners = self.listeners.into_iter().map(Listener::renewed).collect();
        DriverSeat { listeners, sessions_begun: self.sessions_begun }
    }

    pub fn stop_sessions(&mut self, cx: &mut TurnCx<'_, K>) {
        for slot in self.sessions.occupied() {
            self.with_session(slot, cx, Session::stop);
        }
    }

    /// No session is left, and no accept is in flight.
    pub fn is_done(&self) -> bool {
        self.sessions.is_empty() && !self.listeners.iter().any(|listener| listener.is_accepting)
    }

    /// True where there is work that no completion announces.
    pub fn has_work(&self) -> bool {
        !self.scheduler.is_empty()
            || !self.streams.is_empty()
            || self.sessions.is_sweeping()
            || !self.requests.is_idle()
            || self.hand_over.has_work()
    }

    /// A tunnel's right ends at a time, which a step of the clock may bring before its timer is due.
    pub fn has_expiring(&self) -> bool {
        self.expiring > 0
    }

    /// Time at which a timer or a check is due, or a listener's pause ends.
    pub fn next_timer(&self) -> Option<Tick> {
        let paused_until = self.listeners.iter().filter_map(Listener::paused_until).min();
        let times =
            [self.timers.next(), paused_until, self.delivery_checks.next_time(), self.hand_over.next_time()];
        times.into_iter().flatten().min()
    }

    fn arrangement(&mut self, slot: Slot) -> &mut Arrangement {
        let place = slot.0 as usize;
        if self.arrangements.len() <= place {
            self.arrangements.resize(place + 1, Arrangement::default());
        }
        &mut self.arrangements[place]
    }
}

/// Spliced bytes of both directions since the thread began.
pub(super) fn spliced_bytes(hot: &HotCounters) -> u64 {
    hot.bytes_up_spliced.get() + hot.bytes_down_spliced.get()
}

/// Work that streams have taken since the thread began, in spliced bytes.
fn stream_cost(hot: &HotCounters) -> u64 {
    spliced_bytes(hot) + RECORD_COST * (hot.bytes_up_tls.get() + hot.bytes_down_tls.get())
}

fn watch_wake<K: ThreadKernel>(thread: &ThreadShared, kernel: &mut K) {
    kernel.watch_wake(UserData::Wake, &thread.wake);
}

/// Bytes that are spliced in the time that it takes to open or seal one.
const RECORD_COST: u64 = 8;

/// Time that a direction has to stand still until its tunnel counts as stalled.
const STALLED_FOR: Duration = Duration::from_secs(1);

/// Stalled tunnels that one thread ends before the system's memory is looked at again: few, since each may hold some MB.
const SHED_AT_ONCE: usize = 8;

/// Timers up to which those that do not count stay.
const TIMERS_KEPT: usize = 1024;

/// Tunnels that one turn checks for deliveries: some 0.1 ms, so that messages do not wait.
const CHECKS_PER_TURN: usize = 64;

/// Sessions that one turn rechecks.
const SWEEP_SESSIONS: usize = 256;
