//! Clients of an installation who never stop asking.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::installation::Installation;
use crate::support::{Answer, Relay, reset, wait_for};

/// Clients who open tunnels to one device after the other, over and over, and some whose tunnels stand.
pub struct Traffic {
    tally: Arc<Tally>,
    standing: Vec<TcpStream>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Tally {
    is_over: AtomicBool,
    asked: AtomicU64,
    /// Replies to the clients that got no tunnel.
    refusals: Mutex<Vec<String>>,
}

impl Traffic {
    /// Begins, and waits until every device of a small installation was reached.
    pub fn start(installation: &Installation, relay: &Relay) -> Self {
        let devices = installation.size.0;
        let stride = (devices / CLIENTS).max(1);
        let tally: Arc<Tally> = Arc::default();
        let clients = (0..CLIENTS).map(|client| {
            // Whoever begins elsewhere asks of other devices, also where nobody gets round to all.
            let order = (0..devices).map(|place| (client * stride + place) % devices + 1);
            let requests: Vec<_> =
                order.take(REQUESTS_MAX).map(|device| installation.request(device)).collect();
            let (relay, tally) = (relay.address(), Arc::clone(&tally));
            std::thread::spawn(move || {
                for request in requests.iter().cycle().take_while(|_| !tally.is_over.load(Ordering::Relaxed))
                {
                    tally.note(request.send(relay));
                    std::thread::sleep(PAUSE);
                }
            })
        });
        let traffic = Self { clients: clients.collect(), tally, standing: Vec::new() };
        traffic.goes_on_for(devices.min(REQUESTS_MAX) as u64);
        traffic
    }

    /// Opens tunnels that are to stand from now on.
    pub fn stand(&mut self, installation: &Installation, relay: &Relay) {
        let open = |device| installation.request(device).send(relay.address()).opened();
        self.standing = (1..=STANDING.min(installation.size.0)).map(open).collect();
    }

    /// Waits until so many more were asked.
    pub fn goes_on_for(&self, requests: u64) {
        let asked = || self.tally.asked.load(Ordering::Relaxed);
        let until = asked() + requests;
        wait_for(|| (asked() >= until).then_some(())).expect("clients go on");
    }

    /// Clients that were refused since the last call.
    pub fn refusals(&self) -> Vec<String> {
        std::mem::take(&mut self.tally.refusals.lock())
    }

    /// True if bytes still go through every tunnel that was open before.
    pub fn stands(&mut self) -> bool {
        self.standing.iter_mut().all(echoes)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.tally.is_over.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            let ended = client.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a client got no answer");
        }
    }
}

impl Tally {
    fn note(&self, mut answer: Answer) {
        if answer.status != 200 {
            let message = String::from_utf8_lossy(&answer.head).replace("\r\n", " ");
            self.refusals.lock().push(message);
        } else if !echoes(&mut answer.stream) {
            self.refusals.lock().push("a tunnel that leads nowhere".to_owned());
        }
        // Leaves no port behind that waits.
        reset(answer.stream);
        self.asked.fetch_add(1, Ordering::Relaxed);
    }
}

fn echoes(tunnel: &mut TcpStream) -> bool {
    tunnel.write_all(b"ping").is_ok() && tunnel.read_exact(&mut [0; 4]).is_ok()
}

const CLIENTS: usize = 2;

/// Tunnels that stand all the time.
const STANDING: usize = 20;

/// Devices that one client asks for.
const REQUESTS_MAX: usize = 1_000;

/// Leaves the machine to those whom it is about.
const PAUSE: Duration = Duration::from_millis(2);
