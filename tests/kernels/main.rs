//! Tests of what the kernel alone can do: the machine's own where it can, and Debian's kernels in a virtual machine, which
//! `tests/kernels/run` starts.

#[path = "../support/mod.rs"]
mod support;

mod kernel_tls;
mod wireguard;
