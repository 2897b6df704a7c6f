//! Asks the relay's admin side about the traffic of the demo.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use indicatif::BinaryBytes;

use super::bulk;
use super::steps::{DemoFailure, Expecting, Steps};
use super::world::DemoWorld;

pub(super) fn show(world: &DemoWorld, steps: &mut Steps) {
    steps.section("The admin side");
    steps.record("GET /readyz", ready(world.admin_address()));
    steps.record("GET /metrics", metrics(world.admin_address()));
}

fn ready(admin: SocketAddr) -> Result<String, DemoFailure> {
    let body = get(admin, "/readyz").expecting("an answer")?;
    if body == "ready\n" { Ok("ready".to_owned()) } else { Err(DemoFailure::new("ready", body.trim_end())) }
}

/// Checks that the relay has counted at least the bytes that the client moved in bulk.
fn metrics(admin: SocketAddr) -> Result<String, DemoFailure> {
    let text = get(admin, "/metrics").expecting("an answer")?;
    let forwarded = sum(&text, "sluicegate_forwarded_bytes_total", "");
    let spliced = sum(&text, "sluicegate_forwarded_bytes_total", "path=\"splice\"");
    let tunnels = sum(&text, "sluicegate_tunnels_opened_total", "");
    let moved = 2 * bulk::BYTES;
    if forwarded < moved {
        return Err(DemoFailure::new(format!("at least {moved} bytes forwarded"), forwarded));
    }
    let spliced = 100.0 * spliced as f64 / forwarded as f64;
    let forwarded = BinaryBytes(forwarded);
    Ok(format!("{tunnels} tunnels opened, {forwarded} forwarded, {spliced:.1} % by splice"))
}

/// Sum of all samples of a metric whose labels contain `label`.
fn sum(text: &str, metric: &str, label: &str) -> u64 {
    let samples = text.lines().filter_map(|line| line.strip_prefix(metric)?.rsplit_once(' '));
    samples
        .filter(|(labels, _)| labels.contains(label))
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum()
}

/// Body of the response.
pub(super) fn get(admin: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let body = reply.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    body.ok_or_else(|| io::Error::other(format!("no reply but {reply:?}")))
}

const TIMEOUT: Duration = Duration::from_secs(10);
