//! The relay that runs on this machine, by its local socket.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::output::CommandError;
use crate::config::Admin;

pub(super) struct Relay {
    socket: PathBuf,
}

impl Relay {
    pub fn of(admin: &Admin) -> Result<Self, CommandError> {
        match &admin.socket {
            Some(socket) => Ok(Self { socket: socket.clone() }),
            None => Err(CommandError::failed("admin.socket is not configured; the relay cannot be asked")),
        }
    }

    pub fn get(&self, path: &str) -> Result<Value, CommandError> {
        self.ask("GET", path)
    }

    pub fn post(&self, path: &str) -> Result<Value, CommandError> {
        self.ask("POST", path)
    }

    fn ask(&self, method: &str, path: &str) -> Result<Value, CommandError> {
        let answer = self.exchange(method, path).map_err(|error| self.unreachable(&error))?;
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

    fn exchange(&self, method: &str, path: &str) -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: relay\r\nContent-Length: 0\r\n\r\n")?;
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
