//! Waits for the first answers of the store, on a start without kept state. A store that is away is waited for.

use crossbeam::channel::{self, Receiver, Sender};

use super::{ControlThread, StartError};
use crate::control::commands::Request;
use crate::control::readers::{ReadError, ReadResult};
use crate::sys::service_thread::StopSignal;

impl ControlThread {
    /// Waits for the first answers of the store, however long it is away. False where the thread is to end.
    pub(super) fn wait_for_first_answers(
        &mut self,
        stop: &StopSignal,
        requests: &Receiver<Request>,
        started: &Sender<Result<(), StartError>>,
    ) -> bool {
        let mut peers_deadline = self.ask_about_first();
        let (mut was_away, mut has_begun_to_wait) = (false, false);
        self.layer.wait_for_tables();
        self.guard.change_holders(&self.layer.drain_holders());
        let mut is_read = [false; 3];
        loop {
            let (results, compared) = (self.results.clone(), self.compared.1.clone());
            let peers = self.peers_answer();
            let peers_late = match self.guard.is_awaiting_peers() {
                true => channel::at(peers_deadline),
                false => channel::never(),
            };
            channel::select_biased! {
                recv(stop.channel()) -> _ => return false,
                recv(requests) -> request => match request {
                    Ok(request) => self.answer(request),
                    // Nobody is left who could ask, or stop this thread otherwise.
                    Err(_) => return false,
                },
                recv(compared) -> compared => if let Ok(compared) = compared {
                    self.finish_comparison(compared);
                },
                recv(peers) -> answer => self.hear_about_first(answer.ok()),
                recv(peers_late) -> _ => self.hear_about_first(None),
                recv(results) -> result => {
                    let Ok(result) = result else {
                        report_start(started, Err(StartError::Fault("the readers have ended".to_owned())));
                        return false;
                    };
                    match judge_first(&result) {
                        FirstRead::Good => {
                            if std::mem::take(&mut was_away) {
                                // The peers could not be found while the store was away.
                                peers_deadline = self.ask_about_first();
                            }
                            if let ReadResult::Relation { relation, .. } = &result {
                                is_read[*relation as usize] = true;
                            }
                            self.guarded(|thread| {
                                thread.take_in(result);
                                thread.settle_answers();
                            });
                        }
                        FirstRead::Wrong if !has_begun_to_wait => {
                            report_start(started, Err(start_error(result)));
                            return false;
                        }
                        // Whoever has come to wait goes on, also where the store comes back wrong.
                        FirstRead::Away | FirstRead::Wrong => {
                            (was_away, has_begun_to_wait, is_read) = (true, true, [false; 3]);
                            self.guarded(|thread| thread.take_in(result));
                            self.update_status();
                            report_start(started, Ok(()));
                        }
                    }
                },
            }
            // What the guard holds from the first is held; nothing decides until it is mended or accepted.
            let is_held = !self.guard.is_awaiting_peers() && !self.guard.status().holds.is_empty();
            if self.guard.in_force().is_some() || (is_read == [true; 3] && is_held) {
                return true;
            }
        }
    }
}

/// A read of a node that has nothing in force yet.
enum FirstRead {
    Good,
    /// The store is away; it is read again by itself.
    Away,
    /// Waiting does not help.
    Wrong,
}

fn judge_first(result: &ReadResult) -> FirstRead {
    match result {
        ReadResult::Words { result: Err(error), .. } | ReadResult::Relation { result: Err(error), .. } => {
            match error {
                ReadError::Store(error) if error.is_away() => FirstRead::Away,
                ReadError::Store(_) | ReadError::Fault(_) => FirstRead::Wrong,
            }
        }
        ReadResult::Words { .. } | ReadResult::Relation { .. } => FirstRead::Good,
    }
}

/// The error of a failed read.
fn start_error(result: ReadResult) -> StartError {
    let error = match result {
        ReadResult::Words { result, .. } => result.err(),
        ReadResult::Relation { result, .. } => result.err(),
    };
    match error {
        Some(ReadError::Store(error)) => StartError::Store(error),
        Some(ReadError::Fault(fault)) => StartError::Fault(fault),
        None => StartError::Fault("a read failed without an error".to_owned()),
    }
}

/// Tells whoever started the node. Nobody waits any more where that was done before.
pub(super) fn report_start(started: &Sender<Result<(), StartError>>, outcome: Result<(), StartError>) {
    let _nobody_waits = started.try_send(outcome);
}
