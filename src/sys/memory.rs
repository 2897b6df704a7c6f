//! What the processor can be told about memory that will be read soon.
//!
//! Unsafe because prefetching takes raw pointers; here it takes references, for which it is always sound.

/// Has the processor fetch the first lines of `values`, up to [`LINES_MAX`], without waiting for them.
#[inline(always)]
pub fn prefetch<T>(values: &[T]) {
    let bytes = size_of_val(values).min(LINES_MAX * LINE_BYTES);
    let start = values.as_ptr().cast::<u8>();
    for offset in (0..bytes).step_by(LINE_BYTES) {
        prefetch_line(start.wrapping_add(offset));
    }
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

const LINE_BYTES: usize = 64;

/// Lines of one prefetch. A core has some dozen misses under way at once; more wait for one another.
const LINES_MAX: usize = 3;
