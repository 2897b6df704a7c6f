//! The clients of a soak. Each counts what it did, and what went wrong.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use super::support::{
    Content, DEVICE, Device, End, OTHER_DEVICE, PATIENCE, Relay, Request, Site, read_head, receive, reset,
    shake_hands,
};

/// What the clients have done.
#[derive(Default)]
pub struct Tallies {
    pub short: AtomicU64,
    pub by_tls: AtomicU64,
    pub streams: AtomicU64,
    pub stream_bytes: AtomicU64,
    pub refused: AtomicU64,
    pub abandoned: AtomicU64,
    pub pings: AtomicU64,
    pub long: AtomicU64,
    /// What should not have happened, by what it was.
    pub faults: parking_lot::Mutex<Vec<String>>,
}

impl Tallies {
    fn fault(&self, what: &str, detail: impl std::fmt::Display) {
        let mut faults = self.faults.lock();
        if faults.len() < FAULTS_KEPT {
            faults.push(format!("{what}: {detail}"));
        }
    }
}

/// All clients, and what they need to know.
pub struct Load<'a> {
    plain: SocketAddr,
    tls: SocketAddr,
    tls_client: Arc<ClientConfig>,
    request: Request,
    port: u16,
    token: String,
    tallies: &'a Tallies,
    is_over: &'a AtomicBool,
}

impl<'a> Load<'a> {
    pub fn new(
        site: &Site,
        relay: &Relay,
        device: &Device,
        tls_client: Arc<ClientConfig>,
        tallies: &'a Tallies,
        is_over: &'a AtomicBool,
    ) -> Self {
        let [plain, tls] = *relay.addresses() else { panic!("the relay has two listeners") };
        let (request, port) = (site.request(device), device.port());
        Self { plain, tls, tls_client, request, port, token: site.token.clone(), tallies, is_over }
    }

    pub fn start<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        scope.spawn(|| self.repeat(Duration::from_millis(40), |number| self.short(number)));
        scope.spawn(|| self.repeat(Duration::from_millis(200), |number| self.by_tls(number)));
        scope.spawn(|| self.repeat(Duration::from_secs(2), |number| self.stream(number)));
        scope.spawn(|| self.repeat(Duration::from_millis(150), |number| self.refused(number)));
        scope.spawn(|| self.repeat(Duration::from_secs(1), |number| self.abandoned(number)));
        scope.spawn(|| self.hold_long());
    }

    /// Does `work` again and again, until the soak is over.
    fn repeat(&self, pause: Duration, mut work: impl FnMut(u64)) {
        for number in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            work(number);
            std::thread::sleep(pause);
        }
    }

    fn open(&self) -> io::Result<TcpStream> {
        self.ask(&self.request.bytes(), &[200])
    }

    /// Sends a head. The connection, where the answer has one of these statuses.
    fn ask(&self, head: &[u8], statuses: &[u16]) -> io::Result<TcpStream> {
        let mut stream = connect(self.plain)?;
        stream.write_all(head)?;
        let head = read_head(&mut stream)?;
        let is_wanted = |status: &u16| head.starts_with(format!("HTTP/1.1 {status} ").as_bytes());
        if statuses.iter().any(is_wanted) {
            return Ok(stream);
        }
        Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()))
    }

    fn short(&self, number: u64) {
        let exchanged = self.open().and_then(|mut tunnel| {
            (0..3).try_for_each(|round| ping(&mut tunnel, number + round))?;
            if number.is_multiple_of(10) {
                reset(tunnel);
            }
            Ok(())
        });
        count(&self.tallies.short, self.tallies, "a short tunnel", exchanged);
    }

    fn by_tls(&self, number: u64) {
        let exchanged = shake_hands(&self.tls_client, self.tls, "relay").and_then(|mut tunnel| {
            tunnel.write_all(&self.request.bytes())?;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                tunnel.read_exact(&mut byte)?;
                head.push(byte[0]);
            }
            if !head.starts_with(b"HTTP/1.1 200 ") {
                return Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()));
            }
            ping(&mut tunnel, number)
        });
        count(&self.tallies.by_tls, self.tallies, "a tunnel by TLS", exchanged);
    }

    /// Streams through the device that echoes; what comes back must be the same.
    fn stream(&self, number: u64) {
        let content = Content::new(number, STREAM_BYTES);
        let streamed = self.open().and_then(|tunnel| {
            let mut back = tunnel.try_clone()?;
            std::thread::scope(|scope| {
                let received = scope.spawn(move || receive(&mut back));
                let sent = content.send(&mut &tunnel)?;
                tunnel.shutdown(Shutdown::Write)?;
                match received.join() {
                    Ok((came, End::Fin)) if came == sent => Ok(()),
                    other => Err(io::Error::other(format!("{other:?}"))),
                }
            })
        });
        self.tallies.stream_bytes.fetch_add(2 * STREAM_BYTES, Ordering::Relaxed);
        count(&self.tallies.streams, self.tallies, "a stream", streamed);
    }

    fn refused(&self, number: u64) {
        // While the store is away, nobody can say that it does not know a token.
        let (head, statuses) = match number % 5 {
            0 => (Request::to(DEVICE, self.port).bytes(), &[407][..]),
            1 => (Request::to(DEVICE, self.port).bearer("sg_nobody").bytes(), &[407, 503][..]),
            2 => (Request::to(OTHER_DEVICE, self.port).bearer(&self.token).bytes(), &[403][..]),
            3 => (b"GET / HTTP/1.1\r\n\r\n".to_vec(), &[405][..]),
            _ => (Request::to(DEVICE, 1).bearer(&self.token).bytes(), &[502][..]),
        };
        let refused = self.ask(&head, statuses).map(drop);
        count(&self.tallies.refused, self.tallies, "a refusal", refused);
    }

    /// Connects, says half of a request or nothing, and leaves.
    fn abandoned(&self, number: u64) {
        let left = connect(self.plain).and_then(|mut stream| {
            let head = self.request.bytes();
            stream.write_all(&head[..head.len() * (number % 2) as usize / 2])?;
            std::thread::sleep(Duration::from_millis(300));
            Ok(())
        });
        count(&self.tallies.abandoned, self.tallies, "a client that leaves", left);
    }

    /// Holds long tunnels, and replaces the oldest again and again.
    fn hold_long(&self) {
        let mut tunnels = Vec::new();
        let mut opened_at = Instant::now();
        self.repeat(Duration::from_millis(20), |number| {
            if tunnels.len() < LONG_TUNNELS || opened_at.elapsed() >= REPLACE_EVERY {
                match self.open() {
                    Ok(tunnel) => tunnels.push(tunnel),
                    Err(error) => self.tallies.fault("a long tunnel", error),
                }
                self.tallies.long.fetch_add(1, Ordering::Relaxed);
                opened_at = Instant::now();
                if tunnels.len() > LONG_TUNNELS {
                    tunnels.remove(0);
                }
            }
            let Some(at) = (!tunnels.is_empty()).then(|| number as usize % tunnels.len()) else { return };
            let pinged = ping(&mut tunnels[at], number);
            if pinged.is_err() {
                tunnels.remove(at);
            }
            count(&self.tallies.pings, self.tallies, "a long tunnel", pinged);
        });
    }
}

fn count(tally: &AtomicU64, tallies: &Tallies, what: &str, result: io::Result<()>) {
    tally.fetch_add(1, Ordering::Relaxed);
    if let Err(error) = result {
        tallies.fault(what, error);
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends 128 bytes, and wants them back.
fn ping(tunnel: &mut (impl Read + Write), number: u64) -> io::Result<()> {
    let (mut sent, mut came) = ([0x55; 128], [0; 128]);
    sent[..8].copy_from_slice(&number.to_be_bytes());
    tunnel.write_all(&sent)?;
    tunnel.read_exact(&mut came)?;
    if came == sent { Ok(()) } else { Err(io::Error::other("other bytes came back")) }
}

/// Tunnels that are held.
const LONG_TUNNELS: usize = 200;

/// Time after which the oldest of them is replaced.
const REPLACE_EVERY: Duration = Duration::from_secs(3);

/// Bytes of a stream, in one direction.
const STREAM_BYTES: u64 = 32 << 20;

/// Faults that the report can show.
const FAULTS_KEPT: usize = 1000;
