//! The relay's process gives up what it does not need: system calls, files, capabilities, new privileges.
//!
//! All of it is put in force on the first thread before it starts any other, since threads inherit it. Some kinds of
//! threads then give up more. A process cannot get anything back, so programs are started by the
//! [`launcher`](super::launcher), which is not confined.
//!
//! What is refused fails with EPERM or EACCES, and the kernel logs it. Nothing here ends the process.

#[cfg(debug_assertions)]
mod attempts;
mod capabilities;
mod files;
mod filter;
mod system_calls;

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::prctl;
use serde::{Deserialize, Serialize};

use super::ring_rules::{self, RingRules};
use filter::Filters;

pub use files::{BelowFolder, Files, LANDLOCK_WANTED, landlock_version};

/// What becomes of a system call that is not allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strictness {
    /// It fails.
    Refuse,
    /// It is served, and the kernel logs it. Files and capabilities stay as they are.
    Log,
}

/// A kind of threads that needs fewer system calls than the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ThreadKind {
    /// Serves clients: sockets and its ring; no files, no threads, no code but the program's own.
    Engine,
    /// Does the handshakes of TLS: memory and clocks; no sockets, no files.
    Handshake,
    /// Any other thread of the node: no ring.
    Service,
}

/// The restrictions of this process, as far as they are in force.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Confinement {
    pub mode: ConfinementMode,
    pub system_calls: Part,
    pub files: Part,
    pub ring: Part,
    pub no_new_privileges: bool,
    /// Names of the capabilities that are left.
    pub capabilities: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConfinementMode {
    On,
    Log,
    Off,
}

/// One of the restrictions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "why")]
pub enum Part {
    InForce,
    /// Some of it is in force; why not all.
    Partly(String),
    /// The kernel lacks it; what it said.
    Missing(String),
    /// It was not asked for.
    Off,
}

/// What was put in force, once.
struct InForce {
    confinement: Confinement,
    files: Files,
    engine: Filters,
    handshake: Filters,
    service: Filters,
}

static IN_FORCE: OnceLock<InForce> = OnceLock::new();

/// A thread could not give up what its kind does not need.
static THREAD_FAILED: AtomicBool = AtomicBool::new(false);

/// Confines this process. To be called once, by its only thread.
///
/// # Errors
/// Only where a filter cannot be made. What the kernel lacks is in the result.
pub fn confine(files: Files, strictness: Strictness) -> io::Result<Confinement> {
    let filters = |allowed| Filters::new(allowed, strictness).map_err(io::Error::other);
    let process = filters(system_calls::of_the_process())?;
    let [engine, handshake, service] =
        [ThreadKind::Engine, ThreadKind::Handshake, ThreadKind::Service].map(system_calls::of_threads);
    let (engine, handshake, service) = (filters(engine)?, filters(handshake)?, filters(service)?);
    let no_new_privileges = prctl::set_no_new_privs().is_ok();
    let (restricted, capabilities) = match strictness {
        Strictness::Refuse => (files::restrict(&files), capabilities::give_up().unwrap_or_default()),
        Strictness::Log => (Part::Off, Vec::new()),
    };
    let confinement = Confinement {
        mode: match strictness {
            Strictness::Refuse => ConfinementMode::On,
            Strictness::Log => ConfinementMode::Log,
        },
        // Last, since what is above needs calls that are then refused.
        system_calls: match process.apply() {
            Ok(()) => Part::InForce,
            Err(error) => Part::Missing(format!("this kernel takes no filter of system calls: {error}")),
        },
        files: restricted,
        ring: Part::InForce,
        no_new_privileges,
        capabilities: capabilities.into_iter().map(str::to_owned).collect(),
    };
    let in_force = InForce { confinement, files, engine, handshake, service };
    let confinement = IN_FORCE.get_or_init(|| in_force).confinement.clone();
    make_attempts("main");
    Ok(confinement)
}

/// Has the calling thread give up what threads of its kind do not need, where the process is confined.
pub fn confine_thread(kind: ThreadKind) {
    if let Some(in_force) = IN_FORCE.get().filter(|one| one.confinement.system_calls == Part::InForce) {
        let filters = match kind {
            ThreadKind::Engine => &in_force.engine,
            ThreadKind::Handshake => &in_force.handshake,
            ThreadKind::Service => &in_force.service,
        };
        if let Err(error) = filters.apply() {
            THREAD_FAILED.store(true, Ordering::Relaxed);
            tracing::warn!(%error, ?kind, "a thread keeps system calls that it does not need");
        }
    }
    make_attempts(match kind {
        ThreadKind::Engine => "engine",
        ThreadKind::Handshake => "handshake",
        ThreadKind::Service => "service",
    });
}

/// Has a test see what a thread can do.
fn make_attempts(thread: &str) {
    #[cfg(debug_assertions)]
    attempts::make(thread);
    #[cfg(not(debug_assertions))]
    let _nothing_to_do = thread;
}

/// The restrictions in force now.
pub fn confinement() -> Confinement {
    let mut confinement = IN_FORCE.get().map_or_else(Confinement::none, |one| one.confinement.clone());
    confinement.ring = match ring_rules::in_force() {
        RingRules::NoRing => Part::Off,
        RingRules::InForce => Part::InForce,
        RingRules::Refused => Part::Missing("this kernel takes no list of operations for a ring".to_owned()),
    };
    if THREAD_FAILED.load(Ordering::Relaxed) {
        confinement.system_calls =
            Part::Partly("a thread keeps what it does not need; the log says why".to_owned());
    }
    confinement
}

/// The files that this process may open. `None` where it may open any.
pub fn files_in_force() -> Option<&'static Files> {
    let in_force = IN_FORCE.get()?;
    matches!(in_force.confinement.files, Part::InForce | Part::Partly(_)).then_some(&in_force.files)
}

impl Confinement {
    fn none() -> Self {
        Self {
            mode: ConfinementMode::Off,
            system_calls: Part::Off,
            files: Part::Off,
            ring: Part::InForce,
            no_new_privileges: prctl::get_no_new_privs().unwrap_or(false),
            capabilities: Vec::new(),
        }
    }

    /// What the kernel lacks, in one line each.
    pub fn lacks(&self) -> Vec<String> {
        let parts = [("system calls", &self.system_calls), ("files", &self.files), ("ring", &self.ring)];
        let lack = |(name, part): (&str, &Part)| match part {
            Part::Partly(why) => Some(format!("{name}: only partly, since {why}")),
            Part::Missing(why) => Some(format!("{name}: not, since {why}")),
            Part::InForce | Part::Off => None,
        };
        parts.into_iter().filter_map(lack).collect()
    }
}
