//! The file that names further peers, as types.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::works::Work;

/// A relay that somebody brings along. What each key means stands in `benches/README.md`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub name: String,
    /// Program and arguments, with placeholders.
    pub command: Vec<String>,
    /// The port that it listens on; absent: the free port that `{listen_port}` stands for.
    pub port: Option<u16>,
    /// Prints its version.
    #[serde(default)]
    pub version: Vec<String>,
    /// Its set-up, for the report.
    #[serde(default)]
    pub settings: String,
    /// Parts of the names of works that it takes part in; absent: in all.
    pub works: Option<Vec<String>>,
}

/// Values for the placeholders of a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Places {
    pub listen_port: u16,
    pub backend_host: String,
    pub backend_port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    #[error("{path} cannot be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}:{line}: {problem}")]
    Wrong { path: PathBuf, line: usize, problem: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    peer: Vec<Spanned<Peer>>,
}

impl Peer {
    /// Reads a file of `[[peer]]` tables. `taken` are names that have a contender already.
    pub fn read(path: &Path, taken: &[String]) -> Result<Vec<Self>, PeersError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| PeersError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, taken).map_err(|(span, problem)| {
            let before = text.get(..span.start).unwrap_or(&text);
            let line = 1 + before.matches('\n').count();
            PeersError::Wrong { path: path.to_owned(), line, problem }
        })
    }

    fn parse(text: &str, taken: &[String]) -> Result<Vec<Self>, (Range<usize>, String)> {
        let file: File = toml::from_str(text)
            .map_err(|error| (error.span().unwrap_or_default(), error.message().to_owned()))?;
        let mut peers: Vec<Self> = Vec::new();
        for spanned in file.peer {
            let (span, peer) = (spanned.span(), spanned.into_inner());
            let is_taken = taken.contains(&peer.name) || peers.iter().any(|other| other.name == peer.name);
            let problem = if is_taken {
                Some(format!("there is a contender `{}` already; give this one another name", peer.name))
            } else {
                peer.problem()
            };
            match problem {
                Some(problem) => return Err((span, problem)),
                None => peers.push(peer),
            }
        }
        Ok(peers)
    }

    /// True if the peer takes part in `work`.
    pub fn joins(&self, work: Work) -> bool {
        let name = work.to_string();
        self.works.as_ref().is_none_or(|parts| parts.iter().any(|part| name.contains(part)))
    }

    /// The command with `places` put in.
    pub fn command(&self, places: &Places) -> Vec<String> {
        let put = |word: &String| {
            word.replace(LISTEN_PORT, &places.listen_port.to_string())
                .replace(BACKEND_HOST, &places.backend_host)
                .replace(BACKEND_PORT, &places.backend_port.to_string())
        };
        self.command.iter().map(put).collect()
    }

    /// Finds a value that the types allow but that makes no sense.
    fn problem(&self) -> Option<String> {
        let has = |placeholder| self.command.iter().any(|word| word.contains(placeholder));
        let name = &self.name;
        if name.is_empty() || name.contains([',', ' ']) {
            return Some(format!("`{name}` is no name: `--contenders` takes names apart at commas"));
        }
        if self.command.is_empty() {
            return Some(format!("the command of `{name}` is empty; it is a list of program and arguments"));
        }
        if self.port.is_none() && !has(LISTEN_PORT) {
            return Some(format!(
                "`{name}` listens nowhere: set `port`, or use {LISTEN_PORT} in its command"
            ));
        }
        if !has(BACKEND_PORT) {
            return Some(format!("`{name}` forwards nowhere: use {BACKEND_PORT} in its command"));
        }
        None
    }
}

const LISTEN_PORT: &str = "{listen_port}";
const BACKEND_HOST: &str = "{backend_host}";
const BACKEND_PORT: &str = "{backend_port}";
