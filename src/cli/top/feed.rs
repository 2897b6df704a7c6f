//! Asks the relay once a second, in a thread of its own: a relay that is slow to answer keeps no key waiting.

use std::io;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::admin::routes;
use crate::cli::admin_client::AdminClient;
use crate::cli::output::CommandError;
use crate::cli::watch::{Report, SessionList};

pub struct Feed {
    news: Receiver<FeedEvent>,
    to_end: Sender<String>,
}

pub enum FeedEvent {
    Picture(Box<Report>, SessionList),
    /// Why there is no new picture.
    Trouble(String),
    /// What came of ending a session.
    Ended(String),
}

impl Feed {
    pub fn start(relay: AdminClient) -> io::Result<Self> {
        let (tell, news) = bounded(NEWS_MAX);
        let (to_end, wanted) = bounded(ENDS_MAX);
        std::thread::Builder::new().name("feed".to_owned()).spawn(move || serve(&relay, &tell, &wanted))?;
        Ok(Self { news, to_end })
    }

    pub fn next(&self) -> Option<FeedEvent> {
        self.news.try_recv().ok()
    }

    /// Whether there was room for the wish.
    pub fn end(&self, session: String) -> bool {
        self.to_end.try_send(session).is_ok()
    }
}

/// Until nobody listens any more.
fn serve(relay: &AdminClient, tell: &Sender<FeedEvent>, wanted: &Receiver<String>) {
    loop {
        let news = match picture(relay) {
            Ok((report, sessions)) => FeedEvent::Picture(Box::new(report), sessions),
            Err(error) => FeedEvent::Trouble(error.to_string()),
        };
        if tell.send(news).is_err() {
            return;
        }
        match wanted.recv_timeout(EVERY) {
            Ok(session) => {
                let told = match relay.post(&routes::session_end(&session)) {
                    Ok(_) => format!("ended session {session}"),
                    Err(error) => error.to_string(),
                };
                if tell.send(FeedEvent::Ended(told)).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn picture(relay: &AdminClient) -> Result<(Report, SessionList), CommandError> {
    Ok((Report::read(relay)?, SessionList::read(relay)?))
}

const EVERY: Duration = Duration::from_secs(1);

/// Pictures that wait to be drawn; the thread waits for room.
const NEWS_MAX: usize = 2;

/// Sessions that wait to be ended.
const ENDS_MAX: usize = 4;
