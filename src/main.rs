//! The command line, nothing else.

use std::process::ExitCode;

/// Threads of a busy relay allocate at the same time; mimalloc lets them without a shared lock.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sluicegate::cli::main()
}
