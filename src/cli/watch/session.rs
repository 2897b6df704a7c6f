//! The sessions of a relay: which of them, and in which order.

use std::cmp::Reverse;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::admin::routes;
use crate::cli::admin_client::AdminClient;
use crate::cli::output::CommandError;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Session {
    pub id: String,
    pub client: Option<String>,
    pub principal: Option<i64>,
    pub credential: Option<String>,
    pub grant: Option<i64>,
    pub device: Option<i64>,
    pub uuid: Option<String>,
    pub port: Option<u16>,
    pub generation: Option<u64>,
    pub state: String,
    pub since: i64,
    pub handshake_us: Option<u64>,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub path_up: Option<String>,
    pub path_down: Option<String>,
    pub rate_up: Option<u64>,
    pub rate_down: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct SessionList {
    pub sessions: Vec<Session>,
    /// Sessions that came while the list was made, beyond the room for them.
    pub left_out: usize,
}

/// Which sessions; all that is given has to fit.
#[derive(Clone, Default, Debug, Args)]
pub struct Filter {
    /// Sessions to a device, by the first digits of its uuid.
    #[arg(long, value_name = "UUID")]
    pub device: Option<String>,
    /// Sessions of a principal, by its id in `principal list`.
    #[arg(long, value_name = "ID")]
    pub principal: Option<i64>,
    /// Sessions from a client address, or from those that begin so.
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<String>,
}

/// What goes first: the most of it, or the first in the alphabet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum SortKey {
    /// Bytes per second, both directions.
    Rate,
    /// Bytes so far, both directions.
    Bytes,
    Age,
    Device,
    Principal,
    Client,
}

impl SessionList {
    pub fn read(relay: &AdminClient) -> Result<Self, CommandError> {
        Self::from_json(relay.get(routes::SESSIONS)?)
    }

    fn from_json(json: Value) -> Result<Self, CommandError> {
        serde_json::from_value(json).map_err(|error| {
            CommandError::failed(format!(
                "the relay's sessions are not understood ({error}); is it of the same version?"
            ))
        })
    }
}

impl Session {
    /// Bytes per second, both directions; 0 where it is not known.
    pub fn rate(&self) -> u64 {
        self.rate_up.unwrap_or(0) + self.rate_down.unwrap_or(0)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes_up + self.bytes_down
    }

    /// `UUID:PORT`, as far as it is known.
    pub fn target(&self) -> String {
        match (&self.uuid, self.port) {
            (Some(uuid), Some(port)) => format!("{uuid}:{port}"),
            _ => "-".to_owned(),
        }
    }

    /// How both directions move their bytes.
    pub fn paths(&self) -> String {
        match (&self.path_up, &self.path_down) {
            (Some(up), Some(down)) if up == down => up.clone(),
            (Some(up), Some(down)) => format!("{up}/{down}"),
            _ => "-".to_owned(),
        }
    }

    /// Whether `text` is in anything that it is known by.
    pub fn mentions(&self, text: &str) -> bool {
        let principal = self.principal.map(|id| format!("principal {id}"));
        [
            Some(&self.id),
            self.client.as_ref(),
            self.credential.as_ref(),
            self.uuid.as_ref(),
            principal.as_ref(),
        ]
        .into_iter()
        .flatten()
        .chain([&self.state])
        .any(|word| word.contains(text))
    }
}

impl Filter {
    pub fn fits(&self, session: &Session) -> bool {
        let begins = |wanted: &Option<String>, found: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| {
                found.as_ref().is_some_and(|found| found.starts_with(&wanted.to_ascii_lowercase()))
            })
        };
        begins(&self.device, &session.uuid)
            && begins(&self.client, &session.client)
            && self.principal.is_none_or(|wanted| session.principal == Some(wanted))
    }
}

impl SortKey {
    /// The next one, round and round.
    pub fn next(self) -> Self {
        let all = Self::value_variants();
        let place = all.iter().position(|key| *key == self).unwrap_or(0);
        all[(place + 1) % all.len()]
    }

    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Sessions that are equal by `by` stay in the order of their age, so that a live list does not flicker.
pub fn sort(sessions: &mut [Session], by: SortKey) {
    sessions.sort_by(|a, b| (a.since, &a.id).cmp(&(b.since, &b.id)));
    match by {
        SortKey::Rate => sessions.sort_by_key(|session| Reverse((session.rate(), session.bytes()))),
        SortKey::Bytes => sessions.sort_by_key(|session| Reverse(session.bytes())),
        SortKey::Age => {}
        SortKey::Device => sessions.sort_by_key(Session::target),
        SortKey::Principal => sessions.sort_by_key(|session| session.principal),
        SortKey::Client => sessions.sort_by(|a, b| a.client.cmp(&b.client)),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn session(number: i64) -> Session {
        Session {
            id: number.to_string(),
            client: Some(format!("192.0.2.{number}:5000")),
            principal: Some(number % 2),
            credential: Some("00ff".to_owned()),
            grant: Some(1),
            device: Some(number),
            uuid: Some(format!("{:032x}", 10 - number)),
            port: Some(80),
            generation: Some(1),
            state: "open".to_owned(),
            since: 1000 - number,
            handshake_us: Some(100),
            bytes_up: 10 * number as u64,
            bytes_down: 0,
            path_up: Some("copy".to_owned()),
            path_down: Some("splice".to_owned()),
            rate_up: Some(number as u64 % 3),
            rate_down: None,
        }
    }

    fn sorted(by: SortKey) -> Vec<String> {
        let mut sessions: Vec<_> = (1..=4).map(session).collect();
        sort(&mut sessions, by);
        sessions.into_iter().map(|session| session.id).collect()
    }

    #[test]
    fn sessions_come_in_the_order_that_was_asked_for() {
        assert_eq!(sorted(SortKey::Rate), ["2", "4", "1", "3"]);
        assert_eq!(sorted(SortKey::Bytes), ["4", "3", "2", "1"]);
        assert_eq!(sorted(SortKey::Age), ["4", "3", "2", "1"]);
        assert_eq!(sorted(SortKey::Device), ["4", "3", "2", "1"]);
        assert_eq!(sorted(SortKey::Principal), ["4", "2", "3", "1"]);
        assert_eq!(sorted(SortKey::Client), ["1", "2", "3", "4"]);
        let all = SortKey::value_variants();
        assert_eq!(all.iter().map(|key| key.next()).collect::<Vec<_>>().last(), all.first());
    }

    #[test]
    fn a_filter_wants_all_that_it_names() {
        let fits = |device: Option<&str>, principal, client: Option<&str>| {
            let [device, client] = [device, client].map(|text| text.map(str::to_owned));
            Filter { device, principal, client }.fits(&session(1))
        };
        assert!(fits(None, None, None));
        assert!(fits(Some("0000000"), Some(1), Some("192.0.2.1")));
        assert!(!fits(Some("00000009"), None, None));
        assert!(!fits(None, Some(2), None));
        assert!(!fits(Some("0000000"), Some(1), Some("192.0.3.")));
    }

    #[test]
    fn a_session_is_found_by_what_it_is_known_by() {
        let session = session(1);
        for text in ["192.0.2.1", "00ff", "principal 1", "open"] {
            assert!(session.mentions(text), "{text}");
        }
        assert!(!session.mentions("192.0.2.2"));
    }
}
