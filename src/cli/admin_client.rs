//! The relay that runs on this machine, by its local socket.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::output::CommandError;
use crate::config::Admin;

pub(super) struct AdminClient {
    socket: PathBuf,
}

impl AdminClient {
    pub fn of(admin: &Admin) -> Result<Self, CommandError> {
        match &admin.socket {
            Some(socket) => Ok(Self { socket: socket.clone() }),
            None => Err(CommandError::failed("admin.socket is not configured; the relay cannot be asked")),
        }
    }

    pub fn get(&self, path: &str) -> Result<Value, CommandError> {
        self.ask("GET", path, "")
    }

    pub fn post(&self, path: &str) -> Result<Value, CommandError> {
        self.ask("POST", path, "")
    }

    pub fn post_json(&self, path: &str, body: &impl Serialize) -> Result<Value, CommandError> {
        self.ask("POST", path, &serde_json::to_string(body).map_err(CommandError::failed)?)
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Result<Value, CommandError> {
        let answer = self.exchange(method, path, body).map_err(|error| self.unreachable(&error))?;
        let not_understood = || {
            CommandError::failed(format!(
                "the answer from {} is not understood; is the relay of the same version?",
                self.socket.display()
            ))
        };
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let Ok(httparse::Status::Complete(head)) = response.parse(&answer) else {
            return Err(not_understood());
        };
        let body: Value = serde_json::from_slice(&answer[head..]).map_err(|_| not_understood())?;
        match (response.code, body["error"].as_str()) {
            (Some(200), _) => Ok(body),
            (_, Some(error)) => Err(CommandError::failed(error.to_owned())),
            _ => Err(not_understood()),
        }
    }

    fn exchange(&self, method: &str, path: &str, body: &str) -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = body.len();
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: relay\r\n{kind}Content-Length: {length}\r\n\r\n");
        stream.write_all((head + body).as_bytes())?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
        Ok(answer)
    }

    fn unreachable(&self, error: &std::io::Error) -> CommandError {
        let remedy = match error.kind() {
            ErrorKind::PermissionDenied => {
                "are you the user that it runs as, or in the group admin.socket_group?"
            }
            _ => "is it running, and is this its configuration?",
        };
        CommandError::failed(format!(
            "no relay can be asked at {} ({error}); {remedy}",
            self.socket.display()
        ))
    }
}

/// A little longer than the relay takes at most.
const PATIENCE: Duration = Duration::from_secs(65);

/// Of an answer, which has three or four.
const HEADERS_MAX: usize = 32;

/// A hundred thousand sessions, and more than anybody looks at.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;
