//! An attack, and the sockets that attackers need.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::Field;

/// A kind of attack.
pub struct Attack {
    /// Who attacks, and how.
    pub name: &'static str,
    /// HAProxy has the same job, and is attacked for comparison.
    pub has_haproxy: bool,
    pub threads: usize,
    /// What each of the threads does until the assault is over.
    pub make: fn(&Field, &Assault),
}

/// An attack under way.
pub struct Assault {
    until: Instant,
    /// Connections that one thread holds at a time.
    pub held_each: usize,
    pub attempts: AtomicU64,
    random: AtomicU64,
}

impl Attack {
    pub const fn of_both(name: &'static str, threads: usize, make: fn(&Field, &Assault)) -> Self {
        Self { name, has_haproxy: true, threads, make }
    }

    pub const fn of_ours(name: &'static str, threads: usize, make: fn(&Field, &Assault)) -> Self {
        Self { name, has_haproxy: false, threads, make }
    }
}

impl Assault {
    pub fn lasting(time: Duration) -> Self {
        // A short assault is to be over in time.
        let held_each = if time < Duration::from_secs(2) { 400 } else { 4000 };
        Self {
            until: Instant::now() + time,
            held_each,
            attempts: AtomicU64::new(0),
            random: AtomicU64::new(1),
        }
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Repeats `attempt` until the assault is over. Where it fails, as when the target has closed the door, the attacker
    /// takes breath.
    pub fn repeat(&self, mut attempt: impl FnMut() -> io::Result<()>) {
        while !self.is_over() {
            self.attempts.fetch_add(1, Ordering::Relaxed);
            if attempt().is_err() {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    /// Opens as many connections as one thread holds by `open`, and sends a byte of `bytes` on each of them again and again.
    pub fn hold(&self, bytes: &[u8], open: impl Fn() -> io::Result<TcpStream>) {
        let mut held: Vec<(TcpStream, usize)> = Vec::new();
        while !self.is_over() {
            while held.len() < self.held_each && !self.is_over() {
                self.attempts.fetch_add(1, Ordering::Relaxed);
                match open() {
                    Ok(socket) => held.push((socket, 0)),
                    Err(_) => break,
                }
            }
            held.retain_mut(|(socket, sent)| {
                let next = bytes.get(*sent).map(std::slice::from_ref);
                *sent += 1;
                next.is_none_or(|byte| io::Write::write(socket, byte).is_ok()) && !is_closed(socket)
            });
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A number that was not there before.
    pub fn next_random(&self) -> u64 {
        let number = self.random.fetch_add(1, Ordering::Relaxed);
        // SplitMix64: all numbers, in an order that looks like none.
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 27)
    }

    /// A connection from one of a million addresses.
    pub fn connect_from_everywhere(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let [_, _, _, _, _, a, b, c] = self.next_random().to_be_bytes();
        connect_from(Ipv4Addr::new(127, 16 + (a & 15), b, c), to)
    }
}

/// An attacker's connection from an address of this machine. Connects, reads and writes last a second at most.
pub fn connect_from(source: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    connect_within(PATIENCE, source, to)
}

/// A connection from an address of this machine. Connects, reads and writes last `patience` at most.
pub fn connect_within(patience: Duration, source: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect_timeout(&to.into(), patience)?;
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(patience))?;
    Ok(socket.into())
}

/// Reads what comes, to the end.
pub fn read_to_end(mut socket: TcpStream) -> io::Result<()> {
    let mut room = [0; 4096];
    while socket.read(&mut room)? > 0 {}
    Ok(())
}

fn is_closed(socket: &TcpStream) -> bool {
    socket.set_nonblocking(true).unwrap();
    let seen = socket.peek(&mut [0]);
    socket.set_nonblocking(false).unwrap();
    match seen {
        Ok(count) => count == 0,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

/// An attacker's address, when it has one.
pub const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 66, 6, 6);

const PATIENCE: Duration = Duration::from_secs(1);
