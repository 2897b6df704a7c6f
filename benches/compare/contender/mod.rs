//! Who is compared: each kind of relay in a file of its own, and how it is started.

mod direct;
mod extra;
mod haproxy;
mod nginx;
mod peers;
mod relay;
mod sluicegate;
mod socat;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use ::sluicegate::sys::cpu::Cpu;

pub use peers::PeersError;
pub use relay::{Relay, StartError};
pub use sluicegate::SiteError;

use crate::generator::Target;
use crate::plan::Extent;
use crate::works::Work;

/// Something that clients can reach the backend through.
pub trait Contender {
    /// Unlike any other's, without spaces and commas.
    fn name(&self) -> &str;

    fn facts(&self) -> Result<Facts, Missing>;

    /// True if the contender takes part in `work`.
    fn joins(&self, work: Work, extent: Extent) -> bool;

    /// A fresh one in front of `backend`, set up as is best for `work` where its settings can serve only one
    /// kind well; returns when it accepts connections.
    fn start(&self, work: Work, backend: SocketAddr, cpu: Cpu) -> Result<Started, StartError>;
}

/// Facts about a contender for the report.
pub struct Facts {
    pub version: String,
    pub settings: String,
}

/// Ends with its relay.
pub struct Started {
    pub target: Target,
    /// `None` where clients reach the backend directly.
    pub relay: Option<Relay>,
    /// Memory that it took at its start for each session to come; what RSS grows by is not all of its cost.
    pub rss_ahead_kib: f64,
}

impl Started {
    /// One that takes memory only as sessions come.
    fn new(target: Target, relay: Option<Relay>) -> Self {
        Self { target, relay, rss_ahead_kib: 0.0 }
    }
}

/// The reason why a contender cannot take part on this machine.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    #[error("`{program}` is not installed; as root, `make compare` installs it from package {package}")]
    Program { program: &'static str, package: &'static str },
    #[error("nginx has no stream module; as root, `make compare` installs libnginx-mod-stream")]
    NginxStream,
    #[error("`{program}` cannot be started: {source}")]
    Unstartable { program: String, source: std::io::Error },
}

/// The contenders cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum ContendersError {
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error(transparent)]
    Peers(#[from] PeersError),
}

/// All there are, in the order of the report; those of the file `peers` last.
pub fn all(peers: Option<&Path>) -> Result<Vec<Box<dyn Contender>>, ContendersError> {
    let mut all: Vec<Box<dyn Contender>> = vec![Box::new(direct::Direct)];
    all.extend(sluicegate::all()?.into_iter().map(|one| Box::new(one) as Box<dyn Contender>));
    all.extend(haproxy::ALL.map(|one| Box::new(one) as Box<dyn Contender>));
    all.push(Box::new(nginx::Nginx));
    all.push(Box::new(socat::Socat));
    if let Some(path) = peers {
        let taken: Vec<String> = all.iter().map(|contender| contender.name().to_owned()).collect();
        for peer in peers::Peer::read(path, &taken)? {
            all.push(Box::new(extra::Extra(peer)));
        }
    }
    Ok(all)
}

/// Finds `program` on the shell's PATH and in the folders for root's programs.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_FOLDERS.map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

fn find_or_missing(program: &'static str, package: &'static str) -> Result<PathBuf, Missing> {
    find(program).ok_or(Missing::Program { program, package })
}

/// Everything that a command prints, whichever way.
fn output_of(program: &Path, arguments: &[&str]) -> Result<String, Missing> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|source| Missing::Unstartable { program: program.display().to_string(), source })?;
    let texts = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    Ok(texts.concat())
}

/// The first line of `text` that has `part`, from there on; else its first line.
fn line_with(text: &str, part: &str) -> String {
    let line = text.lines().find_map(|line| line.find(part).and_then(|at| line.get(at..)));
    line.or_else(|| text.lines().next()).unwrap_or_default().trim().to_owned()
}

const SYSTEM_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];
