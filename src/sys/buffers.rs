//! Receive buffers that one ring's sessions share: the kernel picks a free one when bytes arrive.
//!
//! Unsafe because the kernel writes into this memory. Each buffer is either with the kernel or, between
//! a completion and [`Buffers::give_back`], with us.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// The buffer group that receive operations name; a ring has one.
pub(super) const GROUP: u16 = 0;

/// Bytes in one buffer: a page. Small messages waste little of it, and a stalled session takes little
/// off the shared ring.
pub const BUFFER_BYTES: usize = 4096;

/// The id of a buffer that a receive has filled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BufferId(pub u16);

/// The buffers and the ring of their entries. Drop this after the [`IoUring`] that it was registered with.
pub struct Buffers {
    /// `count` entries that the kernel reads, followed by `count` buffers that it fills.
    memory: NonNull<libc::c_void>,
    memory_bytes: usize,
    count: u16,
    tail: u16,
}

impl Buffers {
    /// Maps and registers `count` buffers; `count` is a power of two of at most 32768.
    pub(super) fn register(ring: &IoUring, count: u16) -> io::Result<Self> {
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
        let mut buffers = Self { memory, memory_bytes, count, tail: 0 };
        // SAFETY: the mapping is page aligned, holds `count` entries, and lives until `self` is dropped,
        // which the owner does after the ring.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(memory.as_ptr() as u64, count, GROUP, 0)?;
        }
        for id in 0..count {
            buffers.give_back(BufferId(id));
        }
        Ok(buffers)
    }

    /// The first `len` bytes of a buffer that a completion named.
    pub fn bytes(&self, id: BufferId, len: usize) -> &[u8] {
        assert!(id.0 < self.count && len <= BUFFER_BYTES, "the kernel named a buffer that it was not given");
        // SAFETY: the slice lies within the mapping (asserted above). The kernel wrote it before it posted
        // the completion, and does not touch it until `give_back`, which needs `&mut self`.
        unsafe { std::slice::from_raw_parts(self.buffer(id), len) }
    }

    /// Returns this buffer to the kernel. Call it exactly once for each completion with a buffer.
    pub fn give_back(&mut self, id: BufferId) {
        assert!(id.0 < self.count, "the kernel named a buffer that it was not given");
        let index = usize::from(self.tail & (self.count - 1));
        let address = self.buffer(id) as u64;
        let entries = self.memory.as_ptr().cast::<BufRingEntry>();
        // SAFETY: `index < count`, so the entry lies in the mapping. The kernel reads entries only up to
        // the tail, which is moved below, so it does not read this one now. The entry's last field
        // is not written through it: in entry 0 that field is the tail.
        let entry = unsafe { &mut *entries.add(index) };
        entry.set_addr(address);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(id.0);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail is an aligned u16 inside the first entry, shared with the kernel, which only
        // reads it; release order makes the entry visible before it.
        unsafe {
            let tail = BufRingEntry::tail(entries).cast_mut().cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }

    fn buffer(&self, id: BufferId) -> *mut u8 {
        let offset = entries_bytes(self.count) + usize::from(id.0) * BUFFER_BYTES;
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
