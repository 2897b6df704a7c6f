//! Reads the sets of keys that verify session tokens: from files, and from login services by https.
//!
//! Each set has a thread of its own, so that a slow server delays no other. What was read last stays in force while a
//! read fails, and is kept on disk for a start without the server. Engine threads never wait for any of this.

mod fetch;
mod kept;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{never, select};

use self::fetch::fetch;
use self::kept::KeptKeys;
use super::readers::jittered;
use crate::authz::UnixMillis;
use crate::config::{Config, KeySet, KeySource};
use crate::sys::service_thread::{ServiceThread, StopSignal};
use crate::telemetry::LogOnChange;
use crate::wire::{KeySets, SharedKeySet};

/// The threads that read the sets; dropping it ends them.
pub struct TokenKeyThreads {
    sets: Arc<KeySets>,
    state: Option<PathBuf>,
    threads: Vec<(Arc<SharedKeySet>, ServiceThread)>,
}

impl TokenKeyThreads {
    /// Puts what an earlier process kept in the folder `state` in force, and starts a thread for each set.
    pub fn start(sets: Arc<KeySets>, state: Option<&Path>) -> io::Result<Self> {
        let mut threads = Self { sets, state: state.map(Path::to_owned), threads: Vec::new() };
        threads.follow()?;
        Ok(threads)
    }

    /// Starts the threads of sets that are new, and ends those of sets that are gone.
    pub fn follow(&mut self) -> io::Result<()> {
        let sets = self.sets.all();
        self.threads.retain(|(running, _)| sets.iter().any(|set| Arc::ptr_eq(set, running)));
        for set in &sets {
            if self.threads.iter().any(|(running, _)| Arc::ptr_eq(set, running)) {
                continue;
            }
            let kept = self.state.as_deref().and_then(|folder| KeptKeys::of(folder, &set.source().place));
            let mut reader =
                KeySetReader { set: Arc::clone(set), kept, failures: 0, trouble: LogOnChange::default() };
            reader.restore();
            let thread = ServiceThread::start_detached("token-keys", move |stop| reader.run(&stop))?;
            self.threads.push((Arc::clone(set), thread));
        }
        if let Some(folder) = &self.state {
            kept::remove_others(folder, sets.iter().map(|set| &set.source().place));
        }
        Ok(())
    }

    /// Waits until each set has keys or could not be read, for at most `FIRST_READ_TIME`.
    pub fn wait_for_first_reads(&self) {
        let give_up_at = Instant::now() + FIRST_READ_TIME;
        let is_waiting = |set: &Arc<SharedKeySet>| {
            let state = set.state();
            state.keys == 0 && state.error.is_none()
        };
        while self.sets.all().iter().any(is_waiting) && Instant::now() < give_up_at {
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Reads every set of `config` once, for a check. Returns an error line for each that a relay could not use.
    pub fn check(config: &Config) -> Vec<String> {
        let failure = |source: &KeySource| {
            let error = fetch(source).err()?;
            Some(format!("authz.tokens: the keys of {} cannot be read: {error}", source.place))
        };
        let mut lines: Vec<String> = config.authz.key_sources().filter_map(failure).collect();
        lines.dedup();
        lines
    }
}

/// The reader of one set.
struct KeySetReader {
    set: Arc<SharedKeySet>,
    /// `None` where nothing is kept: for a file, and without a state folder.
    kept: Option<KeptKeys>,
    failures: u32,
    trouble: LogOnChange,
}

impl KeySetReader {
    /// Puts the kept keys in force, where nothing newer is.
    fn restore(&mut self) {
        if self.set.keys().is_some() {
            return;
        }
        if let Some((keys, read_at)) = self.kept.as_mut().and_then(KeptKeys::load) {
            let place = &self.set.source().place;
            tracing::info!(ids = ?keys.ids(), "the keys of session tokens that were kept for {place} are in force");
            self.set.keep(Arc::new(keys), Some(read_at.0));
        }
    }

    fn run(&mut self, stop: &StopSignal) {
        loop {
            self.read();
            let pause = jittered(self.pause());
            // A thread that fails tries again by itself, and no token hurries it.
            let nobody = never();
            let wanted = if self.failures == 0 { self.set.wanted() } else { &nobody };
            select! {
                recv(stop.channel()) -> _ => return,
                recv(wanted) -> _ => {}
                default(pause) => {}
            }
        }
    }

    fn read(&mut self) {
        let place = &self.set.source().place;
        match fetch(self.set.source()) {
            Ok((text, keys)) => {
                let now = UnixMillis::now();
                if self.trouble.ends() {
                    tracing::info!("the keys of session tokens are read again from {place}");
                }
                let before = self.set.keys();
                if before.as_deref() != Some(&keys) {
                    let ids = keys.ids();
                    let before = before.as_deref().map(KeySet::ids).unwrap_or_default();
                    tracing::info!(?ids, ?before, "the keys of session tokens of {place} have changed");
                }
                self.failures = 0;
                self.set.end_read(Ok(Arc::new(keys)), now.0);
                if let Some(kept) = &mut self.kept {
                    kept.keep(&text, now);
                }
            }
            Err(error) => {
                let error = error.to_string();
                self.failures = self.failures.saturating_add(1);
                if self.trouble.changes_to(error.clone()) {
                    let effect = match self.set.keys() {
                        Some(_) => "those that were read before stay in force",
                        None => "there are none, and clients with such tokens get 503",
                    };
                    tracing::warn!(
                        "the keys of session tokens cannot be read from {place}, and {effect}: {error}"
                    );
                }
                self.set.end_read(Err(error), UnixMillis::now().0);
            }
        }
    }

    /// Time until the next read. After a failure it is short at first.
    fn pause(&self) -> Duration {
        let refresh = self.set.source().refresh;
        match self.failures {
            0 => refresh,
            failures => RETRY_FIRST.saturating_mul(1 << failures.min(10)).min(RETRY_MAX).min(refresh),
        }
    }
}

/// Time that a start waits for keys that it does not have: clients would get 503 meanwhile.
const FIRST_READ_TIME: Duration = Duration::from_secs(3);

const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Half the pause after the first failed read, and the longest pause: an outage of the login service ends unnoticed.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(60);
