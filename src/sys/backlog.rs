//! Entries on their way into a submission queue, and the addresses that they point to.
//!
//! An address lives until the kernel has copied it: until no entry is left, in the queue or here, that could point to it.

use std::collections::VecDeque;

/// See the module. `E` is an entry, `A` owns an address.
pub struct Backlog<E, A> {
    /// Entries that found the queue full. Bounded by the operations that sessions can have in flight.
    entries: VecDeque<E>,
    /// Addresses of entries that the kernel has not taken yet, in the queue or here.
    addresses: Vec<A>,
}

/// The entries that the kernel takes next, as many as there is room for.
pub trait SubmissionQueue<E> {
    /// Appends an entry. Returns false where the queue is full.
    fn try_push(&mut self, entry: &E) -> bool;
    /// True where the kernel has taken every entry.
    fn is_empty(&mut self) -> bool;
}

impl<E, A> Default for Backlog<E, A> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), addresses: Vec::new() }
    }
}

impl<E, A> Backlog<E, A> {
    /// Queues an entry, and keeps the address that it points to.
    pub fn push(&mut self, entry: E, address: Option<A>, queue: &mut impl SubmissionQueue<E>) {
        self.addresses.extend(address);
        if !self.entries.is_empty() || !queue.try_push(&entry) {
            self.entries.push_back(entry);
        }
    }

    /// Moves entries into the queue, in their order. Returns false where it is full before all are there.
    pub fn move_into(&mut self, queue: &mut impl SubmissionQueue<E>) -> bool {
        while let Some(entry) = self.entries.front() {
            if !queue.try_push(entry) {
                return false;
            }
            self.entries.pop_front();
        }
        true
    }

    /// Frees the addresses once no entry is left that could point to one.
    pub fn forget_submitted(&mut self, queue: &mut impl SubmissionQueue<E>) {
        if self.has_submitted_all(queue) {
            self.addresses.clear();
        }
    }

    /// True once the kernel has been handed all entries.
    pub fn has_submitted_all(&self, queue: &mut impl SubmissionQueue<E>) -> bool {
        self.entries.is_empty() && queue.is_empty()
    }

    /// True where no entry waits for room in the queue.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries that wait for room, and addresses that are kept.
    #[cfg(test)]
    pub fn kept(&self) -> (usize, usize) {
        (self.entries.len(), self.addresses.len())
    }
}
