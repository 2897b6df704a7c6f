//! The number of sessions that the limit on open files allows.

use std::fmt;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::Config;
use crate::sys::cpu;

/// A shortage of file descriptors: the process may not open enough for `limits.sessions`. Its text advises what to
/// do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shortage {
    /// `limits.sessions`.
    pub sessions_wanted: u32,
    /// Number of sessions that the descriptors are enough for.
    pub sessions_possible: u32,
    /// The hard limit on open files. A relay raises its soft limit to this.
    pub descriptors: u64,
}

impl Shortage {
    /// The shortage of this process; `None` where the descriptors are enough for `limits.sessions`.
    pub fn of(config: &Config) -> Option<Self> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
        Self::with(config, hard)
    }

    /// The shortage of a process that may open `descriptors`.
    pub fn with(config: &Config, descriptors: u64) -> Option<Self> {
        Self::under(config, threads(config), descriptors)
    }

    /// Number of descriptors that `limits.sessions` would need.
    pub fn descriptors_wanted(config: &Config) -> u64 {
        let pipes = (config.engine.pipes * threads(config)) as u64 * 2;
        u64::from(config.limits.sessions) * PER_SESSION + pipes + reserved(threads(config))
    }

    fn under(config: &Config, threads: usize, descriptors: u64) -> Option<Self> {
        let free = descriptors.saturating_sub(reserved(threads));
        let pipes = (config.engine.pipes * threads) as u64 * 2;
        // Pipes are dispensable (a direction without one copies), so they get at most half of the descriptors.
        let for_sessions = free.saturating_sub(pipes).max(free / 2);
        let sessions_possible = u32::try_from(for_sessions / PER_SESSION).unwrap_or(u32::MAX);
        let sessions_wanted = config.limits.sessions;
        (sessions_possible < sessions_wanted).then_some(Self {
            sessions_wanted,
            sessions_possible,
            descriptors,
        })
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sessions_wanted, sessions_possible, descriptors } = self;
        write!(
            f,
            "limits.sessions is {sessions_wanted}, but {descriptors} file descriptors are enough for \
             {sessions_possible}; raise LimitNOFILE= or `ulimit -n`"
        )
    }
}

/// The share of the descriptors that clients get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ClientShare {
    /// `limits.sessions`, or the smaller number that the descriptors are enough for.
    pub sessions_max: u32,
    /// Clients over a limit to which one thread replies at a time.
    pub refused_max: usize,
}

/// Divides the descriptors of this process. Raises the soft limit first.
pub(super) fn client_share(config: &Config, threads: usize) -> ClientShare {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return ClientShare { sessions_max: config.limits.sessions, refused_max: REFUSED_MIN };
    };
    // The hard limit is granted already. Where this fails, the soft limit stays.
    let granted = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    if let Some(shortage) = Shortage::under(config, threads, granted) {
        tracing::warn!("{shortage}");
    }
    share_of(config, threads, granted)
}

fn share_of(config: &Config, threads: usize, descriptors: u64) -> ClientShare {
    let shortage = Shortage::under(config, threads, descriptors);
    let sessions_max = shortage.map_or(config.limits.sessions, |shortage| shortage.sessions_possible);
    let pipes = (config.engine.pipes * threads) as u64 * 2;
    let used = u64::from(sessions_max) * PER_SESSION + pipes + reserved(threads);
    let spare = usize::try_from(descriptors.saturating_sub(used)).unwrap_or(usize::MAX);
    let refused_max = (REFUSED_MIN + spare / threads.max(1)).min(REFUSED_MAX);
    ClientShare { sessions_max, refused_max }
}

/// Descriptors that sessions and pipes do not get.
const fn reserved(threads: usize) -> u64 {
    RESERVED + (REFUSED_MIN * threads) as u64
}

/// `engine.threads`, or one per CPU that this process may use.
pub fn threads(config: &Config) -> usize {
    match config.engine.threads {
        0 => cpu::allowed().map_or(1, |cpus| cpus.len()),
        threads => threads,
    }
}

/// Descriptors of a session: the client's socket and the device's.
const PER_SESSION: u64 = 2;

/// Descriptors for rings, listeners, the store, the admin side and logs.
const RESERVED: u64 = 128;

/// Clients over a limit to which one thread can always reply, with a descriptor reserved for each.
const REFUSED_MIN: usize = 16;

/// Clients over a limit to which one thread replies at a time, where descriptors are plenty; more are closed without a
/// reply.
const REFUSED_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{EngineConfig, Limits};

    fn config(sessions: u32, pipes: usize) -> Config {
        Config {
            limits: Limits { sessions, ..Limits::default() },
            engine: EngineConfig { pipes, ..EngineConfig::default() },
            ..Config::default()
        }
    }

    #[test]
    fn sessions_share_the_descriptors_with_pipes() {
        assert_eq!(Shortage::under(&config(1_000, 100), 2, reserved(2) + 400 + 2_000), None);
        let shortage = Shortage::under(&config(1_001, 100), 2, reserved(2) + 400 + 2_000).unwrap();
        assert_eq!(shortage.sessions_possible, 1_000);
        assert_eq!(
            shortage.to_string(),
            "limits.sessions is 1001, but 2560 file descriptors are enough for 1000; raise LimitNOFILE= or \
             `ulimit -n`"
        );
    }

    #[test]
    fn pipes_take_half_of_the_descriptors_at_most() {
        let shortage = Shortage::under(&config(8_000, 512), 2, reserved(2) + 1_000).unwrap();
        assert_eq!(shortage.sessions_possible, 250);
    }

    #[test]
    fn refused_clients_get_descriptors_that_nobody_else_has() {
        let config = config(1_000, 100);
        let used = |share: ClientShare| {
            u64::from(share.sessions_max) * PER_SESSION + 400 + RESERVED + 2 * share.refused_max as u64
        };
        for spare in [0, 100, 10_000] {
            let descriptors = reserved(2) + 400 + 2_000 + spare;
            let share = share_of(&config, 2, descriptors);
            assert!(
                used(share) <= descriptors && share.refused_max >= REFUSED_MIN,
                "{share:?} of {descriptors}"
            );
        }
        assert_eq!(share_of(&config, 2, 1_000_000).refused_max, REFUSED_MAX);
    }

    #[test]
    fn fewer_descriptors_than_the_reserve_leave_no_session() {
        assert_eq!(Shortage::under(&config(1, 0), 1, 64).unwrap().sessions_possible, 0);
    }
}
