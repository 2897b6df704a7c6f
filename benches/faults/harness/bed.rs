//! A relay with everything on, its clients, and what they see.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::control::Control;
use crate::support::{Authority, DEVICE, Device, Relay, Request, Site, TlsClient, TlsStream, V4, ask_by_tls};

/// A relay under a supervisor.
pub struct Bed {
    pub site: Site,
    pub control: Control,
    device: Device,
    sink: Device,
    tls: RefCell<TlsClient>,
    addresses: PathBuf,
}

/// The clients of a running relay.
pub struct Clients {
    tunnels: Vec<TcpStream>,
    by_tls: Option<TlsStream>,
    bulk: Option<TcpStream>,
}

impl Bed {
    pub fn new() -> Self {
        let mut site = Site::new(
            "engine.threads = 2\ntimeouts.drain = '0s'\ntimeouts.head = '2s'\nlog.level = 'info'\n\
             authz.reconcile = '1s'\nprobe.interval = '1s'",
        );
        let addresses = site.folder().join("addresses");
        std::fs::write(&addresses, ADDRESSES).unwrap();
        let authority = Authority::new(site.folder(), "ca");
        let (chain, key) = authority.issue("relay", &["localhost"]).write(site.folder(), "relay");
        site.configure(&format!(
            "listen = [{{ address = '127.0.0.1:0' }}, {{ address = '127.0.0.1:0', tls.certificates = [{{ chain = '{}', \
             key = '{}' }}] }}]\nvpn.addresses = ['store', 'file:{}']",
            chain.display(),
            key.display(),
            addresses.display()
        ));
        let control = Control::new(site.folder().join("control"));
        let device = Device::echo(V4);
        let sink = Device::serving(V4, |mut socket| {
            let _ended = std::io::copy(&mut socket, &mut std::io::sink());
        });
        let tls = RefCell::new(TlsClient::trusting(&authority));
        Self { site, control, device, sink, tls, addresses }
    }

    /// The command of the relay, under the supervisor.
    pub fn command(&self, numbers: impl IntoIterator<Item = i64>) -> Command {
        self.control.wrap(&self.site.command(&["run"]), numbers)
    }

    /// Opens a tunnel and sends a few bytes through it. The error says how far it came.
    pub fn open(&self, relay: SocketAddr) -> Result<TcpStream, String> {
        let mut stream = self.ask(relay, self.device.port())?;
        exchange(&mut stream).map_err(|error| format!("an open tunnel: {error}"))?;
        Ok(stream)
    }

    fn ask(&self, relay: SocketAddr, port: u16) -> Result<TcpStream, String> {
        let mut stream =
            TcpStream::connect_timeout(&relay, STEP_MAX).map_err(|error| error.kind().to_string())?;
        stream.set_read_timeout(Some(STEP_MAX)).unwrap();
        stream.set_write_timeout(Some(STEP_MAX)).unwrap();
        stream.set_nodelay(true).unwrap();
        let request = Request::to(DEVICE, port).bearer(&self.site.token).bytes();
        stream.write_all(&request).map_err(|error| error.kind().to_string())?;
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                Ok(_) => return Err("closed without a reply".to_owned()),
                Err(error) => return Err(error.kind().to_string()),
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let line = head.lines().next().unwrap_or_default();
        match line.split_once(' ') {
            Some((_, status)) if status.starts_with("200") => Ok(stream),
            Some((_, status)) => Err(status.to_owned()),
            None => Err(line.to_owned()),
        }
    }

    pub fn clients(&self, relay: &Relay) -> Result<Clients, String> {
        let tunnels = (0..TUNNELS).map(|_| self.open(relay.address())).collect::<Result<_, _>>()?;
        let by_tls = self.open_by_tls(relay.addresses()[1]).map_err(|error| format!("by TLS: {error}"))?;
        let mut bulk = self.ask(relay.address(), self.sink.port())?;
        stream_some(&mut bulk);
        Ok(Clients { tunnels, by_tls: Some(by_tls), bulk: Some(bulk) })
    }

    fn open_by_tls(&self, relay: SocketAddr) -> std::io::Result<TlsStream> {
        let stream = TcpStream::connect_timeout(&relay, STEP_MAX)?;
        stream.set_read_timeout(Some(STEP_MAX))?;
        stream.set_write_timeout(Some(STEP_MAX))?;
        let mut stream = self.tls.borrow_mut().connect_over(stream, "localhost")?;
        let request = Request::to(DEVICE, self.device.port()).bearer(&self.site.token).bytes();
        let reply = ask_by_tls(&mut stream, &request)?;
        match reply.contains(" 200 ") {
            true => Ok(stream),
            false => Err(std::io::Error::other(reply.lines().next().unwrap_or_default().to_owned())),
        }
    }

    /// Does everything that makes a relay work, for `time`. Returns the replies to requests for new tunnels.
    pub fn work(&self, relay: &Relay, clients: &mut Clients, time: Duration) -> Vec<String> {
        let until = Instant::now() + time;
        let mut replies = Vec::new();
        relay.signal(Signal::SIGHUP);
        // Renamed, so that no half of it is read.
        let new = self.addresses.with_extension("new");
        std::fs::write(&new, format!("{ADDRESSES}# again\n")).unwrap();
        std::fs::rename(&new, &self.addresses).unwrap();
        let _same = self.site.command(&["grant", "list", "--json"]).output();
        let mut round = 0;
        while Instant::now() < until {
            let reply = match self.open(relay.address()) {
                Ok(_closed_at_once) => "200".to_owned(),
                Err(reply) => reply,
            };
            if !replies.contains(&reply) {
                replies.push(reply);
            }
            clients.tunnels.iter_mut().for_each(|tunnel| _ = tunnel.write_all(b"x"));
            if let Some(bulk) = &mut clients.bulk {
                stream_some(bulk);
            }
            if let Some(by_tls) = &mut clients.by_tls {
                let _sent = by_tls.write_all(b"x");
            }
            let _opened = self.open_by_tls(relay.addresses()[1]);
            get(relay.admin(), "/metrics");
            if round % 4 == 0 {
                get(relay.admin(), "/status.json");
            }
            round += 1;
        }
        replies
    }

    /// Says what is not as it should be; `None` where everything is.
    pub fn trouble(&self, relay: &Relay) -> Option<String> {
        let opened = (0..4).map(|_| self.open(relay.address())).find_map(Result::err);
        if let Some(reply) = opened {
            return Some(format!("a new tunnel: {reply}"));
        }
        if let Err(error) = self.open_by_tls(relay.addresses()[1]) {
            return Some(format!("a new tunnel by TLS: {error}"));
        }
        for (path, good) in [("/livez", "ok\n"), ("/readyz", "ready\n")] {
            let answer = get(relay.admin(), path).unwrap_or_default();
            if !answer.ends_with(good) {
                return Some(format!("{path}: {}", answer.lines().last().unwrap_or("no answer")));
            }
        }
        None
    }
}

impl Clients {
    pub fn none() -> Self {
        Self { tunnels: Vec::new(), by_tls: None, bulk: None }
    }

    /// Tunnels that do not carry a byte any more. Those are dropped.
    pub fn drop_ended(&mut self) -> usize {
        let before = self.tunnels.len();
        self.tunnels.retain_mut(|tunnel| exchange_rest(tunnel).is_ok());
        let mut ended = before - self.tunnels.len();
        if self.by_tls.as_mut().is_some_and(|tunnel| exchange_rest(tunnel).is_err()) {
            self.by_tls = None;
            ended += 1;
        }
        if self.bulk.as_mut().is_some_and(|bulk| bulk.write_all(b"x").is_err()) {
            self.bulk = None;
            ended += 1;
        }
        ended
    }
}

/// Sends a byte and reads it back.
fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// Reads what has come back of earlier bytes, and a last one with a mark of its own.
fn exchange_rest(stream: &mut (impl Read + Write)) -> std::io::Result<()> {
    stream.write_all(b"!")?;
    let mut byte = [0];
    while byte != *b"!" {
        stream.read_exact(&mut byte)?;
    }
    Ok(())
}

fn stream_some(bulk: &mut TcpStream) {
    let block = [7; 64 * 1024];
    for _ in 0..16 {
        if bulk.write_all(&block).is_err() {
            return;
        }
    }
}

fn get(admin: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&admin, STEP_MAX).ok()?;
    stream.set_read_timeout(Some(STEP_MAX)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// CPU time of each thread of a process, in ns, with its name.
pub fn thread_times(pid: u32) -> Vec<(u32, String, u64)> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    threads
        .filter_map(|entry| {
            let path: PathBuf = entry.ok()?.path();
            let id = path.file_name()?.to_str()?.parse().ok()?;
            let read = |path: &Path| std::fs::read_to_string(path).ok();
            let name = read(&path.join("comm"))?.trim().to_owned();
            let time = read(&path.join("schedstat"))?.split(' ').next()?.parse().ok()?;
            Some((id, name, time))
        })
        .collect()
}

const TUNNELS: usize = 4;

/// Longest wait for one step of a client.
const STEP_MAX: Duration = Duration::from_millis(1500);

const ADDRESSES: &str = "0123456789abcdef0123456789abcdef 127.0.0.9\n";
