//! Tests of what depends on the kernel. They run on the machine's own kernel where it has the feature, and on Debian's
//! kernels in a virtual machine, which `tests/kernels/run` starts.

#[path = "../support/mod.rs"]
mod support;

mod kernel_tls;
mod wireguard;
