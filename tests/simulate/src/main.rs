//! Plays histories of whole engine threads on a simulated kernel and network.
//!
//! The engine, and all that is below it, are the relay's own files, unchanged; `--cfg simulation` adds the harness to
//! the engine, as a module of it, since a worker is nobody else's to drive. docs/simulation.md says how to use it.

#[path = "../../../src/authz/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the engine uses a part of it")]
mod authz;
#[path = "../../../src/config/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the engine uses a part of it")]
mod config;
#[path = "../../../src/engine/mod.rs"]
#[allow(dead_code, unused_imports, reason = "no engine is started")]
mod engine;
#[path = "../../../src/sys/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the engine uses a part of it")]
mod sys;
#[path = "../../../src/telemetry/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the engine uses a part of it")]
mod telemetry;
#[path = "../../../src/wire/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the engine uses a part of it")]
mod wire;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    engine::simulation::command::run()
}
