//! Tests that a machine cannot run say so, on stderr and in the file that CI looks at.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;

/// True if we are root; else records that test `name` was skipped.
#[must_use]
pub fn root_or_skip(name: &str) -> bool {
    nix::unistd::geteuid().is_root() || skip(name, "needs root")
}

/// True if all of `tools` are installed; else records that test `name` was skipped.
#[must_use]
pub fn tools_or_skip(name: &str, tools: &[&str]) -> bool {
    tools.iter().all(|tool| is_installed(tool) || skip(name, &format!("needs {tool}")))
}

/// True if there is an IPv6 loopback; else records that test `name` was skipped.
#[must_use]
pub fn ipv6_or_skip(name: &str) -> bool {
    TcpListener::bind("[::1]:0").is_ok() || skip(name, "needs an IPv6 loopback")
}

fn is_installed(tool: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|folder| Path::new(folder).join(tool).exists())
}

pub fn skip(name: &str, why: &str) -> bool {
    let line = format!("SKIPPED: {name}: {why}");
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("SLUICEGATE_SKIP_LOG") {
        let mut log = File::options().append(true).create(true).open(path).unwrap();
        writeln!(log, "{line}").unwrap();
    }
    false
}
