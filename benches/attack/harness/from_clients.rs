//! Attacks on the listeners for clients: by somebody without a token, and by a client with one.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::assault::{ATTACKER, connect_from, read_to_end};
use super::{Assault, Field};
use crate::support::{DEVICE, Request, read_head, reset};

pub fn close_at_once(field: &Field, assault: &Assault) {
    assault.repeat(|| assault.connect_from_everywhere(field.plain).map(drop));
}

pub fn reset_at_once(field: &Field, assault: &Assault) {
    assault.repeat(|| assault.connect_from_everywhere(field.plain).map(reset));
}

pub fn stay_silent(field: &Field, assault: &Assault) {
    assault.hold(&[], || connect_from(ATTACKER, field.plain));
}

pub fn send_slow_heads(field: &Field, assault: &Assault) {
    let head = b"CONNECT 00112233445566778899aabbccddeeff.balena:22 HTTP/1.1\r\nHost: nowhere\r\nX: ";
    assault.hold(head, || assault.connect_from_everywhere(field.plain));
}

pub fn send_endless_heads(field: &Field, assault: &Assault) {
    let piece = [b'a'; 16 * 1024];
    assault.repeat(|| {
        let mut socket = assault.connect_from_everywhere(field.plain)?;
        socket.write_all(b"CONNECT a.balena:22 HTTP/1.1\r\nX: ")?;
        for _ in 0..64 {
            socket.write_all(&piece)?;
        }
        Ok(())
    });
}

pub fn shake_hands_slowly(field: &Field, assault: &Assault) {
    // The begin of a record with a ClientHello of 512 bytes.
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 200]].concat();
    assault.hold(&hello, || assault.connect_from_everywhere(field.tls));
}

pub fn shake_hands(field: &Field, assault: &Assault) {
    assault.repeat(|| field.shake_hands(assault.connect_from_everywhere(field.tls)?).map(drop));
}

/// Has OpenSSL ask for a new handshake of TLS 1.2, as often as it gets one.
pub fn renegotiate(field: &Field, assault: &Assault) {
    assault.repeat(|| {
        let mut client = Command::new("openssl")
            .args(["s_client", "-quiet", "-no_ign_eof", "-tls1_2", "-legacy_renegotiation", "-connect"])
            .arg(field.tls.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut input = client.stdin.take().unwrap();
        for _ in 0..20 {
            if input.write_all(b"R\n").is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(input);
        client.wait().map(drop)
    });
}

pub fn guess_tokens(field: &Field, assault: &Assault) {
    assault.repeat(|| {
        let token = format!("sg_{:016x}", assault.next_random());
        ask(assault.connect_from_everywhere(field.plain)?, DEVICE, field.echo_port, &token)
    });
}

pub fn guess_tokens_from_here(field: &Field, assault: &Assault) {
    assault.repeat(|| {
        let token = format!("sg_{:016x}", assault.next_random());
        ask(connect_from(ATTACKER, field.plain)?, DEVICE, field.echo_port, &token)
    });
}

pub fn guess_devices(field: &Field, assault: &Assault) {
    assault.repeat(|| {
        let uuid = format!("{:016x}{:016x}", assault.next_random(), assault.next_random());
        ask(assault.connect_from_everywhere(field.plain)?, &uuid, field.echo_port, &field.attacker_token)
    });
}

pub fn open_and_close(field: &Field, assault: &Assault) {
    assault.repeat(|| open(field, assault, field.echo_port).map(drop));
}

/// Sends until nobody takes more, and reads nothing of what comes back.
pub fn never_read(field: &Field, assault: &Assault) {
    let piece = [7; 64 * 1024];
    let mut held = Vec::new();
    while !assault.is_over() && held.len() < STALLED_EACH {
        let Ok(mut tunnel) = open(field, assault, field.echo_port) else { continue };
        assault.attempts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        tunnel.set_nonblocking(true).unwrap();
        while tunnel.write(&piece).is_ok() {}
        held.push(tunnel);
    }
    while !assault.is_over() {
        held.iter_mut().for_each(|tunnel| while tunnel.write(&piece).is_ok() {});
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn dial_silence(field: &Field, assault: &Assault) {
    let request = Request::to(field.attacked_device, field.silent_port).bearer(&field.attacker_token).bytes();
    assault.hold(&[], || {
        let mut socket = assault.connect_from_everywhere(field.plain)?;
        socket.write_all(&request)?;
        Ok(socket)
    });
}

/// A tunnel of the attacker, to a port of its device.
pub fn open(field: &Field, assault: &Assault, port: u16) -> io::Result<TcpStream> {
    let mut socket = assault.connect_from_everywhere(field.plain)?;
    socket.write_all(&Request::to(field.attacked_device, port).bearer(&field.attacker_token).bytes())?;
    let head = read_head(&mut socket)?;
    let is_open = head.windows(5).any(|part| part == b" 200 ");
    if is_open { Ok(socket) } else { Err(io::Error::other("no tunnel")) }
}

/// Asks, and reads the refusal.
fn ask(mut socket: TcpStream, uuid: &str, port: u16, token: &str) -> io::Result<()> {
    socket.write_all(&Request::to(uuid, port).bearer(token).bytes())?;
    socket.read_exact(&mut [0; 12])?;
    read_to_end(socket)
}

/// Tunnels of one thread that are never read.
const STALLED_EACH: usize = 100;
