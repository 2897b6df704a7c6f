//! A tunnel to the echo device, and messages that must come back through it.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::client::{DemoClient, DemoTarget};
use super::steps::{DemoFailure, Expecting};

/// Opens a tunnel to the echo device and starts its echo.
pub(super) fn open_echo(
    client: DemoClient,
    target: DemoTarget,
    token: &str,
) -> Result<TcpStream, DemoFailure> {
    let mut tunnel = client.open(target, token)?;
    tunnel.write_all(b"echo\n").expecting("an accepted command")?;
    exchange(&mut tunnel, 0)?;
    Ok(tunnel)
}

/// Sends a message that holds `number`, and checks that it comes back.
pub(super) fn exchange(tunnel: &mut TcpStream, number: u32) -> Result<(), DemoFailure> {
    let mut message = [b'm'; MESSAGE_BYTES];
    message[..4].copy_from_slice(&number.to_be_bytes());
    let mut back = [0; MESSAGE_BYTES];
    tunnel.write_all(&message).expecting("an accepted message")?;
    tunnel.read_exact(&mut back).expecting("the message back")?;
    if back == message { Ok(()) } else { Err(DemoFailure::new("the message back", "other bytes")) }
}

pub(super) const MESSAGE_BYTES: usize = 128;
