//! A named thread that serves the node in the background until its handle is dropped.

use std::convert::Infallible;
use std::io;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};

use super::confine::{ThreadKind, confine_thread};

/// Handle of a thread that serves the node. Dropping it stops the thread and, unless it was started
/// [detached](Self::start_detached), waits for its end, for at most [`STOP_TIME`].
///
/// The default has no thread, for a service that the configuration turns off.
#[derive(Default)]
pub struct ServiceThread {
    /// Dropped to stop the thread; nothing is ever sent.
    stop: Option<Sender<Infallible>>,
    /// The thread to wait for; `None` for a detached one.
    thread: Option<JoinHandle<()>>,
}

/// The thread's side of the handle: the signal to stop.
pub struct StopSignal(Receiver<Infallible>);

impl ServiceThread {
    /// Starts a thread that runs `serve`, which has to return soon after its signal. `name` is at most 15 bytes
    /// long, so that the kernel shows all of it.
    pub fn start(name: &str, serve: impl FnOnce(StopSignal) + Send + 'static) -> io::Result<Self> {
        Self::spawn(name, serve).map(|(stop, thread)| Self { stop: Some(stop), thread: Some(thread) })
    }

    /// Starts a thread as [`start`](Self::start) does, but dropping the handle does not wait for its end. Meant for a
    /// thread that may be blocked outside of this process when it is to stop.
    pub fn start_detached(name: &str, serve: impl FnOnce(StopSignal) + Send + 'static) -> io::Result<Self> {
        Self::spawn(name, serve).map(|(stop, _thread)| Self { stop: Some(stop), thread: None })
    }

    fn spawn(
        name: &str,
        serve: impl FnOnce(StopSignal) + Send + 'static,
    ) -> io::Result<(Sender<Infallible>, JoinHandle<()>)> {
        let (stop, stopped) = bounded(0);
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            confine_thread(ThreadKind::Service);
            serve(StopSignal(stopped));
        })?;
        Ok((stop, thread))
    }
}

impl Drop for ServiceThread {
    fn drop(&mut self) {
        self.stop.take();
        let Some(thread) = self.thread.take() else { return };
        join_within(thread, STOP_TIME);
    }
}

/// The outcome of [`join_within`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Joined {
    Ended,
    /// The thread runs on, and is left behind.
    Blocked,
}

/// Waits for the end of a thread that was told to stop, for at most `patience`. Logs a panic, and a thread that is left
/// behind: one that waits for a disk or a network cannot be ended from outside.
pub fn join_within(thread: JoinHandle<()>, patience: Duration) -> Joined {
    let name = thread.thread().name().unwrap_or_default().to_owned();
    let give_up_at = Instant::now() + patience;
    while !thread.is_finished() {
        if Instant::now() >= give_up_at {
            let patience = humantime::format_duration(patience);
            tracing::error!(
                "the thread `{name}` has not stopped within {patience}, and is left behind; it probably waits for a \
                 disk or a network"
            );
            return Joined::Blocked;
        }
        std::thread::sleep(STOP_LOOK);
    }
    if thread.join().is_err() {
        tracing::error!("the thread `{name}` ended by a panic; please report it");
    }
    Joined::Ended
}

impl StopSignal {
    /// A signal that never comes.
    #[cfg(test)]
    pub fn never() -> Self {
        Self(crossbeam::channel::never())
    }

    /// True once the thread is to stop.
    pub fn is_stopped(&self) -> bool {
        self.0.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits for `pause`, or until the thread is to stop. Returns whether it is.
    pub fn is_stopped_within(&self, pause: Duration) -> bool {
        self.0.recv_timeout(pause) != Err(RecvTimeoutError::Timeout)
    }

    /// The channel to select on: it is disconnected when the thread is to stop.
    pub const fn channel(&self) -> &Receiver<Infallible> {
        &self.0
    }
}

/// Time that a thread has to stop. What it does for the node's end, such as the last lines of the audit log, takes far
/// less; all threads together stay below the stop timeout of the shipped unit.
pub const STOP_TIME: Duration = Duration::from_secs(3);

/// Interval of the looks whether a thread has ended.
const STOP_LOOK: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_handle_stops_its_thread_and_waits_for_it() {
        let (ended, has_ended) = bounded(1);
        let thread = ServiceThread::start("test", move |stop| {
            while !stop.is_stopped_within(Duration::from_secs(60)) {}
            assert!(stop.is_stopped());
            ended.send(()).unwrap();
        });
        drop(thread.unwrap());
        assert_eq!(has_ended.try_recv(), Ok(()));
    }

    #[test]
    fn a_thread_that_is_blocked_is_left_behind() {
        let (hold, held) = bounded::<()>(0);
        let thread = Builder::new().name("blocked".to_owned()).spawn(move || _ = held.recv()).unwrap();
        assert_eq!(join_within(thread, Duration::from_millis(20)), Joined::Blocked);
        drop(hold);
    }

    #[test]
    fn a_panic_of_the_thread_ends_with_it() {
        drop(ServiceThread::start("test", |_stop| panic!("as the test wants it")).unwrap());
    }

    #[test]
    fn a_detached_thread_is_not_waited_for() {
        let (hold, held) = bounded::<()>(0);
        let thread = ServiceThread::start_detached("test", move |_stop| _ = held.recv());
        // Would wait for ever for a thread that is not detached.
        drop(thread.unwrap());
        drop(hold);
    }
}
