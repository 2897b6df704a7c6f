//! What one turn does with its completions, and in which order.
//!
//! Running tunnels go first. New clients and handshakes each have a share of the turn, and wait for the
//! next one beyond it: a thousand clients that come at once cost the tunnels a little of many turns, and
//! not one long turn.

use std::collections::{HashSet, VecDeque};

use crate::engine::session::Accepted;
use crate::engine::user_data::{Purpose, UserData};
use crate::sys::ring::Completion;

/// Work that a thread has been handed and has not done.
pub(in crate::engine) struct Scheduler<S> {
    /// Receives of this turn that got no buffer.
    unserved: VecDeque<Completion>,
    /// Of sessions that have no tunnel yet. Each has two in flight at most, so they bound it.
    handshakes: VecDeque<Completion>,
    handshakes_left: usize,
    /// Clients that have a place among the node's sessions, or among those that are told that it is full.
    arrivals: VecDeque<Accepted<S>>,
    arrivals_left: usize,
    /// Tokens of receives that got a buffer; filled only in a turn in which others got none.
    served: HashSet<u64>,
}

impl<S> Scheduler<S> {
    pub fn new() -> Self {
        Self {
            unserved: VecDeque::new(),
            handshakes: VecDeque::new(),
            handshakes_left: 0,
            arrivals: VecDeque::new(),
            arrivals_left: 0,
            served: HashSet::new(),
        }
    }

    /// Begins a turn with `completions`, and takes those out that go before the others.
    pub fn begin_turn(&mut self, completions: &mut Vec<Completion>) {
        self.handshakes_left = HANDSHAKES_PER_TURN;
        self.arrivals_left = ARRIVALS_PER_TURN;
        if completions.iter().any(Completion::found_no_buffer) {
            self.take_unserved(completions);
        }
    }

    /// A receive that is to be asked for again before any other.
    pub fn next_unserved(&mut self) -> Option<Completion> {
        self.unserved.pop_front()
    }

    /// Gives back what is to be dispatched at once, and keeps what has to wait for its share.
    pub fn take_up(&mut self, completion: Completion) -> Option<Completion> {
        match UserData::from_bits(completion.user_data) {
            Some(UserData::Session { purpose: Purpose::Head | Purpose::Connect, .. }) => {
                self.handshakes.push_back(completion);
                None
            }
            _ => Some(completion),
        }
    }

    /// A client for which there is a place.
    pub fn admit(&mut self, accepted: Accepted<S>) {
        self.arrivals.push_back(accepted);
    }

    /// The handshake that is to go on next in this turn.
    pub fn next_handshake(&mut self) -> Option<Completion> {
        pop_share(&mut self.handshakes, &mut self.handshakes_left)
    }

    /// The client whose session is to begin next in this turn.
    pub fn next_arrival(&mut self) -> Option<Accepted<S>> {
        pop_share(&mut self.arrivals, &mut self.arrivals_left)
    }

    /// Closes what has not begun.
    pub fn turn_away(&mut self) {
        self.arrivals.clear();
    }

    /// Whether nothing is left for another turn.
    pub fn is_empty(&self) -> bool {
        self.handshakes.is_empty() && self.arrivals.is_empty()
    }

    /// Receives that found every buffer with others. Asked for again in the order in which they completed,
    /// the same few streams would have all buffers in every turn, and a head would wait until it is refused
    /// for being late.
    fn take_unserved(&mut self, completions: &mut Vec<Completion>) {
        self.served.clear();
        let served = completions.iter().filter(|completion| completion.buffer.is_some());
        self.served.extend(served.map(|completion| completion.user_data));
        let is_unserved = |completion: &mut Completion| {
            completion.found_no_buffer() && !self.served.contains(&completion.user_data)
        };
        self.unserved.extend(completions.extract_if(.., is_unserved));
    }
}

fn pop_share<T>(queue: &mut VecDeque<T>, left: &mut usize) -> Option<T> {
    *left = left.checked_sub(1)?;
    queue.pop_front()
}

/// Heads and connects, of some 20 µs each, that one turn deals with. Few, since the kernel hands completions
/// over in the order in which things happened, some twenty per turn (Linux 6.14): what a tunnel has ready
/// waits for as many turns as there are twenties of heads before it.
pub(in crate::engine) const HANDSHAKES_PER_TURN: usize = 8;

/// Sessions that begin in one turn, of some 3 µs each.
pub(in crate::engine) const ARRIVALS_PER_TURN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::user_data::Slot;
    use crate::sys::buffers::BufferId;

    fn completion(purpose: Purpose, result: i32) -> Completion {
        let user_data = UserData::Session { slot: Slot(7), purpose }.into_bits();
        let buffer = (result > 0).then_some(BufferId(0));
        Completion { user_data, result, more: false, buffer, accepted: None }
    }

    #[test]
    fn a_receive_that_got_no_buffer_goes_before_those_that_got_one_even_if_it_ran_out_later() {
        let mut scheduler = Scheduler::<()>::new();
        let mut completions = vec![
            completion(Purpose::UpReceive, 4096),
            completion(Purpose::UpReceive, -libc::ENOBUFS),
            completion(Purpose::DownReceive, -libc::ENOBUFS),
            completion(Purpose::Head, -libc::ENOBUFS),
        ];
        let user_data = |completions: &[Completion]| {
            completions.iter().map(|completion| completion.user_data).collect::<Vec<_>>()
        };
        let all = user_data(&completions);
        scheduler.begin_turn(&mut completions);
        let first: Vec<_> = std::iter::from_fn(|| scheduler.next_unserved()).collect();
        assert_eq!((user_data(&first), user_data(&completions)), (all[2..].to_vec(), all[..2].to_vec()));
    }

    #[test]
    fn handshakes_beyond_their_share_wait_for_the_next_turn_and_tunnels_do_not() {
        let mut scheduler = Scheduler::<()>::new();
        scheduler.begin_turn(&mut Vec::new());
        for _ in 0..HANDSHAKES_PER_TURN + 1 {
            assert!(scheduler.take_up(completion(Purpose::Connect, 0)).is_none());
            assert!(scheduler.take_up(completion(Purpose::UpReceive, 1)).is_some());
        }
        let done = |scheduler: &mut Scheduler<()>| std::iter::from_fn(|| scheduler.next_handshake()).count();
        assert_eq!((done(&mut scheduler), scheduler.is_empty()), (HANDSHAKES_PER_TURN, false));
        scheduler.begin_turn(&mut Vec::new());
        assert_eq!((done(&mut scheduler), scheduler.is_empty()), (1, true));
    }
}
