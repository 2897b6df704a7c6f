//! An OpenVPN server followed at its management socket, by a thread of its own.
//!
//! The thread asks for the whole status: every now and then, and soon after a notification that a client has come or
//! gone. OpenVPN tells of few of these, so that a notification is a hint, and nothing depends on it.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::status::{Progress, Status, StatusError};
use crate::store::presence::mailbox::{Mailbox, Update};
use crate::sys::service_thread::{ServiceThread, StopSignal};

/// The thread's handle; the thread ends soon after this is dropped, but is not waited for.
pub(super) struct Management {
    latest: Arc<Mailbox>,
    _thread: ServiceThread,
}

impl Management {
    pub(super) fn start(path: PathBuf) -> Result<Self, String> {
        let latest = Arc::new(Mailbox::default());
        let to_thread = Arc::clone(&latest);
        let follow = move |stop| Follower { path, stop, latest: to_thread }.run();
        let thread = ServiceThread::start_detached("openvpn", follow)
            .map_err(|error| format!("there is no thread to follow it with ({error})"))?;
        Ok(Self { latest, _thread: thread })
    }

    /// What there is to say by now; waits so long for the very first answer.
    pub(super) fn news(&self, patience: Duration) -> Update {
        self.latest.take(patience)
    }
}

/// What the thread owns.
struct Follower {
    path: PathBuf,
    stop: StopSignal,
    latest: Arc<Mailbox>,
}

/// Why a connection came to its end.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("no longer wanted")]
    Stopped,
    #[error("the server is away: {0}")]
    Away(std::io::Error),
    #[error("the server has closed the connection")]
    Closed,
    #[error("other programs wait at the management socket, which serves one at a time")]
    Busy,
    #[error(
        "no answer within {} s; the management socket serves one program at a time",
        ANSWER_PATIENCE.as_secs()
    )]
    Silent,
    #[error(
        "the management socket asks for a password; protect it by `management-client-group` instead, or by its folder"
    )]
    Password,
    #[error("{0}")]
    Status(#[from] StatusError),
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock => Self::Busy,
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Away(error),
        }
    }
}

impl Follower {
    fn run(self) {
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            let mut has_answered = false;
            let Err(end) = self.follow(&mut has_answered);
            if matches!(end, End::Stopped) {
                return;
            }
            self.latest.tell_trouble(end.to_string());
            pause = if has_answered { RETRY_PAUSE_MIN } else { (pause * 2).min(RETRY_PAUSE_MAX) };
            if self.stop.is_stopped_within(pause) {
                return;
            }
        }
    }

    fn follow(&self, has_answered: &mut bool) -> Result<Infallible, End> {
        let mut connection = Connection::open(&self.path)?;
        let mut ask_at = Instant::now();
        let mut hint_pause = HINT_PAUSE_MIN;
        loop {
            if Instant::now() >= ask_at {
                let asked_at = Instant::now();
                let hinted = self.ask(&mut connection, has_answered)?;
                // A server with many clients has other things to do as well.
                hint_pause = HINT_PAUSE_MIN.max(asked_at.elapsed() * PAUSE_FACTOR);
                let pause = if hinted { hint_pause } else { hint_pause.max(ASK_EVERY) };
                ask_at = Instant::now() + pause;
            }
            let line = connection.line(ask_at.min(Instant::now() + STOP_LOOK))?;
            if line.is_some_and(|line| is_hint(&line)) {
                ask_at = ask_at.min(Instant::now() + hint_pause);
            }
            if self.stop.is_stopped() {
                return Err(End::Stopped);
            }
        }
    }

    /// Asks who is connected, and says whether that has changed meanwhile.
    fn ask(&self, connection: &mut Connection, has_answered: &mut bool) -> Result<bool, End> {
        connection.send("status 3")?;
        let give_up_at = Instant::now() + ANSWER_PATIENCE;
        let mut status = Status::new(self.path.display().to_string());
        let mut hinted = false;
        loop {
            let line = connection.line(give_up_at.min(Instant::now() + STOP_LOOK))?;
            // A prompt has no end of its line.
            if line.is_none() && connection.unfinished().starts_with(b"ENTER PASSWORD:") {
                return Err(End::Password);
            }
            if self.stop.is_stopped() {
                return Err(End::Stopped);
            }
            if Instant::now() >= give_up_at {
                return Err(End::Silent);
            }
            let Some(line) = line else { continue };
            if line.starts_with('>') {
                hinted |= is_hint(&line);
            } else if let Some(told) = line.strip_prefix("ERROR: ") {
                // As while it restarts by itself (SIGUSR1): the connection is good, and the next answer may be.
                self.latest.tell_trouble(format!("the server says: {}", told.trim()));
                return Ok(hinted);
            } else if status.read(&line)? == Progress::Ended {
                self.latest.tell(status.finish()?);
                *has_answered = true;
                return Ok(hinted);
            }
        }
    }
}

/// Whether `line` notifies that somebody has come, gone or moved.
fn is_hint(line: &str) -> bool {
    let told = line.strip_prefix(">CLIENT:").unwrap_or_default();
    ["ESTABLISHED,", "DISCONNECT,", "ADDRESS,"].iter().any(|event| told.starts_with(event))
}

/// Between two questions for the status, which finds clients that went: OpenVPN notifies of those that come only.
/// Each question is a line in the server's log from `verb 3` on.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// Between a status and the next one where somebody comes. A storm of clients is taken in batches.
const HINT_PAUSE_MIN: Duration = Duration::from_millis(50);

/// How many times longer than an answer takes nothing is asked.
const PAUSE_FACTOR: u32 = 10;

/// For a status, from its first byte to its last.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks at whether the thread is still wanted.
const STOP_LOOK: Duration = Duration::from_millis(500);

/// Between two attempts to connect; doubled with each that fails.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(100);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::authz::DeviceUuid;
    use crate::store::presence::lines::Lines;

    const PATIENCE: Duration = Duration::from_secs(60);
    const HEADER: &str = "TITLE\tOpenVPN\nHEADER\tROUTING_TABLE\tVirtual Address\tCommon Name\n";
    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    /// A management socket whose server a test plays.
    struct Server {
        _folder: tempfile::TempDir,
        listener: UnixListener,
        management: Management,
    }

    impl Server {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("management");
            let listener = UnixListener::bind(&path).unwrap();
            Self { _folder: folder, listener, management: Management::start(path).unwrap() }
        }

        fn accept(&self) -> UnixStream {
            let (stream, _) = self.listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        }

        /// The next thing that the thread has to say.
        fn news(&self) -> Result<Box<Lines>, String> {
            let give_up_at = Instant::now() + PATIENCE;
            while Instant::now() < give_up_at {
                match self.management.news(PATIENCE) {
                    Update::Nothing => std::thread::sleep(Duration::from_millis(1)),
                    Update::Lines(lines) => return Ok(lines),
                    Update::Trouble(trouble) => return Err(trouble),
                }
            }
            panic!("there was no news");
        }
    }

    /// Waits for a question, and gives `answer`.
    fn answer(stream: &UnixStream, answer: &str) {
        let mut question = String::new();
        BufReader::new(stream).read_line(&mut question).unwrap();
        assert_eq!(question, "status 3\n");
        let mut stream = stream;
        stream.write_all(answer.as_bytes()).unwrap();
    }

    fn address(lines: &Lines) -> Option<String> {
        lines.addresses.get(&DeviceUuid::parse(A).unwrap()).map(ToString::to_string)
    }

    #[test]
    fn notifications_within_a_status_are_no_part_of_it_and_have_it_asked_for_again() {
        let server = Server::new();
        let stream = server.accept();
        let noise = ">CLIENT:ESTABLISHED,0\n>CLIENT:ENV,common_name=x\n";
        answer(&stream, &format!(">INFO:hello\n{HEADER}{noise}ROUTING_TABLE\t10.8.0.2\t{A}\nEND\n"));
        assert_eq!(address(&server.news().unwrap()).as_deref(), Some("10.8.0.2"));
        let asked_at = Instant::now();
        answer(&stream, &format!("{HEADER}ROUTING_TABLE\t10.8.0.3\t{A}\nEND\n"));
        assert!(asked_at.elapsed() < ASK_EVERY, "not at its turn");
        assert_eq!(address(&server.news().unwrap()).as_deref(), Some("10.8.0.3"));
    }

    #[test]
    fn a_server_that_says_error_is_asked_again_on_the_same_connection() {
        let server = Server::new();
        let stream = server.accept();
        answer(&stream, "ERROR: The 'status' command is not supported by the current daemon mode\r\n");
        assert!(server.news().err().unwrap().starts_with("the server says: The 'status' command"));
        answer(&stream, &format!("{HEADER}END\n"));
        assert_eq!(server.news().unwrap().addresses.len(), 0);
    }

    #[test]
    fn a_status_that_breaks_off_says_nothing_and_the_next_connection_is_asked() {
        let server = Server::new();
        answer(&server.accept(), &format!("{HEADER}ROUTING_TABLE\t10.8.0.2\t{A}\n"));
        assert_eq!(server.news().err().as_deref(), Some("the server has closed the connection"));
        let stream = server.accept();
        answer(&stream, &format!("{HEADER}ROUTING_TABLE\t10.8.0.2\t{A}\nEND\n"));
        assert_eq!(address(&server.news().unwrap()).as_deref(), Some("10.8.0.2"));
    }

    #[test]
    fn a_socket_that_asks_for_a_password_is_told_with_the_remedy() {
        let server = Server::new();
        let mut stream = server.accept();
        stream.write_all(b"ENTER PASSWORD:").unwrap();
        assert!(server.news().err().unwrap().contains("asks for a password"));
    }
}
