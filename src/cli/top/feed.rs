//! Polls the relay once a second. It runs in a thread of its own, so that keys work while the relay is slow.

use std::io;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::admin::api::{SessionId, SessionListing, StatusReport};
use crate::admin::routes;
use crate::cli::admin_client::AdminClient;
use crate::cli::output::CommandError;

pub struct Feed {
    events: Receiver<FeedEvent>,
    end_requests: Sender<SessionId>,
}

pub enum FeedEvent {
    Picture(Box<StatusReport>, SessionListing),
    /// Reason why there is no new picture.
    Trouble(String),
    /// Outcome of a request to end a session.
    Ended(String),
}

impl Feed {
    pub fn start(relay: AdminClient) -> io::Result<Self> {
        let (send, events) = bounded(EVENTS_MAX);
        let (end_requests, to_end) = bounded(END_REQUESTS_MAX);
        std::thread::Builder::new().name("feed".to_owned()).spawn(move || serve(&relay, &send, &to_end))?;
        Ok(Self { events, end_requests })
    }

    pub fn next(&self) -> Option<FeedEvent> {
        self.events.try_recv().ok()
    }

    /// Requests the end of a session. Returns false where too many requests wait.
    pub fn end(&self, session: SessionId) -> bool {
        self.end_requests.try_send(session).is_ok()
    }
}

/// Serves until the view is gone.
fn serve(relay: &AdminClient, send: &Sender<FeedEvent>, to_end: &Receiver<SessionId>) {
    loop {
        let event = match picture(relay) {
            Ok((report, sessions)) => FeedEvent::Picture(Box::new(report), sessions),
            Err(error) => FeedEvent::Trouble(error.to_string()),
        };
        if send.send(event).is_err() {
            return;
        }
        match to_end.recv_timeout(POLL_INTERVAL) {
            Ok(session) => {
                let message = match relay.post(&routes::session_end(&session.to_string())) {
                    Ok(_) => format!("ended session {session}"),
                    Err(error) => error.to_string(),
                };
                if send.send(FeedEvent::Ended(message)).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn picture(relay: &AdminClient) -> Result<(StatusReport, SessionListing), CommandError> {
    Ok((relay.status()?, relay.sessions()?))
}

const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Events that wait to be drawn. The thread waits for room.
const EVENTS_MAX: usize = 2;

/// Sessions that wait to be ended.
const END_REQUESTS_MAX: usize = 4;
