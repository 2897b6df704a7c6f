//! Follows an OpenVPN server at its management interface, by a thread of its own.
//!
//! The thread asks for the whole status: every few seconds, and soon after a notification that a client has come or gone.
//! OpenVPN does not notify of all of these, so a notification is a hint that nothing depends on.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::ManagementConnection;
use super::status::{OpenVpnStatus, StatusError, StatusProgress};
use crate::config::OpenVpnInterface;
use crate::store::presence::mailbox::{Mailbox, PresenceUpdate};
use crate::sys::service_thread::{ServiceThread, StopSignal};

/// Handle of the thread. The thread ends soon after this is dropped; nobody waits for that.
pub(super) struct ManagementSocket {
    latest: Arc<Mailbox>,
    _thread: ServiceThread,
}

impl ManagementSocket {
    pub(super) fn start(at: OpenVpnInterface) -> Result<Self, String> {
        let latest = Arc::new(Mailbox::default());
        let to_thread = Arc::clone(&latest);
        let follow = move |stop| ManagementFollower { at, stop, latest: to_thread }.run();
        let thread = ServiceThread::start_detached("openvpn", follow)
            .map_err(|error| format!("there is no thread to follow it with ({error})"))?;
        Ok(Self { latest, _thread: thread })
    }

    /// Returns what is new since the last poll. This waits for at most `first_timeout` for the very first answer.
    pub(super) fn poll(&self, first_timeout: Duration) -> PresenceUpdate {
        self.latest.poll(first_timeout)
    }
}

/// State of the thread.
struct ManagementFollower {
    at: OpenVpnInterface,
    stop: StopSignal,
    latest: Arc<Mailbox>,
}

/// Reason why a connection is no longer followed.
#[derive(Debug, thiserror::Error)]
enum FollowEnd {
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
        ANSWER_TIMEOUT.as_secs()
    )]
    Silent,
    #[error(
        "the management interface asks for a password; let it be a Unix socket, and protect that by \
         `management-client-group` or by its folder instead"
    )]
    Password,
    #[error("{0}")]
    Status(#[from] StatusError),
}

impl From<std::io::Error> for FollowEnd {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock => Self::Busy,
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Away(error),
        }
    }
}

impl ManagementFollower {
    fn run(self) {
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            let mut has_answered = false;
            let Err(end) = self.follow(&mut has_answered);
            if matches!(end, FollowEnd::Stopped) {
                return;
            }
            self.latest.put_failure(end.to_string());
            pause = if has_answered { RETRY_PAUSE_MIN } else { (pause * 2).min(RETRY_PAUSE_MAX) };
            if self.stop.is_stopped_within(pause) {
                return;
            }
        }
    }

    fn follow(&self, has_answered: &mut bool) -> Result<Infallible, FollowEnd> {
        let mut connection = ManagementConnection::open(&self.at)?;
        let mut query_at = Instant::now();
        let mut hint_pause = HINT_PAUSE_MIN;
        loop {
            if Instant::now() >= query_at {
                let queried_at = Instant::now();
                let hinted = self.query(&mut connection, has_answered)?;
                // A server with many clients needs time for its other work.
                hint_pause = HINT_PAUSE_MIN.max(queried_at.elapsed() * PAUSE_FACTOR);
                let pause = if hinted { hint_pause } else { hint_pause.max(QUERY_EVERY) };
                query_at = Instant::now() + pause;
            }
            let line = connection.line(query_at.min(Instant::now() + STOP_CHECK_EVERY))?;
            if line.is_some_and(|line| is_hint(&line)) {
                query_at = query_at.min(Instant::now() + hint_pause);
            }
            if self.stop.is_stopped() {
                return Err(FollowEnd::Stopped);
            }
        }
    }

    /// Asks for the status. Returns true if a client has come or gone meanwhile.
    fn query(
        &self,
        connection: &mut ManagementConnection,
        has_answered: &mut bool,
    ) -> Result<bool, FollowEnd> {
        connection.send("status 3")?;
        let give_up_at = Instant::now() + ANSWER_TIMEOUT;
        let mut status = OpenVpnStatus::new(self.at.to_string());
        let mut hinted = false;
        loop {
            let line = connection.line(give_up_at.min(Instant::now() + STOP_CHECK_EVERY))?;
            // A prompt has no end of its line.
            if line.is_none() && connection.unfinished().starts_with(b"ENTER PASSWORD:") {
                return Err(FollowEnd::Password);
            }
            if self.stop.is_stopped() {
                return Err(FollowEnd::Stopped);
            }
            if Instant::now() >= give_up_at {
                return Err(FollowEnd::Silent);
            }
            let Some(line) = line else { continue };
            match AnswerLine::of(&line) {
                AnswerLine::Notification { is_hint } => hinted |= is_hint,
                AnswerLine::Error(message) => {
                    // A server that restarts by itself (SIGUSR1) says this. The connection is good, and the next answer
                    // may be.
                    self.latest.put_failure(format!("the server says: {message}"));
                    return Ok(hinted);
                }
                AnswerLine::Status(line) => {
                    if status.read(line)? == StatusProgress::Ended {
                        self.latest.put(status.finish()?);
                        *has_answered = true;
                        return Ok(hinted);
                    }
                }
            }
        }
    }
}

/// The meaning of a line while an answer is awaited.
pub(in crate::store::presence) enum AnswerLine<'a> {
    /// A notification, which may stand between any two lines of an answer.
    Notification {
        is_hint: bool,
    },
    Error(&'a str),
    /// A line of the status.
    Status(&'a str),
}

impl<'a> AnswerLine<'a> {
    pub(in crate::store::presence) fn of(line: &'a str) -> Self {
        if line.starts_with('>') {
            return Self::Notification { is_hint: is_hint(line) };
        }
        match line.strip_prefix("ERROR: ") {
            Some(message) => Self::Error(message.trim()),
            None => Self::Status(line),
        }
    }
}

/// True if `line` notifies that a client has come, gone or moved.
fn is_hint(line: &str) -> bool {
    let event = line.strip_prefix(">CLIENT:").unwrap_or_default();
    ["ESTABLISHED,", "DISCONNECT,", "ADDRESS,"].iter().any(|kind| event.starts_with(kind))
}

/// Time between two queries for the status. They find clients that have gone, since OpenVPN notifies only of those that
/// come. Each query is a line in the server's log from `verb 3` on.
const QUERY_EVERY: Duration = Duration::from_secs(2);

/// Shortest time between two queries while clients come. Many clients at once are read in batches.
const HINT_PAUSE_MIN: Duration = Duration::from_millis(50);

/// Length of the pause after an answer, in multiples of the time that the answer took.
const PAUSE_FACTOR: u32 = 10;

/// Longest wait for a whole status.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two checks for the end of the thread.
const STOP_CHECK_EVERY: Duration = Duration::from_millis(500);

/// Shortest pause between two attempts to connect. It doubles with each that fails.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(100);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::authz::DeviceUuid;
    use crate::store::presence::address_list::AddressList;

    const TIMEOUT: Duration = Duration::from_secs(60);
    const HEADER: &str = "TITLE\tOpenVPN\nHEADER\tROUTING_TABLE\tVirtual Address\tCommon Name\n";
    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    /// A management socket whose server a test plays.
    struct FakeServer {
        _folder: tempfile::TempDir,
        listener: UnixListener,
        management: ManagementSocket,
    }

    impl FakeServer {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("management");
            let listener = UnixListener::bind(&path).unwrap();
            Self {
                _folder: folder,
                listener,
                management: ManagementSocket::start(OpenVpnInterface::Path(path)).unwrap(),
            }
        }

        fn accept(&self) -> UnixStream {
            let (stream, _) = self.listener.accept().unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            stream
        }

        /// The next update that the thread gives.
        fn update(&self) -> Result<Box<AddressList>, String> {
            let give_up_at = Instant::now() + TIMEOUT;
            while Instant::now() < give_up_at {
                match self.management.poll(TIMEOUT) {
                    PresenceUpdate::Nothing => std::thread::sleep(Duration::from_millis(1)),
                    PresenceUpdate::Addresses(list) => return Ok(list),
                    PresenceUpdate::Failed(failure) => return Err(failure),
                }
            }
            panic!("there was no update");
        }
    }

    /// Waits for a query, and gives `answer`.
    fn answer(stream: &UnixStream, answer: &str) {
        let mut query = String::new();
        BufReader::new(stream).read_line(&mut query).unwrap();
        assert_eq!(query, "status 3\n");
        let mut stream = stream;
        stream.write_all(answer.as_bytes()).unwrap();
    }

    fn address(list: &AddressList) -> Option<String> {
        list.addresses.get(&DeviceUuid::parse(A).unwrap()).map(ToString::to_string)
    }

    #[test]
    fn notifications_within_a_status_are_no_part_of_it_and_lead_to_another_query() {
        let server = FakeServer::new();
        let stream = server.accept();
        let noise = ">CLIENT:ESTABLISHED,0\n>CLIENT:ENV,common_name=x\n";
        answer(&stream, &format!(">INFO:hello\n{HEADER}{noise}ROUTING_TABLE\t10.8.0.2\t{A}\nEND\n"));
        assert_eq!(address(&server.update().unwrap()).as_deref(), Some("10.8.0.2"));
        let queried_at = Instant::now();
        answer(&stream, &format!("{HEADER}ROUTING_TABLE\t10.8.0.3\t{A}\nEND\n"));
        assert!(queried_at.elapsed() < QUERY_EVERY, "not at its turn");
        assert_eq!(address(&server.update().unwrap()).as_deref(), Some("10.8.0.3"));
    }

    #[test]
    fn a_server_that_says_error_is_asked_again_on_the_same_connection() {
        let server = FakeServer::new();
        let stream = server.accept();
        answer(&stream, "ERROR: The 'status' command is not supported by the current daemon mode\r\n");
        assert!(server.update().err().unwrap().starts_with("the server says: The 'status' command"));
        answer(&stream, &format!("{HEADER}END\n"));
        assert_eq!(server.update().unwrap().addresses.len(), 0);
    }

    #[test]
    fn a_status_that_breaks_off_says_nothing_and_the_next_connection_is_asked() {
        let server = FakeServer::new();
        answer(&server.accept(), &format!("{HEADER}ROUTING_TABLE\t10.8.0.2\t{A}\n"));
        assert_eq!(server.update().err().as_deref(), Some("the server has closed the connection"));
        let stream = server.accept();
        answer(&stream, &format!("{HEADER}ROUTING_TABLE\t10.8.0.2\t{A}\nEND\n"));
        assert_eq!(address(&server.update().unwrap()).as_deref(), Some("10.8.0.2"));
    }

    #[test]
    fn a_socket_that_asks_for_a_password_is_an_error_with_the_remedy() {
        let server = FakeServer::new();
        let mut stream = server.accept();
        stream.write_all(b"ENTER PASSWORD:").unwrap();
        assert!(server.update().err().unwrap().contains("asks for a password"));
    }
}
