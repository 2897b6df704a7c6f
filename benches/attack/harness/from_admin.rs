//! Attacks by who can reach the admin port.

use std::io::Write;

use super::assault::{ATTACKER, connect_from, read_to_end};
use super::{Assault, Field};

pub fn scrape(field: &Field, assault: &Assault) {
    let Some(admin) = field.admin else { return };
    let mut paths = ["/", "/metrics", "/status.json", "/readyz"].into_iter().cycle();
    assault.repeat(|| get(admin, paths.next().unwrap_or("/"), ""));
}

pub fn stay_silent(field: &Field, assault: &Assault) {
    let Some(admin) = field.admin else { return };
    assault.hold(b"GET /metrics HTTP/1.1\r\nX: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", || {
        connect_from(ATTACKER, admin)
    });
}

pub fn guess_tokens(field: &Field, assault: &Assault) {
    let Some(admin) = field.admin else { return };
    assault.repeat(|| {
        get(admin, "/sessions", &format!("Authorization: Bearer {:016x}\r\n", assault.next_random()))
    });
}

fn get(admin: std::net::SocketAddr, path: &str, headers: &str) -> std::io::Result<()> {
    let mut socket = connect_from(ATTACKER, admin)?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: admin\r\n{headers}Connection: close\r\n\r\n")?;
    read_to_end(socket)
}
