//! TLS handshakes, on threads of their own: a signature takes as long as some hundred messages, and tunnels do
//! not wait for it.
//!
//! An engine thread does all sending and receiving. It hands the bytes that it received for a handshake over,
//! together with the TLS stream, and gets the stream back with the bytes to send. The handshake threads are not
//! pinned, and the engine threads go before them.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use crossbeam::queue::ArrayQueue;

use crate::engine::tls::stream::TlsStream;
use crate::engine::user_data::Slot;
use crate::sys::confine::{ThreadKind, confine_thread};
use crate::sys::cpu;
use crate::sys::service_thread::{STOP_TIME, join_within};
use crate::sys::wake::Wake;
use crate::wire::TlsError;

/// One engine thread's access to the handshake threads.
pub(in crate::engine) struct HandshakePool {
    jobs: Sender<HandshakeJob>,
    /// Jobs that were handed over and have not come back.
    out: usize,
    returned: Arc<ReturnQueue>,
}

/// A TLS stream, and the bytes that were received for its handshake.
pub(in crate::engine) struct HandshakeJob {
    owner: HandshakeOwner,
    stream: Box<TlsStream>,
    records: Vec<u8>,
    return_to: Arc<ReturnQueue>,
}

/// The connection that a handshake is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) enum HandshakeOwner {
    Session(Slot),
    /// The pooled peer connection in this place of the pool.
    PeerConnection(u32),
}

/// A TLS stream whose handshake has gone on, or has failed.
pub(in crate::engine) struct HandshakeDone {
    pub owner: HandshakeOwner,
    pub stream: Box<TlsStream>,
    /// Bytes that the other side sent behind its handshake.
    pub plain: Vec<u8>,
    pub outcome: Result<(), TlsError>,
}

/// The pool already has as many handshakes under way as it may have.
#[derive(Debug)]
pub(in crate::engine) struct PoolFull;

/// The handshake threads; they end once every [`HandshakePool`] is dropped.
pub(in crate::engine) struct HandshakeThreads {
    jobs: Receiver<HandshakeJob>,
    wanted: usize,
    threads: Vec<JoinHandle<()>>,
}

/// Results for one engine thread, and its wake-up.
struct ReturnQueue {
    done: ArrayQueue<HandshakeDone>,
    wake: Arc<Wake>,
}

impl HandshakeThreads {
    /// Makes one pool for each engine thread, in the order of `wakes`. No thread runs before [`start`](Self::start).
    pub fn new(wakes: impl ExactSizeIterator<Item = Arc<Wake>>) -> (Self, Vec<HandshakePool>) {
        let wanted = wakes.len();
        let (sender, jobs) = bounded(wanted * HANDSHAKES_MAX);
        let pools = wakes.map(|wake| HandshakePool::new(sender.clone(), wake)).collect();
        (Self { jobs, wanted, threads: Vec::new() }, pools)
    }

    /// Starts as many threads as there are engine threads, unless they run.
    pub fn start(&mut self) -> io::Result<()> {
        for number in self.threads.len()..self.wanted {
            let (jobs, name) = (self.jobs.clone(), format!("handshake-{number}"));
            self.threads.push(std::thread::Builder::new().name(name).spawn(move || run_jobs(&jobs))?);
        }
        Ok(())
    }

    /// Waits for the threads. Only once no engine thread runs any more.
    pub fn join(self) {
        for thread in self.threads {
            join_within(thread, STOP_TIME);
        }
    }
}

impl HandshakePool {
    fn new(jobs: Sender<HandshakeJob>, wake: Arc<Wake>) -> Self {
        let returned = ReturnQueue { done: ArrayQueue::new(HANDSHAKES_MAX), wake };
        Self { jobs, out: 0, returned: Arc::new(returned) }
    }

    /// A pool whose threads are gone: it is always full.
    #[cfg(test)]
    pub fn without_threads(wake: Arc<Wake>) -> Self {
        Self::new(bounded(0).0, wake)
    }

    /// The pool of the same threads for a worker that begins anew. Results of jobs that are out come no more: they would
    /// name slots that belong to other sessions by then.
    pub fn renewed(self) -> Self {
        Self::new(self.jobs, Arc::clone(&self.returned.wake))
    }

    /// A pool whose jobs the test runs itself.
    #[cfg(test)]
    pub fn for_tests() -> (Self, Receiver<HandshakeJob>) {
        Self::for_tests_on(Arc::new(Wake::new().unwrap()))
    }

    /// A pool of the thread with this wake-up, whose jobs the test runs itself.
    #[cfg(any(test, simulation))]
    pub fn for_tests_on(wake: Arc<Wake>) -> (Self, Receiver<HandshakeJob>) {
        let (sender, jobs) = bounded(HANDSHAKES_MAX);
        (Self::new(sender, wake), jobs)
    }

    /// Has the handshake of `stream` go on with `records`. The result comes by [`next`](Self::next).
    pub fn start(
        &mut self,
        owner: HandshakeOwner,
        stream: Box<TlsStream>,
        records: Vec<u8>,
    ) -> Result<(), PoolFull> {
        if self.out >= HANDSHAKES_MAX {
            return Err(PoolFull);
        }
        let job = HandshakeJob { owner, stream, records, return_to: Arc::clone(&self.returned) };
        match self.jobs.try_send(job) {
            Ok(()) => {
                self.out += 1;
                Ok(())
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(PoolFull),
        }
    }

    /// Takes the next result, where there is one.
    pub fn next(&mut self) -> Option<HandshakeDone> {
        if self.out == 0 {
            return None;
        }
        let done = self.returned.done.pop()?;
        self.out -= 1;
        Some(done)
    }
}

impl HandshakeJob {
    /// Runs the job, returns its result and wakes the engine thread. A panic fails this handshake alone.
    pub fn run(self) {
        let Self { owner, mut stream, records, return_to } = self;
        let mut plain = Vec::new();
        let receive = || stream.receive(&records, &mut plain);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(receive)).unwrap_or_else(|_| {
            tracing::error!("a handshake ended by a panic; please report it");
            Err(TlsError::Panic)
        });
        if return_to.done.push(HandshakeDone { owner, stream, plain, outcome }).is_err() {
            // A pool has no more jobs out than its return queue has room for.
            tracing::error!("a handshake has found no room in its return queue; please report it");
        }
        return_to.wake.wake();
    }
}

fn run_jobs(jobs: &Receiver<HandshakeJob>) {
    if let Err(error) = cpu::give_way() {
        tracing::warn!(%error, "handshakes run at the priority of the tunnels");
    }
    confine_thread(ThreadKind::Handshake);
    for job in jobs {
        job.run();
    }
}

/// Handshakes that one engine thread may have under way. A client is turned away where there are as many: they
/// are some 100 ms of work, and those behind them would wait longer still.
const HANDSHAKES_MAX: usize = 1024;
