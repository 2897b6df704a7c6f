//! What the processor can be told about memory that will be read soon.
//!
//! Unsafe because prefetching takes raw pointers; here it takes references, for which it is always sound.

/// Has the processor fetch the first and the last line of `values`, without waiting for them: all of what
/// a few small values take. Lines between are left to the processor, which fetches neighbours by itself.
#[inline(always)]
pub fn prefetch<T>(values: &[T]) {
    // Always two: to count lines would cost more than to ask for one twice.
    let ends = values.as_ptr_range();
    prefetch_line(ends.start.cast());
    prefetch_line(ends.end.cast::<u8>().wrapping_sub(1));
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch_line(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: prefetching reads nothing that a program can see and never faults, whatever the address; SSE
    // is part of every x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn prefetch_line(address: *const u8) {
    // SAFETY: as on x86-64; the instruction touches no register, flag or stack.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) address, options(nostack, preserves_flags, readonly))
    }
}
