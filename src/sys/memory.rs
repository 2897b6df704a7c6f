//! Prefetching: hints for the processor about memory that will be read soon.
//!
//! Unsafe because the instruction takes a raw pointer. The function here takes references, so it is always sound.

/// Starts to fetch the first and the last cache line of `values`, without a wait. That is all of a few small
/// values; the processor fetches lines between them by itself.
#[inline(always)]
pub fn prefetch<T>(values: &[T]) {
    // Always two: counting lines would cost more than requesting one line twice.
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
