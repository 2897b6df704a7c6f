//! Sends a gibibyte each way, and compares the checksums of both ends.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::interrupt::Interrupt;
use super::noise::{self, Checksum};
use super::steps::{DemoFailure, Expecting, Steps};
use super::world::DemoWorld;

pub(super) fn show(world: &DemoWorld, steps: &mut Steps, interrupt: &Interrupt) {
    steps.section("A gibibyte each way");
    for direction in [BulkDirection::Up, BulkDirection::Down] {
        let outcome = transfer(direction, world, steps, interrupt);
        let outcome = outcome.map(|transfer| {
            let throughput = throughput(transfer.took);
            let took = format!("1 GiB in {:.2} s, checksums included", transfer.took.as_secs_f64());
            steps.figure(direction.figure(), &throughput, took);
            format!("CRC-32 {} at both ends, {throughput}", transfer.checksum)
        });
        steps.record(direction.name(), outcome);
    }
}

#[derive(Clone, Copy)]
enum BulkDirection {
    /// Client to device.
    Up,
    /// Device to client.
    Down,
}

struct Transfer {
    /// Checksum, which is the same at both ends.
    checksum: Checksum,
    took: Duration,
}

fn transfer(
    direction: BulkDirection,
    world: &DemoWorld,
    steps: &Steps,
    interrupt: &Interrupt,
) -> Result<Transfer, DemoFailure> {
    let mut tunnel = world.client.open(world.echo(), &world.rights.token)?;
    let mut progress = steps.progress(direction.name(), BYTES);
    let on_block = |moved| {
        progress.advance(moved);
        if interrupt.has_come() { Err(io::Error::other("an interrupt")) } else { Ok(()) }
    };
    let began = Instant::now();
    writeln!(tunnel, "{} {BYTES}", direction.command()).expecting("an accepted command")?;
    let here = match direction {
        BulkDirection::Up => noise::send(&mut tunnel, BYTES, on_block),
        BulkDirection::Down => noise::receive(&mut tunnel, BYTES, on_block),
    };
    let here = here.expecting("1 GiB moved")?;
    let line = here.to_line();
    let there = read_line(tunnel).expecting(&line)?;
    let took = began.elapsed();
    if there != line {
        return Err(DemoFailure::new(format!("{line} at the device too"), there));
    }
    Ok(Transfer { checksum: here, took })
}

/// Reads the last line of the device.
fn read_line(tunnel: TcpStream) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(tunnel).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

fn throughput(took: Duration) -> String {
    format!("{:.2} GB/s", BYTES as f64 / took.as_secs_f64() / 1e9)
}

impl BulkDirection {
    const fn name(self) -> &'static str {
        match self {
            Self::Up => "client to device",
            Self::Down => "device to client",
        }
    }

    const fn figure(self) -> &'static str {
        match self {
            Self::Up => "bulk, client to device",
            Self::Down => "bulk, device to client",
        }
    }

    /// Command for the echo device.
    const fn command(self) -> &'static str {
        match self {
            Self::Up => "take",
            Self::Down => "send",
        }
    }
}

/// Bytes in each direction.
pub(super) const BYTES: u64 = 1 << 30;
