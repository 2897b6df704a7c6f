//! Counts the memory that this thread has, so that a target can bound it.
//!
//! Unsafe because an allocator is.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which counts.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static HIGHEST: Cell<isize> = const { Cell::new(0) };
}

/// The highest amount of memory that this thread had since the beginning.
pub(crate) struct Peak {
    begin: isize,
}

impl Peak {
    pub fn begin() -> Self {
        let begin = LIVE.get();
        HIGHEST.set(begin);
        Self { begin }
    }

    /// Bytes that came on top.
    pub fn bytes(&self) -> usize {
        usize::try_from(HIGHEST.get() - self.begin).unwrap_or(0)
    }
}

fn count(bytes: isize) {
    let live = LIVE.get() + bytes;
    LIVE.set(live);
    HIGHEST.set(HIGHEST.get().max(live));
}

// SAFETY: Each call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        if layout.size() > ONE_MAX {
            return std::ptr::null_mut();
        }
        // SAFETY: As the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        if layout.size() > ONE_MAX {
            return std::ptr::null_mut();
        }
        // SAFETY: As the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: As the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: As the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Largest single piece of memory. More is never given, so that a wrong length is found before the machine suffers.
const ONE_MAX: usize = 1 << 30;
