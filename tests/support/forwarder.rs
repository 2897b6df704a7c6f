//! A plain TCP forwarder, and what it may do to a connection besides forwarding it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::V4;

/// Changes that a forwarder makes to a connection; none by default.
#[derive(Default)]
pub struct Tamper {
    up: Flow,
    down: Flow,
}

/// Changes to one direction of a connection.
struct Flow {
    bytes_max: u64,
    then: Then,
    flip_at: Option<u64>,
    delay: Duration,
    stall: Option<Arc<Stall>>,
}

/// The end of a direction, after the last byte that is passed on.
enum Then {
    /// The rest is read, and goes nowhere.
    Vanish,
    Close,
}

/// The time until which nothing moves, on all connections of a forwarder.
pub struct Stall(Mutex<Instant>);

impl Tamper {
    /// Passes on so many bytes each way; the rest vanishes.
    pub fn swallow_after(up_bytes: u64, down_bytes: u64) -> Self {
        let flow = |bytes_max| Flow { bytes_max, ..Flow::default() };
        Self { up: flow(up_bytes), down: flow(down_bytes) }
    }

    /// Ends the connection behind so many bytes down.
    pub fn close_after(down_bytes: u64) -> Self {
        Self::down(Flow { bytes_max: down_bytes, then: Then::Close, ..Flow::default() })
    }

    /// Changes one byte on its way down.
    pub fn flip_at(offset: u64) -> Self {
        Self::down(Flow { flip_at: Some(offset), ..Flow::default() })
    }

    /// Waits before it passes anything on downwards.
    pub fn delayed(delay: Duration) -> Self {
        Self::down(Flow { delay, ..Flow::default() })
    }

    /// Passes nothing on downwards while `stall` holds.
    pub fn stalling(stall: &Arc<Stall>) -> Self {
        Self::down(Flow { stall: Some(Arc::clone(stall)), ..Flow::default() })
    }

    fn down(down: Flow) -> Self {
        Self { down, ..Self::default() }
    }
}

impl Stall {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Instant::now())))
    }

    pub fn hold(&self, duration: Duration) {
        *self.0.lock() = Instant::now() + duration;
    }

    fn wait(&self) {
        let over_at = *self.0.lock();
        thread::sleep(over_at.saturating_duration_since(Instant::now()));
    }
}

impl Default for Flow {
    fn default() -> Self {
        Self { bytes_max: u64::MAX, then: Then::Vanish, flip_at: None, delay: Duration::ZERO, stall: None }
    }
}

/// A listener whose connections `serve` deals with, each in a thread of its own.
pub fn serve(serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(client));
        }
    });
    address
}

/// Connects `client` with the backend, and leaves both to threads.
pub fn forward(client: TcpStream, backend: SocketAddr, tamper: Tamper) -> io::Result<()> {
    let backend = TcpStream::connect(backend)?;
    client.set_nodelay(true)?;
    backend.set_nodelay(true)?;
    let (from_client, to_backend) = (client.try_clone()?, backend.try_clone()?);
    thread::spawn(move || pass_on(from_client, to_backend, tamper.up));
    thread::spawn(move || pass_on(backend, client, tamper.down));
    Ok(())
}

/// One direction, to its end, which is the end of both.
fn pass_on(mut from: TcpStream, mut to: TcpStream, flow: Flow) {
    let mut buffer = vec![0; 64 * 1024];
    let mut passed = 0;
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        if let Some(at) = flow.flip_at.filter(|at| (passed..passed + len as u64).contains(at)) {
            buffer[(at - passed) as usize] ^= 0xff;
        }
        thread::sleep(flow.delay);
        if let Some(stall) = &flow.stall {
            stall.wait();
        }
        let wanted = (flow.bytes_max - passed).min(len as u64) as usize;
        if to.write_all(&buffer[..wanted]).is_err() {
            break;
        }
        passed += wanted as u64;
        if passed == flow.bytes_max && matches!(flow.then, Then::Close) {
            break;
        }
    }
    for socket in [from, to] {
        let _gone_already = socket.shutdown(Shutdown::Both);
    }
}
