//! The client of the admin side of a relay on this machine, over its local socket.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::output::CommandError;
use crate::admin::api::{ErrorBody, SessionListing, StatusReport};
use crate::admin::routes;
use crate::config::Admin;

pub(super) struct AdminClient {
    socket: PathBuf,
}

/// A JSON document from the relay. Programs get it as it came; texts are made from its type.
pub(super) struct AdminDocument {
    pub json: Value,
}

impl AdminDocument {
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, CommandError> {
        T::deserialize(&self.json).map_err(|error| {
            CommandError::failed(format!(
                "the relay's response is not understood ({error}); is it of the same version?"
            ))
        })
    }
}

impl AdminClient {
    pub fn of(admin: &Admin) -> Result<Self, CommandError> {
        match &admin.socket {
            Some(socket) => Ok(Self { socket: socket.clone() }),
            None => Err(CommandError::failed(
                "admin.socket is not configured, so commands cannot reach the relay",
            )),
        }
    }

    /// Requests the document at `path`.
    pub fn get(&self, path: &str) -> Result<AdminDocument, CommandError> {
        self.request("GET", path, "")
    }

    /// Runs the command at `path` on the relay.
    pub fn post(&self, path: &str) -> Result<AdminDocument, CommandError> {
        self.request("POST", path, "")
    }

    pub fn post_json(&self, path: &str, body: &impl Serialize) -> Result<AdminDocument, CommandError> {
        self.request("POST", path, &serde_json::to_string(body).map_err(CommandError::failed)?)
    }

    pub fn status(&self) -> Result<StatusReport, CommandError> {
        self.get(routes::STATUS)?.read()
    }

    pub fn sessions(&self) -> Result<SessionListing, CommandError> {
        self.get(routes::SESSIONS)?.read()
    }

    fn request(&self, method: &str, path: &str, body: &str) -> Result<AdminDocument, CommandError> {
        let response = self.exchange(method, path, body).map_err(|error| self.unreachable(&error))?;
        let not_understood = || {
            CommandError::failed(format!(
                "the response from {} is not understood; is the relay of the same version?",
                self.socket.display()
            ))
        };
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Response::new(&mut headers);
        let Ok(httparse::Status::Complete(head_len)) = head.parse(&response) else {
            return Err(not_understood());
        };
        let json: Value = serde_json::from_slice(&response[head_len..]).map_err(|_| not_understood())?;
        match head.code {
            Some(200) => Ok(AdminDocument { json }),
            _ => match ErrorBody::deserialize(&json) {
                Ok(ErrorBody { error }) => Err(CommandError::failed(error)),
                Err(_) => Err(not_understood()),
            },
        }
    }

    fn exchange(&self, method: &str, path: &str, body: &str) -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        let length = body.len();
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: relay\r\n{kind}Content-Length: {length}\r\n\r\n");
        stream.write_all((head + body).as_bytes())?;
        let mut response = Vec::new();
        stream.take(RESPONSE_BYTES_MAX).read_to_end(&mut response)?;
        Ok(response)
    }

    fn unreachable(&self, error: &std::io::Error) -> CommandError {
        let remedy = match error.kind() {
            ErrorKind::PermissionDenied => {
                "run as the user that the relay runs as, or as a member of admin.socket_group"
            }
            _ => "is it running, and is this its configuration?",
        };
        CommandError::failed(format!(
            "no relay can be asked at {} ({error}); {remedy}",
            self.socket.display()
        ))
    }
}

/// Longer than the relay takes for any response.
const READ_TIMEOUT: Duration = Duration::from_secs(65);

/// Header fields that a response may have; the relay sends three or four.
const HEADERS_MAX: usize = 32;

/// Longest response that is read: the list of more than 100,000 sessions.
const RESPONSE_BYTES_MAX: u64 = 64 * 1024 * 1024;
