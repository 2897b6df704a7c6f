//! The works that every contender is put to, and the names by which reports know them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One kind of load. What it is run for how long, and how often, is the plan's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Streams as fast as they go, counted where they arrive.
    Bulk { direction: Direction, streams: usize },
    /// A request of `bytes`, answered by as many, one at a time on each connection.
    Exchange { bytes: usize, connections: usize, pace: Pace },
    /// Connect, where asked to the CONNECT and its reply, one byte there and back, close.
    NewTunnels { in_flight: usize },
    /// Sessions that were used once and then say nothing.
    Idle { sessions: usize },
    /// Exchanges of 128 bytes in a closed loop, while streams go down beside them.
    Mixed { streams: usize, connections: usize },
}

/// The direction of bulk, seen from the client.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    Up,
    Down,
    Both,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pace {
    /// The next request follows its answer.
    Closed,
    /// Requests are due at an even rate, whatever the answers do: this share, in percent, of what this
    /// contender managed in the closed loop. Latency counts from when a request was due.
    Open { percent: u32 },
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Both => "both ways",
        })
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Bulk { direction, streams } => write!(f, "bulk {direction}, {}", count(streams, "stream")),
            Self::Exchange { bytes, connections, pace } => {
                write!(f, "{bytes} B exchanges, {}", count(connections, "connection"))?;
                match pace {
                    Pace::Closed => Ok(()),
                    Pace::Open { percent } => write!(f, ", open at {percent} %"),
                }
            }
            Self::NewTunnels { in_flight } => write!(f, "new tunnels, {in_flight} in flight"),
            Self::Idle { sessions } => write!(f, "idle, {}", count(sessions, "session")),
            Self::Mixed { streams, connections } => {
                write!(f, "{} beside {}", count(connections, "connection"), count(streams, "stream"))
            }
        }
    }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
