//! Receive buffers that one ring's sessions share: the kernel picks a free one when bytes arrive.
//!
//! Unsafe because the kernel writes into this memory. Each buffer is either with the kernel or, as a [`FilledBuffer`],
//! with us. Only a completion makes one, and only giving it back consumes it, so safe code can neither read a buffer that
//! the kernel has nor give one back twice.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// The buffer group that receive operations name; a ring has one.
pub(super) const GROUP: u16 = 0;

/// Bytes in one buffer: a page. Small messages waste little of it, and a stalled session takes little
/// off the shared ring.
pub const BUFFER_BYTES: usize = 4096;

/// A buffer that a receive has filled, until it is given back. Dropped instead, it is lost to the ring.
#[derive(PartialEq, Eq, Debug)]
pub struct FilledBuffer {
    id: u16,
    /// The ring whose buffer it is.
    ring: RingId,
}

/// Names a ring of this process, so that its buffers are not taken for another's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RingId(u32);

impl RingId {
    pub fn next() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl FilledBuffer {
    /// The buffer that a completion of `ring` names. Call it once for each such completion.
    pub(super) fn of_completion(id: u16, ring: RingId) -> Self {
        Self { id, ring }
    }

    /// A buffer of no ring, for a simulated kernel.
    #[cfg(any(test, simulation))]
    pub fn for_tests(id: u16) -> Self {
        Self { id, ring: RingId(u32::MAX) }
    }

    /// Its number in a simulated kernel.
    #[cfg(any(test, simulation))]
    pub fn number(&self) -> u16 {
        self.id
    }
}

/// The buffers and the ring of their entries. Drop this after the [`IoUring`] that it was registered with.
pub struct Buffers {
    /// `count` entries that the kernel reads, followed by `count` buffers that it fills.
    memory: NonNull<libc::c_void>,
    memory_bytes: usize,
    count: u16,
    tail: u16,
    ring: RingId,
}

impl Buffers {
    /// Maps and registers `count` buffers; `count` is a power of two of at most 32768.
    pub(super) fn register(ring: &IoUring, id: RingId, count: u16) -> io::Result<Self> {
        if !count.is_power_of_two() || count > 32768 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let memory_bytes = entries_bytes(count) + usize::from(count) * BUFFER_BYTES;
        let length = std::num::NonZeroUsize::new(memory_bytes).expect("there is at least one buffer");
        // SAFETY: an anonymous mapping at an address of the kernel's choice overlaps nothing of ours.
        let memory = unsafe {
            mmap_anonymous(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE,
            )?
        };
        let mut buffers = Self { memory, memory_bytes, count, tail: 0, ring: id };
        // SAFETY: the mapping is page aligned, holds `count` entries, and lives until `self` is dropped,
        // which the owner does after the ring.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(memory.as_ptr() as u64, count, GROUP, 0)?;
        }
        for number in 0..count {
            buffers.give_back(FilledBuffer { id: number, ring: id });
        }
        Ok(buffers)
    }

    /// The first `len` bytes of a filled buffer.
    ///
    /// # Panics
    /// If the buffer is another ring's, or has fewer bytes.
    pub fn bytes<'a>(&'a self, buffer: &'a FilledBuffer, len: usize) -> &'a [u8] {
        assert!(
            self.is_ours(buffer) && len <= BUFFER_BYTES,
            "the kernel named a buffer that it was not given"
        );
        // SAFETY: the slice lies within the mapping (asserted above), and every byte of it was mapped as zero or written by
        // the kernel. The kernel does not touch it until `give_back`, which consumes the `FilledBuffer` that is borrowed
        // for as long as the slice.
        unsafe { std::slice::from_raw_parts(self.buffer(buffer.id), len) }
    }

    /// Returns a buffer to the kernel.
    ///
    /// # Panics
    /// If the buffer is another ring's.
    pub fn give_back(&mut self, buffer: FilledBuffer) {
        assert!(self.is_ours(&buffer), "the kernel named a buffer that it was not given");
        let id = buffer.id;
        let index = usize::from(self.tail & (self.count - 1));
        let address = self.buffer(id) as u64;
        let entries = self.memory.as_ptr().cast::<BufRingEntry>();
        // SAFETY: `index < count`, so the entry lies in the mapping. The kernel reads entries only up to
        // the tail, which is moved below, so it does not read this one now. The entry's last field
        // is not written through it: in entry 0 that field is the tail.
        let entry = unsafe { &mut *entries.add(index) };
        entry.set_addr(address);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail is an aligned u16 inside the first entry, shared with the kernel, which only
        // reads it; release order makes the entry visible before it.
        unsafe {
            let tail = BufRingEntry::tail(entries).cast_mut().cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }

    fn is_ours(&self, buffer: &FilledBuffer) -> bool {
        buffer.ring == self.ring && buffer.id < self.count
    }

    fn buffer(&self, id: u16) -> *mut u8 {
        let offset = entries_bytes(self.count) + usize::from(id) * BUFFER_BYTES;
        // SAFETY: callers checked `id < count`, so the offset lies within the mapping.
        unsafe { self.memory.as_ptr().cast::<u8>().add(offset) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows from it any more; the ring that could write to
        // it was dropped before (its owner declares the ring first).
        let unmapped = unsafe { munmap(self.memory, self.memory_bytes) };
        debug_assert!(unmapped.is_ok(), "the mapping was ours: {unmapped:?}");
    }
}

/// Bytes that the entries take, rounded up to whole pages so that buffers are page aligned.
fn entries_bytes(count: u16) -> usize {
    (usize::from(count) * size_of::<BufRingEntry>()).next_multiple_of(4096)
}
