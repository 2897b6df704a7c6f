//! Devices that say who they are, and clients that go on while a store is wrong.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use sluicegate::authz::DeviceUuid;

use super::rights::{Installation, PORTS_AROUND, Question};
use crate::support::{read_head, reset};

/// Port of all devices. Each has an address of its own, and says its uuid to whoever connects.
pub static DEVICE_PORT: LazyLock<u16> = LazyLock::new(|| {
    let highest = u16::MAX - PORTS_AROUND - 1;
    let bound = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let listener = std::iter::repeat_with(bound)
        .find(|listener| listener.local_addr().unwrap().port() < highest)
        .expect("a port below the last");
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(socket));
        }
    });
    port
});

/// Clients of one relay after another.
pub struct Traffic {
    shared: Arc<Shared>,
    client: Option<JoinHandle<()>>,
    tunnels: Vec<Tunnel>,
}

/// A tunnel that stays open.
struct Tunnel {
    row: usize,
    stream: TcpStream,
}

struct Shared {
    installation: Installation,
    relay: Mutex<Option<SocketAddr>>,
    /// Rows whose rights are known to have ended: nobody may get through with them.
    ended: Mutex<Vec<usize>>,
    is_over: AtomicBool,
    requests: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Traffic {
    /// Starts a client that asks by the rows of `sample`, over and over.
    pub fn start(installation: Installation, sample: Vec<usize>) -> Self {
        let shared = Arc::new(Shared {
            installation,
            relay: Mutex::new(None),
            ended: Mutex::default(),
            is_over: AtomicBool::new(false),
            requests: AtomicUsize::new(0),
            failures: Mutex::default(),
        });
        let of_client = Arc::clone(&shared);
        let client = std::thread::spawn(move || {
            for row in sample.iter().cycle() {
                if of_client.is_over.load(Ordering::Relaxed) {
                    return;
                }
                of_client.ask(*row);
                std::thread::sleep(PAUSE);
            }
        });
        Self { shared, client: Some(client), tunnels: Vec::new() }
    }

    /// Sends the clients to `relay`; to nobody where it is `None`.
    pub fn lead_to(&mut self, relay: Option<SocketAddr>) {
        *self.shared.relay.lock() = relay;
    }

    /// Opens a tunnel by each of `rows` that may.
    pub fn open(&mut self, relay: SocketAddr, rows: impl IntoIterator<Item = usize>) {
        let open = |row| {
            let question = self.shared.installation.question(row);
            let stream = connected(relay, row, &question).ok()??.0;
            Some(Tunnel { row, stream })
        };
        self.tunnels = rows.into_iter().filter_map(open).collect();
    }

    /// Tells the clients that the rights of `row` have ended.
    pub fn end(&mut self, row: usize) {
        self.shared.ended.lock().push(row);
    }

    /// Rows of tunnels that were opened and through which nothing goes any more.
    pub fn closed(&mut self) -> Vec<usize> {
        let mut closed = Vec::new();
        for Tunnel { row, stream } in &mut self.tunnels {
            let echoes = stream.write_all(b"ping").is_ok() && stream.read_exact(&mut [0; 4]).is_ok();
            if !echoes {
                closed.push(*row);
            }
        }
        closed
    }

    /// Waits until the tunnel of `row` is closed. True where there is none.
    pub fn closes(&mut self, row: usize, patience: Duration) -> bool {
        let Some(place) = self.tunnels.iter().position(|tunnel| tunnel.row == row) else { return true };
        let mut tunnel = self.tunnels.swap_remove(place);
        tunnel.stream.set_read_timeout(Some(patience)).unwrap();
        match tunnel.stream.read(&mut [0; 1]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }

    pub fn forget_tunnels(&mut self) {
        self.tunnels.clear();
    }

    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// What clients saw and must not see.
    pub fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().clone()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(client) = self.client.take() {
            let ended = client.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a client failed");
        }
    }
}

impl Shared {
    fn ask(&self, row: usize) {
        let Some(relay) = *self.relay.lock() else { return };
        let has_ended = self.ended.lock().contains(&row);
        let question = self.installation.question(row);
        // The relay may be on its way down.
        let Ok(answer) = connected(relay, row, &question) else { return };
        self.requests.fetch_add(1, Ordering::Relaxed);
        let Some((stream, identity)) = answer else { return };
        reset(stream);
        let mut failures = self.failures.lock();
        if has_ended {
            failures.push(format!("H3: a client got through by row {row}, which has ended"));
        }
        if identity.is_some_and(|identity| identity != question.uuid) {
            failures.push(format!("H5: row {row} asked for {} and got {identity:?}", question.uuid));
        }
    }
}

/// Asks by row `row`. Returns the tunnel and who is at its end, where there is one.
fn connected(
    relay: SocketAddr,
    row: usize,
    question: &Question,
) -> io::Result<Option<(TcpStream, Option<DeviceUuid>)>> {
    let mut stream = TcpStream::connect_timeout(&relay, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let (uuid, port, token) = (question.uuid, question.port, Installation::token(row));
    stream.write_all(
        format!("CONNECT {uuid}.balena:{port} HTTP/1.1\r\nProxy-Authorization: Bearer {token}\r\n\r\n")
            .as_bytes(),
    )?;
    let head = read_head(&mut stream)?;
    if !head.starts_with(b"HTTP/1.1 200") {
        return Ok(None);
    }
    let mut identity = [0; 32];
    let identity = match stream.read_exact(&mut identity) {
        Ok(()) => std::str::from_utf8(&identity).ok().and_then(DeviceUuid::parse),
        Err(_) => None,
    };
    Ok(Some((stream, identity)))
}

/// A device: says its uuid, then sends back what it gets. Nobody is at an address that is no device's.
fn serve(mut socket: TcpStream) {
    let address = socket.local_addr().map(|address| address.ip());
    let Some(device) = address.ok().and_then(Installation::device_at) else { return };
    if socket.write_all(Installation::uuid(device).to_string().as_bytes()).is_ok()
        && let Ok(mut source) = socket.try_clone()
    {
        let _whatever_ended_it = io::copy(&mut source, &mut socket);
    }
}

/// Leaves the machine to the relays.
const PAUSE: Duration = Duration::from_millis(4);

/// Longest wait for a relay or a device.
const PATIENCE: Duration = Duration::from_secs(20);
