//! A network for the comparison alone: nobody else's traffic, ports and settings are in it.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};
use socket2::SockRef;

/// It is measured in the machine's own network.
#[derive(Debug, thiserror::Error)]
pub enum IsolateError {
    #[error(
        "measured in the machine's own network, with its congestion control: a separate one needs root ({0})"
    )]
    Unshare(io::Error),
    #[error(
        "measured in the machine's own network, with its congestion control: `ip link set lo up` fails ({0})"
    )]
    Loopback(String),
}

/// Moves this thread, and what it starts from now on, into a network namespace that has nothing but
/// loopback, and the same congestion control on every machine.
pub fn isolate() -> Result<(), IsolateError> {
    let home = File::open("/proc/thread-self/ns/net").map_err(IsolateError::Unshare)?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| IsolateError::Unshare(error.into()))?;
    if let Err(reason) = ip("link set lo up") {
        setns(home, CloneFlags::CLONE_NEWNET).map_err(|error| IsolateError::Unshare(error.into()))?;
        return Err(IsolateError::Loopback(reason));
    }
    // A machine that has another one by default keeps this one from being the default here; routes may name it.
    if std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", CONGESTION_CONTROL).is_err() {
        for addresses in ["127.0.0.0/8", "127.0.0.1"] {
            // Where this is not to be had, the report tells what is in force instead.
            let _not_there = ip(&format!(
                "route replace local {addresses} dev lo table local congctl {CONGESTION_CONTROL}"
            ));
        }
    }
    Ok(())
}

/// The congestion control that a connection over loopback really has.
pub fn congestion_control() -> io::Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    let name = SockRef::from(&stream).tcp_congestion()?;
    Ok(String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned())
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Linux' own default. BBR paces by an estimate of the bottleneck that loopback does not have: measured, one
/// relay moved 1.6 GB/s with its core full in one run, and 6.6 GB/s with a third of it free in the next.
const CONGESTION_CONTROL: &str = "cubic";
