//! Orders the work of a turn.
//!
//! Running tunnels go first. New clients, and the requests of clients without a tunnel, each have a share of the turn;
//! the rest waits for the next turn. So a thousand clients at once delay the tunnels a little in many turns instead of
//! much in one.

use std::collections::{HashSet, VecDeque};

use crate::engine::kernel::thread::ThreadKernel;
use crate::engine::session::Accepted;
use crate::engine::user_data::{Purpose, UserData};
use crate::sys::ring::Completion;

/// Work of a thread that is not done.
pub(in crate::engine) struct Scheduler<K: ThreadKernel> {
    /// Receives of this turn that got no buffer.
    unserved: VecDeque<Completion<K::Accepted>>,
    /// Completions of sessions that have no tunnel yet. Each session has at most two in flight, which bounds this.
    requests: VecDeque<Completion<K::Accepted>>,
    requests_left: usize,
    /// Accepted clients whose sessions have not begun.
    arrivals: VecDeque<Accepted<K::Socket>>,
    arrivals_left: usize,
    /// User data of receives that got a buffer; filled only in a turn in which others got none.
    served: HashSet<u64>,
}

impl<K: ThreadKernel> Scheduler<K> {
    pub fn new() -> Self {
        Self {
            unserved: VecDeque::new(),
            requests: VecDeque::new(),
            requests_left: 0,
            arrivals: VecDeque::new(),
            arrivals_left: 0,
            served: HashSet::new(),
        }
    }

    /// Begins a turn with `completions`. Removes those that go before the others.
    pub fn begin_turn(&mut self, completions: &mut Vec<Completion<K::Accepted>>) {
        self.requests_left = REQUESTS_PER_TURN;
        self.arrivals_left = ARRIVALS_PER_TURN;
        if completions.iter().any(|completion| completion.found_no_buffer()) {
            self.take_unserved(completions);
        }
    }

    /// The next receive to be repeated before all others.
    pub fn next_unserved(&mut self) -> Option<Completion<K::Accepted>> {
        self.unserved.pop_front()
    }

    /// Returns a completion that is to be dispatched at once; queues one that has to wait for its share. A client that has
    /// gone before its head came costs next to nothing, and frees its place at once.
    pub fn dispatch_or_queue(
        &mut self,
        completion: Completion<K::Accepted>,
    ) -> Option<Completion<K::Accepted>> {
        match UserData::from_bits(completion.user_data) {
            Some(UserData::Session { purpose: Purpose::Head, .. }) if completion.result <= 0 => {
                Some(completion)
            }
            Some(UserData::Session { purpose: Purpose::Head | Purpose::Connect, .. }) => {
                self.requests.push_back(completion);
                None
            }
            _ => Some(completion),
        }
    }

    /// Clients whose sessions have not begun.
    pub fn arrivals(&self) -> usize {
        self.arrivals.len()
    }

    /// Queues an accepted client.
    pub fn admit(&mut self, accepted: Accepted<K::Socket>) {
        self.arrivals.push_back(accepted);
    }

    /// The next request to be continued in this turn; `None` once its share is used up.
    pub fn next_request(&mut self) -> Option<Completion<K::Accepted>> {
        pop_share(&mut self.requests, &mut self.requests_left)
    }

    /// The next client whose session begins in this turn; `None` once the share is used up.
    pub fn next_arrival(&mut self) -> Option<Accepted<K::Socket>> {
        pop_share(&mut self.arrivals, &mut self.arrivals_left)
    }

    /// Closes the connections of clients whose sessions have not begun.
    pub fn turn_away(&mut self) {
        self.arrivals.clear();
    }

    /// True where no work is left for another turn.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.arrivals.is_empty()
    }

    /// Moves receives that found no buffer to the front. Without that, the same few streams would get all buffers in
    /// every turn, and a head would wait until its timeout.
    fn take_unserved(&mut self, completions: &mut Vec<Completion<K::Accepted>>) {
        self.served.clear();
        let served = completions.iter().filter(|completion| completion.buffer.is_some());
        self.served.extend(served.map(|completion| completion.user_data));
        let is_unserved = |completion: &mut Completion<K::Accepted>| {
            completion.found_no_buffer() && !self.served.contains(&completion.user_data)
        };
        self.unserved.extend(completions.extract_if(.., is_unserved));
    }
}

fn pop_share<T>(queue: &mut VecDeque<T>, left: &mut usize) -> Option<T> {
    *left = left.checked_sub(1)?;
    queue.pop_front()
}

/// Heads and connects that one turn handles, of some 20 µs each. Few, since the kernel delivers completions in the
/// order of events, some twenty per turn (Linux 6.14): a tunnel's completion waits one turn for every twenty heads
/// before it.
pub(in crate::engine) const REQUESTS_PER_TURN: usize = 8;

/// Sessions that begin in one turn, of some 3 µs each.
pub(in crate::engine) const ARRIVALS_PER_TURN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kernel::uring::UringKernel;
    use crate::engine::user_data::Slot;
    use crate::sys::buffers::FilledBuffer;

    fn completion(purpose: Purpose, result: i32) -> Completion {
        let user_data = UserData::Session { slot: Slot(7), purpose }.into_bits();
        let buffer = (result > 0).then(|| FilledBuffer::for_tests(0));
        Completion { user_data, result, more: false, buffer, accepted: None }
    }

    #[test]
    fn a_receive_that_got_no_buffer_goes_before_those_that_got_one_even_if_it_ran_out_later() {
        let mut scheduler = Scheduler::<UringKernel>::new();
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
    fn requests_beyond_their_share_wait_for_the_next_turn_and_tunnels_do_not() {
        let mut scheduler = Scheduler::<UringKernel>::new();
        scheduler.begin_turn(&mut Vec::new());
        for _ in 0..REQUESTS_PER_TURN + 1 {
            assert!(scheduler.dispatch_or_queue(completion(Purpose::Connect, 0)).is_none());
            assert!(scheduler.dispatch_or_queue(completion(Purpose::UpReceive, 1)).is_some());
        }
        let done =
            |scheduler: &mut Scheduler<UringKernel>| std::iter::from_fn(|| scheduler.next_request()).count();
        assert_eq!((done(&mut scheduler), scheduler.is_empty()), (REQUESTS_PER_TURN, false));
        scheduler.begin_turn(&mut Vec::new());
        assert_eq!((done(&mut scheduler), scheduler.is_empty()), (1, true));
    }
}
