//! The thread's part in a hand-over: it stops and begins to accept, takes tunnels out of its table, and goes on with
//! tunnels that come.
//!
//! A turn has a bounded number of tunnels come to rest, so that the others do not wait.

use crossbeam::channel::Sender;

use super::SessionDriver;
use crate::engine::kernel::thread::ThreadKernel;
use crate::engine::moved_tunnel::MovedTunnel;
use crate::engine::requests::{Accepting, PassedSocket, WorkerRequest};
use crate::engine::session::Session;
use crate::engine::timers::Tick;
use crate::engine::turn::TurnCx;
use crate::engine::user_data::Slot;

/// See the module.
pub(super) struct HandOver {
    accepting: Accepting,
    /// Answered once no accept is in flight.
    stopped: Option<Sender<()>>,
    capture: Option<Capture>,
    /// The next place of the session table to look for tunnels.
    next_place: usize,
    /// Tunnels that could not be captured in time. They go on once they are at rest.
    staying: Vec<Slot>,
}

/// Tunnels that are being taken out of the thread.
struct Capture {
    tunnels_max: usize,
    /// Tunnels that come to rest.
    pending: Vec<Slot>,
    captured: Vec<MovedTunnel>,
    give_up_at: Tick,
    answer: Sender<Vec<MovedTunnel>>,
}

impl HandOver {
    pub fn new(is_paused: bool) -> Self {
        Self {
            accepting: if is_paused { Accepting::Paused } else { Accepting::Yes },
            stopped: None,
            capture: None,
            next_place: 0,
            staying: Vec::new(),
        }
    }

    pub fn accepts(&self) -> bool {
        self.accepting == Accepting::Yes
    }

    pub fn has_work(&self) -> bool {
        // Tunnels come to rest by completions; the first look at the table needs a turn.
        self.capture.as_ref().is_some_and(|capture| capture.pending.is_empty())
    }

    /// Time at which to give up on tunnels that do not come to rest.
    pub fn next_time(&self) -> Option<Tick> {
        self.capture.as_ref().map(|capture| capture.give_up_at)
    }
}

impl<K: ThreadKernel> SessionDriver<K> {
    /// Begins a request that [`RequestsInProgress`](super::RequestsInProgress) leaves to the driver.
    pub(super) fn begin_request(&mut self, request: WorkerRequest, cx: &mut TurnCx<'_, K>) {
        match request {
            WorkerRequest::Listeners { answer } => drop(answer.try_send(self.passed_sockets(cx.kernel))),
            WorkerRequest::Accepting { mode, answer } => self.change_accepting(mode, answer, cx),
            WorkerRequest::Capture { tunnels_max, answer } => {
                let capture = Capture {
                    tunnels_max,
                    pending: Vec::with_capacity(tunnels_max),
                    captured: Vec::with_capacity(tunnels_max),
                    give_up_at: cx.now.after(REST_TIME),
                    answer,
                };
                self.hand_over.capture = Some(capture);
            }
            WorkerRequest::Adopt { tunnels, answer } => {
                for tunnel in tunnels {
                    self.adopt(tunnel, cx);
                }
                let _has_given_up = answer.try_send(());
            }
            // Served elsewhere.
            WorkerRequest::List { .. }
            | WorkerRequest::End { .. }
            | WorkerRequest::Usage { .. }
            | WorkerRequest::Judge { .. } => {}
        }
    }

    /// Goes on with what is under way.
    pub(super) fn hand_over_some(&mut self, cx: &mut TurnCx<'_, K>) {
        if !self.listeners.iter().any(|listener| listener.is_accepting)
            && let Some(stopped) = self.hand_over.stopped.take()
        {
            if self.hand_over.accepting == Accepting::Ended {
                self.listeners.clear();
            }
            let _has_given_up = stopped.try_send(());
        }
        self.let_stay(cx);
        let Some(mut capture) = self.hand_over.capture.take() else { return };
        let has_seen_all = self.begin_rest(&mut capture, cx);
        self.capture_rested(&mut capture, cx);
        if capture.give_up_at <= cx.now.tick() {
            self.hand_over.staying.append(&mut capture.pending);
            capture.give_up_at = cx.now.after(REST_TIME);
        }
        let is_done = capture.pending.is_empty() && (has_seen_all || !capture.captured.is_empty());
        if !is_done {
            self.hand_over.capture = Some(capture);
            return;
        }
        if let Err(refused) = capture.answer.try_send(capture.captured) {
            // The requester has given up.
            for tunnel in refused.into_inner() {
                self.adopt(tunnel, cx);
            }
        }
    }

    fn passed_sockets(&self, kernel: &K) -> Vec<PassedSocket> {
        let copy = |listener: &super::Listener<K::Listener>| {
            Some(PassedSocket { place: listener.place, socket: kernel.share_listener(listener).ok()? })
        };
        self.listeners.iter().filter_map(copy).collect()
    }

    fn change_accepting(&mut self, mode: Accepting, answer: Sender<()>, cx: &mut TurnCx<'_, K>) {
        self.hand_over.accepting = mode;
        if mode == Accepting::Yes {
            self.hand_over.stopped = None;
            self.begin_accepting(cx.kernel);
            let _has_given_up = answer.try_send(());
        } else {
            self.cancel_accepts(cx);
            self.hand_over.stopped = Some(answer);
        }
    }

    /// Has the next tunnels come to rest. Returns whether all places of the table were seen.
    fn begin_rest(&mut self, capture: &mut Capture, cx: &mut TurnCx<'_, K>) -> bool {
        if !capture.pending.is_empty() || !capture.captured.is_empty() {
            return false;
        }
        let places = self.sessions.places();
        let end = (self.hand_over.next_place + PLACES_PER_TURN).min(places);
        while self.hand_over.next_place < end && capture.pending.len() < capture.tunnels_max {
            let slot = Slot(self.hand_over.next_place as u32);
            self.hand_over.next_place += 1;
            if self.sessions.get_mut(slot).is_some_and(|session| session.come_to_rest(cx)) {
                capture.pending.push(slot);
            }
        }
        let has_seen_all = self.hand_over.next_place >= places && capture.pending.is_empty();
        if has_seen_all {
            self.hand_over.next_place = 0;
        }
        has_seen_all
    }

    fn capture_rested(&mut self, capture: &mut Capture, cx: &mut TurnCx<'_, K>) {
        capture.pending.retain(|slot| {
            let Some(session) = self.sessions.get_mut(*slot) else { return false };
            if !session.is_at_rest() {
                // One that has ended meanwhile is not waited for.
                return session.comes_to_rest();
            }
            let sockets =
                session.tunnel_sockets().map(|sockets| sockets.map(|socket| cx.kernel.share(socket)));
            let Some([Ok(client), Ok(device)]) = sockets else {
                self.hand_over.staying.push(*slot);
                return false;
            };
            let Some(session) = self.sessions.take(*slot) else { return false };
            let arrangement = &mut self.arrangements[slot.0 as usize];
            arrangement.among_streams = false;
            self.expiring -= usize::from(std::mem::take(&mut arrangement.expires));
            let captured = session.capture([client, device], cx);
            capture.captured.extend(captured.map(|tunnel| cx.kernel.send_away(tunnel)));
            false
        });
    }

    /// Tunnels that stay go on, where they are at rest.
    fn let_stay(&mut self, cx: &mut TurnCx<'_, K>) {
        for slot in std::mem::take(&mut self.hand_over.staying) {
            match self.sessions.get_mut(slot) {
                Some(session) if session.is_at_rest() => self.with_session(slot, cx, Session::go_on),
                Some(session) if session.comes_to_rest() => self.hand_over.staying.push(slot),
                _ => {}
            }
        }
    }

    /// Goes on with a tunnel that was captured, and decides about its right by the view in force.
    fn adopt(&mut self, mut tunnel: MovedTunnel, cx: &mut TurnCx<'_, K>) {
        let facts = tunnel.facts;
        let place = tunnel.place.take();
        let place =
            place.unwrap_or_else(|| cx.shared.limits.hold(Some((facts.principal, facts.device)), None));
        let slot = self.sessions.reserve();
        let session = Session::adopt(cx.kernel.take_in(tunnel), slot, place, cx);
        self.sessions.fill(slot, session);
        self.with_session(slot, cx, |session, cx| {
            session.go_on(cx);
            session.recheck_now(cx);
        });
    }
}

/// Places of the session table that one turn looks at: some 0.1 ms.
const PLACES_PER_TURN: usize = 2048;

/// Time in which a tunnel comes to rest. What is in flight is cancelled, so that it takes two turns.
const REST_TIME: std::time::Duration = std::time::Duration::from_secs(1);
