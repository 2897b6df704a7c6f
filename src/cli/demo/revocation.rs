//! Revokes tokens while their tunnels are open.

use std::io::{self, Read};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use super::answer::CREDENTIALS;
use super::echo::open_echo;
use super::rights::Visitor;
use super::steps::{DemoFailure, Expecting, Steps};
use super::world::DemoWorld;
use crate::config::Authz;
use crate::store::admin::AdminError;
use crate::store::sqlite;

pub(super) fn show(world: &DemoWorld, steps: &mut Steps) {
    steps.section("Revoked while in use");
    let mut latencies = Vec::new();
    for (visitor, number) in world.rights.visitors.iter().zip(1..) {
        let outcome = revoke(world, visitor).map(|latency| {
            latencies.push(latency);
            format!("tunnel closed {} ms after the commit; then 407", latency.as_millis())
        });
        steps.record(&format!("token {number}"), outcome);
    }
    latencies.sort_unstable();
    if let (Some(median), Some(worst)) = (latencies.get(latencies.len() / 2), latencies.last()) {
        let remark = format!("worst {} ms of {}, commit to close", worst.as_millis(), latencies.len());
        steps.figure("revoked to closed, median", format!("{} ms", median.as_millis()), remark);
    }
}

/// Revokes a token. Returns the time from the commit until the client saw its tunnel close.
fn revoke(world: &DemoWorld, visitor: &Visitor) -> Result<Duration, DemoFailure> {
    let tunnel = open_echo(world.client, world.echo(), &visitor.token)?;
    let mut store = sqlite::open(&world.store()).map_err(store_failure)?;
    // The relay polls at intervals. Without this pause, each commit but the first would follow right after a poll.
    thread::sleep(random_part_of(Authz::default().refresh));
    let (committed, closed) = thread::scope(|scope| {
        let waiting = scope.spawn(|| wait_for_close(tunnel));
        let committed = store.revoke_credential(&visitor.credential.to_string()).map(|_| Instant::now());
        (committed, waiting.join())
    });
    let committed = committed.map_err(store_failure)?;
    let closed = closed.unwrap_or_else(|_| Err(io::Error::other("a panic of the client")));
    let closed = closed.expecting("a closed tunnel")?;
    let (_, answer) =
        world.client.request(&world.echo().connect(Some(&visitor.token))).expecting(CREDENTIALS)?;
    CREDENTIALS.check(&answer)?;
    Ok(closed.saturating_duration_since(committed))
}

/// Waits for the end of the tunnel, by a FIN or by a reset.
pub(super) fn wait_for_close(mut tunnel: TcpStream) -> io::Result<Instant> {
    match tunnel.read(&mut [0; 1]) {
        Ok(0) => Ok(Instant::now()),
        Ok(_) => Err(io::Error::other("bytes that nobody sent")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Instant::now()),
        Err(error) => Err(error),
    }
}

fn store_failure(error: impl Into<AdminError>) -> DemoFailure {
    DemoFailure::new("a store that can be changed", error.into())
}

fn random_part_of(period: Duration) -> Duration {
    // Without random bytes it waits half of the period; no step depends on it.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    period.mul_f64(f64::from(random) / f64::from(u32::MAX))
}
