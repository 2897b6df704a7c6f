//! Every refusal that one machine can provoke, with its true cause.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use super::answer::*;
use super::client::{DemoTarget, close};
use super::rights::SSH_PORT;
use super::steps::{DemoFailure, Expecting, Steps};
use super::world::{DemoWorld, SESSIONS_PER_DEVICE};

/// One way to be refused.
struct Case {
    name: &'static str,
    request: Vec<u8>,
    /// Expected reply.
    expected: Expected,
    /// Expected cause in the audit log.
    cause: &'static str,
}

/// A case with the expected result.
struct Refused {
    cause: &'static str,
    /// Address by which the audit log knows the session.
    client: SocketAddr,
    answer: RelayReply,
}

pub(super) fn show(world: &DemoWorld, steps: &mut Steps) {
    steps.section("Refusals, as the client reads them");
    let mut refused = Vec::new();
    for case in cases(world) {
        let outcome = refuse(world, &case).map(|case| {
            let line = case.answer.to_columns();
            refused.push(case);
            line
        });
        steps.record(case.name, outcome);
    }
    steps.note("a loop", "needs two nodes that forward to each other");
    steps.record("all 403 replies are the same", look_alike(&refused));
    steps.record("the audit log has the true causes", audited(&world.audit(), &refused));
}

/// Cases in the order of the reply table.
fn cases(world: &DemoWorld) -> Vec<Case> {
    let (rights, echo) = (&world.rights, world.echo());
    let token = rights.token.as_str();
    let to = |target: DemoTarget| target.connect(Some(token));
    let to_device = |uuid| to(DemoTarget { uuid, ..echo });
    let with = |token: &str| echo.connect(Some(token));
    let get = format!("GET http://{echo}/ HTTP/1.1\r\n\r\n").into_bytes();
    let endless = |len| format!("CONNECT {echo} HTTP/1.1\r\nPadding: {}", "-".repeat(len)).into_bytes();
    let rows = [
        ("a target that is no device", b"CONNECT lamp:80 HTTP/1.1\r\n\r\n".to_vec(), MALFORMED, "malformed"),
        ("a device that does not exist", to_device(world.unknown), NOT_PERMITTED, "device-unknown"),
        ("a device without a grant", to_device(rights.private), NOT_PERMITTED, "no-grant"),
        (
            "a port without a grant",
            to(DemoTarget { port: SSH_PORT, ..echo }),
            NOT_PERMITTED,
            "port-not-granted",
        ),
        ("GET instead of CONNECT", get, METHOD, "method"),
        ("no token", echo.connect(None), CREDENTIALS, "credential-missing"),
        ("an unknown token", with("sg_unknown"), CREDENTIALS, "credential-unknown"),
        ("a revoked token", with(&rights.revoked_token), CREDENTIALS, "credential-revoked"),
        ("an expired token", with(&rights.expired_token), CREDENTIALS, "credential-expired"),
        ("a head that does not end", endless(16), HEAD_TIMEOUT, "head-timeout"),
        (OVER_THE_LIMIT, to(echo), LIMIT, "limit-device"),
        ("a head over 8 KiB", endless(8 * 1024), HEAD_TOO_LARGE, "head-too-large"),
        (
            "an address outside vpn.allow",
            to_device(rights.outside),
            DEVICE_ADDRESS,
            "device-address-not-allowed",
        ),
        ("a closed port", to(world.closed()), DEVICE_PORT_CLOSED, "device-port-closed"),
        (
            "an address without a route",
            to_device(rights.unreachable),
            DEVICE_UNREACHABLE,
            "device-unreachable",
        ),
        ("a device that is offline", to_device(rights.offline), DEVICE_OFFLINE, "device-offline"),
        ("a device that does not answer", to(world.silent()), DEVICE_TIMEOUT, "device-timeout"),
    ];
    rows.map(|(name, request, expected, cause)| Case { name, request, expected, cause }).into()
}

fn refuse(world: &DemoWorld, case: &Case) -> Result<Refused, DemoFailure> {
    let held = if case.name == OVER_THE_LIMIT { fill_device(world)? } else { Vec::new() };
    let (mut stream, answer) = world.client.request(&case.request).expecting(case.expected)?;
    case.expected.check(&answer)?;
    let mut body = String::new();
    stream.read_to_string(&mut body).expecting("a text after the head, and a close after that")?;
    let announced = answer.header("Content-Length");
    if body.trim_end().is_empty() || announced != body.len().to_string() {
        let found = format!("{} bytes", body.len());
        return Err(DemoFailure::new(
            format!("a text of the {announced} bytes that the head announces"),
            found,
        ));
    }
    let client = stream.local_addr().expecting("an address of the client")?;
    for tunnel in held {
        close(tunnel).expecting("a tunnel that closes")?;
    }
    Ok(Refused { cause: case.cause, client, answer })
}

/// Opens as many tunnels as one device may have.
fn fill_device(world: &DemoWorld) -> Result<Vec<TcpStream>, DemoFailure> {
    (0..SESSIONS_PER_DEVICE).map(|_| world.client.open(world.echo(), &world.rights.token)).collect()
}

/// Checks that a client cannot distinguish a missing device from one that it may not reach.
fn look_alike(refused: &[Refused]) -> Result<String, DemoFailure> {
    let mut answers =
        refused.iter().map(|case| &case.answer).filter(|answer| answer.slug() == "not-permitted");
    let Some(first) = answers.next() else {
        return Err(DemoFailure::new("answers with 403", "none"));
    };
    match answers.find(|answer| answer.without_session() != first.without_session()) {
        None => Ok(format!("{} bytes that do not show which devices exist", first.head.len())),
        Some(other) => Err(DemoFailure::new(format!("{:?}", first.head), format!("{:?}", other.head))),
    }
}

/// Checks that the audit log names the cause of every refusal.
fn audited(log: &Path, refused: &[Refused]) -> Result<String, DemoFailure> {
    let deadline = Instant::now() + AUDIT_TIMEOUT;
    loop {
        let causes = causes_in(log).expecting(format!("a log at {}", log.display()))?;
        let wrong =
            refused.iter().find(|case| causes.get(&case.client).is_none_or(|cause| cause != case.cause));
        match wrong {
            None => {
                return Ok(format!("{} causes, such as device-unknown and no-grant", refused.len()));
            }
            // The log's own thread writes it a little later.
            Some(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Some(case) => {
                let came = causes.get(&case.client).map_or("nothing about that client", String::as_str);
                return Err(DemoFailure::new(case.cause, came));
            }
        }
    }
}

/// Causes by the client's address.
fn causes_in(log: &Path) -> io::Result<HashMap<SocketAddr, String>> {
    let text = std::fs::read_to_string(log)?;
    let events = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let by_client = events.filter_map(|event| {
        let client = event["client"].as_str()?.parse().ok()?;
        Some((client, event["cause"].as_str()?.to_owned()))
    });
    Ok(by_client.collect())
}

/// Case that runs while the device has its largest number of sessions.
const OVER_THE_LIMIT: &str = "a session over the limit";

const AUDIT_TIMEOUT: Duration = Duration::from_secs(3);
