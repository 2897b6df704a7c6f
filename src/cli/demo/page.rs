//! Small steps: a page through a tunnel, bytes sent with the head, and a server that speaks first.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use super::answer::ESTABLISHED;
use super::client::DemoTarget;
use super::rights::SSH_PORT;
use super::steps::{DemoFailure, Expecting, Steps};
use super::world::DemoWorld;

pub(super) fn show(world: &DemoWorld, steps: &mut Steps) {
    steps.section("Through a tunnel");
    steps.record("a page", page(world));
    steps.record("a request sent with the head", early_request(world));
    if ssh_banner().is_some() {
        steps.record("a server that speaks first", banner_through(world));
    }
}

/// Banner of the machine's own sshd. `None` where there is none.
pub(super) fn ssh_banner() -> Option<String> {
    let sshd = SocketAddr::from((Ipv4Addr::LOCALHOST, SSH_PORT));
    let stream = TcpStream::connect_timeout(&sshd, SSH_TIMEOUT).ok()?;
    stream.set_read_timeout(Some(SSH_TIMEOUT)).ok()?;
    read_banner(stream).ok().filter(|banner| banner.starts_with("SSH-"))
}

fn page(world: &DemoWorld) -> Result<String, DemoFailure> {
    let stream = world.client.open(world.web(), &world.rights.token)?;
    let reply = fetch(stream).expecting("the device's page")?;
    check_page(&reply, &world.page)
}

/// Fetches the page of the device at the end of the tunnel: the whole reply.
pub(super) fn fetch(mut tunnel: TcpStream) -> std::io::Result<String> {
    tunnel.write_all(GET)?;
    let mut reply = String::new();
    tunnel.read_to_string(&mut reply)?;
    Ok(reply)
}

/// Sends a request in one segment with the head. The device must get it.
fn early_request(world: &DemoWorld) -> Result<String, DemoFailure> {
    let mut request = world.web().connect(Some(&world.rights.token));
    request.extend_from_slice(GET);
    let (mut stream, answer) = world.client.request(&request).expecting(ESTABLISHED)?;
    ESTABLISHED.check(&answer)?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expecting("the device's page")?;
    check_page(&reply, &world.page)
}

fn check_page(reply: &str, page: &str) -> Result<String, DemoFailure> {
    let status = reply.lines().next().unwrap_or_default();
    match reply.split_once("\r\n\r\n") {
        Some((_, body)) if body == page && status == "HTTP/1.1 200 OK" => {
            Ok(format!("{status}, {:?}", body.trim_end()))
        }
        _ => Err(DemoFailure::new(format!("HTTP/1.1 200 OK and {page:?}"), format!("{reply:?}"))),
    }
}

fn banner_through(world: &DemoWorld) -> Result<String, DemoFailure> {
    let direct = ssh_banner().unwrap_or_default();
    let target = DemoTarget { uuid: world.rights.ssh, port: SSH_PORT };
    let stream = world.client.open(target, &world.rights.token)?;
    let through = read_banner(stream).expecting(&direct)?;
    if through == direct { Ok(through) } else { Err(DemoFailure::new(direct, through)) }
}

fn read_banner(stream: TcpStream) -> std::io::Result<String> {
    let mut banner = String::new();
    BufReader::new(stream.take(BANNER_BYTES_MAX)).read_line(&mut banner)?;
    Ok(banner.trim_end().to_owned())
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: device\r\n\r\n";

const SSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest banner (RFC 4253, section 4.2).
const BANNER_BYTES_MAX: u64 = 255;
