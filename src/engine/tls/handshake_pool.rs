//! TLS handshakes, on threads of their own: a signature takes as long as some hundred messages, and tunnels do
//! not wait for it.
//!
//! An engine thread does all sending and receiving; what it received for a handshake it hands over together
//! with the connection, and has both back with what there is to send. These threads are pinned nowhere and
//! give way to the engines.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use crossbeam::queue::ArrayQueue;

use crate::engine::shared::Shared;
use crate::engine::tls::stream::TlsStream;
use crate::engine::user_data::Slot;
use crate::sys::cpu;
use crate::wire::TlsError;

/// Where one engine thread hands handshakes over, and gets them back.
pub(in crate::engine) struct HandshakePool {
    /// `None` where no listener speaks TLS.
    steps: Option<Sender<Step>>,
    thread: usize,
    /// Handed over, and not yet taken back.
    out: usize,
    back: Arc<ArrayQueue<HandshakeDone>>,
}

/// A connection, and what was received for its handshake.
pub(in crate::engine) struct Step {
    /// The engine thread that it belongs to.
    thread: usize,
    owner: Owner,
    secured: Box<TlsStream>,
    records: Vec<u8>,
}

/// Whose connection it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) enum Owner {
    Session(Slot),
    /// The spare in this place.
    PeerConnection(u32),
}

/// A connection whose handshake has gone on, or has failed.
pub(in crate::engine) struct HandshakeDone {
    pub owner: Owner,
    pub secured: Box<TlsStream>,
    /// What the client sent behind its handshake.
    pub plain: Vec<u8>,
    pub outcome: Result<(), TlsError>,
}

/// As many handshakes are under way as may be.
#[derive(Debug)]
pub(in crate::engine) struct PoolFull;

/// The threads; they end once every desk is gone.
#[derive(Default)]
pub(in crate::engine) struct Handshakes {
    threads: Vec<JoinHandle<()>>,
}

impl Handshakes {
    /// Starts as many threads as there are engine threads, where any is needed. Returns with them what
    /// desks hand their steps to.
    pub fn start(shared: &Arc<Shared>) -> io::Result<(Self, Option<Sender<Step>>)> {
        let config = &shared.config;
        if !config.speaks_tls() {
            return Ok((Self::default(), None));
        }
        let count = shared.threads.len();
        let (sender, steps) = bounded(count * HANDSHAKES_MAX);
        let threads = (0..count)
            .map(|number| {
                let (shared, steps) = (Arc::clone(shared), steps.clone());
                std::thread::Builder::new()
                    .name(format!("handshake-{number}"))
                    .spawn(move || take_steps(&steps, &shared))
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok((Self { threads }, Some(sender)))
    }

    /// Waits for the threads. Only once no engine thread runs any more.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a handshake thread ended by a panic");
            }
        }
    }
}

impl HandshakePool {
    pub fn new(thread: usize, steps: Option<Sender<Step>>, shared: &Shared) -> Self {
        Self { steps, thread, out: 0, back: Arc::clone(&shared.threads[thread].shaken) }
    }

    pub fn hand_over(
        &mut self,
        owner: Owner,
        secured: Box<TlsStream>,
        records: Vec<u8>,
    ) -> Result<(), PoolFull> {
        let steps = self.steps.as_ref().filter(|_| self.out < HANDSHAKES_MAX).ok_or(PoolFull)?;
        let step = Step { thread: self.thread, owner, secured, records };
        match steps.try_send(step) {
            Ok(()) => {
                self.out += 1;
                Ok(())
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(PoolFull),
        }
    }

    pub fn next(&mut self) -> Option<HandshakeDone> {
        if self.out == 0 {
            return None;
        }
        let shaken = self.back.pop()?;
        self.out -= 1;
        Some(shaken)
    }
}

fn take_steps(steps: &Receiver<Step>, shared: &Shared) {
    if let Err(error) = cpu::give_way() {
        tracing::warn!(%error, "handshakes run at the priority of the tunnels");
    }
    for Step { thread, owner, mut secured, records } in steps {
        let mut plain = Vec::new();
        let step = || secured.receive(&records, &mut plain);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(step)).unwrap_or_else(|_| {
            tracing::error!("a handshake ended by a panic; please report it");
            Err(TlsError::Panic)
        });
        let thread = &shared.threads[thread];
        if thread.shaken.push(HandshakeDone { owner, secured, plain, outcome }).is_err() {
            // A desk has no more out than there is room for.
            tracing::error!("a handshake has found no place to come back to; please report it");
        }
        thread.wake.wake();
    }
}

/// Steps of handshakes that one engine thread may have under way. A client is turned away where there are as
/// many: they are some 100 ms of work, and what comes behind them would wait longer still.
pub(in crate::engine) const HANDSHAKES_MAX: usize = 1024;
