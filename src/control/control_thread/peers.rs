//! What the peers say of the first answers, on a start without memory.

use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;

use super::ControlThread;
use crate::authz::UnixMillis;
use crate::control::neighbours::{Inquiry, InquiryAnswer, PeerSummaries};

/// See the module.
pub(super) struct Peers {
    /// `None` where the node stands alone.
    inquiry: Option<Inquiry>,
    /// The peers are being asked.
    answer: Option<Receiver<InquiryAnswer>>,
    ask_at: Instant,
}

impl Peers {
    pub(super) fn new(inquiry: Option<Inquiry>) -> Self {
        Self { inquiry, answer: None, ask_at: Instant::now() }
    }

    /// Begins to ask the peers. False where there is nobody to ask.
    fn ask(&mut self) -> bool {
        self.ask_at = Instant::now() + ASK_EVERY;
        let Some(inquiry) = &self.inquiry else { return false };
        match inquiry.begin() {
            Ok(answer) => self.answer = Some(answer),
            Err(error) => {
                tracing::warn!("peers cannot be asked ({error}); raise the limit on threads or memory");
            }
        }
        true
    }

    /// The answer, if it has come.
    fn poll(&mut self) -> Option<InquiryAnswer> {
        let answer = self.answer.as_ref()?.try_recv().ok()?;
        self.answer = None;
        Some(answer)
    }
}

impl ControlThread {
    /// Asks the peers about the first answers, which wait for them until the time that is returned.
    pub(super) fn ask_about_first(&mut self) -> Instant {
        if self.guard.is_enabled() {
            if self.peers.ask() {
                self.guard.await_peers();
            } else {
                self.log_unchecked(&PeerSummaries::default(), "there are no peers to ask");
            }
        }
        Instant::now() + FIRST_WAIT_MAX
    }

    /// The channel on which the peers' answers come, for a start that waits for them.
    pub(super) fn peers_answer(&self) -> Receiver<InquiryAnswer> {
        self.peers.answer.clone().unwrap_or_else(crossbeam::channel::never)
    }

    /// The first answers wait no more: the peers have answered, or `None` where they have not in time.
    pub(super) fn hear_about_first(&mut self, answer: Option<InquiryAnswer>) {
        let said = match answer {
            Some(Ok(said)) => {
                let reason = match (said.summaries.is_empty(), said.silent.is_empty()) {
                    (true, true) => "there are no peers to ask",
                    (true, false) => "no peer has answered",
                    (false, true) => "all peers have answered",
                    (false, false) => "some peers have not answered",
                };
                self.log_unchecked(&said, reason);
                said
            }
            Some(Err(error)) => {
                let said = PeerSummaries::default();
                self.log_unchecked(&said, &format!("the list of nodes cannot be read: {error}"));
                said
            }
            None => {
                let said = PeerSummaries::default();
                self.log_unchecked(&said, "neither the list of nodes nor the peers have answered in time");
                said
            }
        };
        self.peers.answer = None;
        let now = self.now();
        let judged = self.guard.hear_peers(said, now);
        self.publish(judged, None);
        self.confirm();
    }

    /// Asks again while the peers object.
    pub(super) fn poll_peers(&mut self, now: UnixMillis) {
        // Where nobody answers, what they have said before counts on; it is asked again.
        if let Some(Ok(said)) = self.peers.poll() {
            let judged = self.guard.hear_peers(said, now);
            self.publish(judged, None);
        }
        let is_doubted = self.guard.doubted().contains(&true);
        if is_doubted && self.peers.answer.is_none() && Instant::now() >= self.peers.ask_at {
            self.peers.ask();
        }
    }

    /// Says once, at a start without memory, what the first answers of the store are compared with.
    fn log_unchecked(&self, said: &PeerSummaries, reason: &str) {
        let asked: Vec<&str> = said.summaries.iter().map(|(name, _)| &**name).collect();
        let silent = said.silent.iter().take(SILENT_NAMED_MAX);
        let silent: Vec<String> = silent.map(|(name, why)| format!("{name} ({why})")).collect();
        let canaries = match self.guard.canary_count() {
            0 => "there are no canaries (authz.guard.must_allow, must_refuse, must_locate)".to_owned(),
            count => format!("{count} canaries decide"),
        };
        let text = match asked.is_empty() {
            true => format!(
                "no state is kept from before, and {reason}: nothing but canaries checks the first answer"
            ),
            false => format!(
                "no state is kept from before, and {reason}: the first answer is compared with {}",
                asked.join(", ")
            ),
        };
        let silent_count = said.silent.len();
        match asked.is_empty() {
            true => tracing::warn!(silent = silent_count, "{text}; {canaries}{}", listed(&silent)),
            false => tracing::info!(silent = silent_count, "{text}; {canaries}{}", listed(&silent)),
        }
    }
}

fn listed(silent: &[String]) -> String {
    if silent.is_empty() { String::new() } else { format!("; silent: {}", silent.join(", ")) }
}

/// Time between two questions while the peers object.
const ASK_EVERY: Duration = Duration::from_secs(30);

/// Longest wait of a start for the list of nodes and for the peers.
const FIRST_WAIT_MAX: Duration = Duration::from_secs(3);

/// Silent peers that the log names.
const SILENT_NAMED_MAX: usize = 5;
