//! Clients that do nothing wrong, and what they notice.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Field;
use super::assault::connect_within;
use crate::support::{DEVICE, Request, read_head};

/// Open tunnels with messages in them, and new tunnels all the time.
pub struct GoodClients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What good clients noticed in some time.
#[derive(Default, Clone)]
pub struct Quality {
    pub messages: usize,
    pub p99: Duration,
    /// Open tunnels that failed.
    pub lost: usize,
    pub opened: usize,
    pub not_opened: usize,
    /// Why the last of those was not opened.
    pub why_not: Option<String>,
    pub opening_p99: Duration,
}

#[derive(Default)]
struct Shared {
    messages: Mutex<Vec<Duration>>,
    lost: Mutex<usize>,
    openings: Mutex<Vec<Duration>>,
    last_opening: Mutex<Option<(Instant, Duration)>>,
    not_opened: Mutex<usize>,
    why_not: Mutex<Option<String>>,
    is_over: AtomicBool,
}

impl GoodClients {
    pub fn start(field: &Field) -> Self {
        let shared = Arc::<Shared>::default();
        let (messages, openings) = (Arc::clone(&shared), Arc::clone(&shared));
        let tunnels: Vec<_> = (0..TUNNELS).map(|_| open(field).unwrap()).collect();
        let field = field.clone();
        let threads = vec![
            std::thread::spawn(move || exchange(tunnels, &messages)),
            std::thread::spawn(move || open_again_and_again(&field, &openings)),
        ];
        Self { shared, threads }
    }

    /// What was noticed since the last call.
    pub fn take(&mut self) -> Quality {
        let Shared { messages, lost, openings, not_opened, why_not, .. } = &*self.shared;
        let mut messages = std::mem::take(&mut *messages.lock());
        let mut openings = std::mem::take(&mut *openings.lock());
        Quality {
            messages: messages.len(),
            p99: quantile(&mut messages, 0.99),
            lost: std::mem::take(&mut *lost.lock()),
            opened: openings.len(),
            not_opened: std::mem::take(&mut *not_opened.lock()),
            why_not: why_not.lock().take(),
            opening_p99: quantile(&mut openings, 0.99),
        }
    }

    /// True where a tunnel was opened a moment ago, and took no more than `limit`.
    pub fn opened_within(&self, limit: Duration) -> bool {
        self.shared
            .last_opening
            .lock()
            .is_some_and(|(at, took)| at.elapsed() < Duration::from_secs(1) && took <= limit)
    }

    pub fn stop(mut self) -> Quality {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        self.take()
    }
}

fn open(field: &Field) -> io::Result<TcpStream> {
    let mut socket = connect_within(PATIENCE, [127, 0, 0, 1].into(), field.plain)?;
    socket.set_nodelay(true)?;
    socket.write_all(&Request::to(DEVICE, field.echo_port).bearer(&field.token).bytes())?;
    let head = read_head(&mut socket)?;
    let is_open = head.windows(5).any(|part| part == b" 200 ");
    if is_open { Ok(socket) } else { Err(io::Error::other(String::from_utf8_lossy(&head).into_owned())) }
}

fn exchange(mut tunnels: Vec<TcpStream>, shared: &Shared) {
    while !shared.is_over.load(Ordering::Relaxed) {
        tunnels.retain_mut(|tunnel| {
            let began = Instant::now();
            let outcome = message(tunnel);
            match outcome {
                Ok(()) => shared.messages.lock().push(began.elapsed()),
                Err(_) => *shared.lost.lock() += 1,
            }
            outcome.is_ok()
        });
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn message(tunnel: &mut TcpStream) -> io::Result<()> {
    let (message, mut answer) = ([7; 128], [0; 128]);
    tunnel.write_all(&message)?;
    tunnel.read_exact(&mut answer)?;
    if answer == message { Ok(()) } else { Err(io::Error::other("other bytes came back")) }
}

fn open_again_and_again(field: &Field, shared: &Shared) {
    while !shared.is_over.load(Ordering::Relaxed) {
        let began = Instant::now();
        let opened = open(field).and_then(|mut tunnel| message(&mut tunnel));
        match opened {
            Ok(()) => {
                shared.openings.lock().push(began.elapsed());
                *shared.last_opening.lock() = Some((Instant::now(), began.elapsed()));
            }
            Err(error) => {
                *shared.not_opened.lock() += 1;
                *shared.why_not.lock() = Some(error.to_string());
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn quantile(durations: &mut [Duration], share: f64) -> Duration {
    durations.sort();
    let place = (durations.len() as f64 * share) as usize;
    durations.get(place.min(durations.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// Open tunnels of good clients.
const TUNNELS: usize = 8;

/// Time after which a good client gives up. The kernel repeats a SYN that found a full queue after 1 s and 3 s.
const PATIENCE: Duration = Duration::from_secs(20);
