//! What is attacked: a relay, or HAProxy with the same listeners.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::support::{
    ALL_V4, Authority, Device, OTHER_DEVICE, Relay, Running, Silent, Site, TlsClient, TlsStream,
    free_address, node_section, read_head, reset, wait_for,
};

/// A process with its devices.
pub struct Target {
    kind: Kind,
    pub field: Field,
    _devices: Vec<Device>,
    _silent: Silent,
    _folder: tempfile::TempDir,
}

enum Kind {
    Sluicegate { relay: Box<Relay>, _site: Box<Site> },
    HaProxy(Running),
}

/// Where attackers and good clients go.
#[derive(Clone)]
pub struct Field {
    pub plain: SocketAddr,
    pub tls: SocketAddr,
    pub peers: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub token: String,
    /// Of a client that reaches one device alone.
    pub attacker_token: String,
    pub attacked_device: &'static str,
    pub echo_port: u16,
    pub resetting_port: u16,
    pub flooding_port: u16,
    pub silent_port: u16,
    tls_client: Arc<ClientConfig>,
}

impl Field {
    /// A whole TLS handshake.
    pub fn shake_hands(&self, socket: TcpStream) -> io::Result<TlsStream> {
        let name = NAME.try_into().expect("a name");
        let connection =
            ClientConnection::new(Arc::clone(&self.tls_client), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }
}

impl Target {
    /// A relay with its default limits.
    pub fn sluicegate() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "root");
        let (chain, key) = authority.issue(NAME, &[NAME]).write(folder.path(), "relay");
        let site = Site::new(&format!(
            "log.level = 'error'\nlisten = [{{ address = '127.0.0.1:0' }}, {{ address = '127.0.0.1:0', tls = {{ certificates = \
             [{{ chain = '{}', key = '{}' }}] }} }}]\n{}",
            chain.display(),
            key.display(),
            node_section("here", &authority)
        ));
        site.cli(&["principal", "add", "mallory"]);
        let attacker_token = site.cli(&["token", "issue", "mallory"])["token"].as_str().unwrap().to_owned();
        site.cli(&["device", "add", OTHER_DEVICE, "--address", "127.0.0.2"]);
        site.cli(&["grant", "add", "mallory", "--device", OTHER_DEVICE]);
        let (devices, silent) = (Devices::start(), Device::silent_at([127, 0, 0, 2].into()));
        let relay = site.start();
        let peers = relay.peers().unwrap();
        let field = Field {
            plain: relay.addresses()[0],
            tls: relay.addresses()[1],
            peers: Some(peers),
            admin: Some(relay.admin()),
            token: site.token.clone(),
            attacker_token,
            attacked_device: OTHER_DEVICE,
            echo_port: devices.echo.port(),
            resetting_port: devices.resetting.port(),
            flooding_port: devices.flooding.port(),
            silent_port: silent.port,
            tls_client: TlsClient::trusting(&authority).without_resumption().config(),
        };
        let kind = Kind::Sluicegate { relay: Box::new(relay), _site: Box::new(site) };
        Self { kind, field, _devices: devices.all(), _silent: silent, _folder: folder }
    }

    /// HAProxy, which passes CONNECT on to a device that answers it. `None` where it is not installed.
    pub fn haproxy() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "root");
        let pair = authority.issue(NAME, &[NAME]);
        let (chain, key) = pair.write(folder.path(), "proxy");
        let both = [chain, key].map(|file| std::fs::read_to_string(file).unwrap()).concat();
        std::fs::write(folder.path().join("both.pem"), both).unwrap();
        let (plain, tls) = (free_address(), free_address());
        let (devices, silent) = (Devices::answering(), Device::silent());
        let config = folder.path().join("haproxy.cfg");
        // The limits and times are ours.
        let text = format!(
            "global\n maxconn 8000\n nbthread 2\ndefaults\n mode http\n timeout connect 5s\n timeout client 1h\n \
             timeout server 1h\n timeout tunnel 1h\n timeout http-request 10s\nfrontend plain\n bind {plain}\n \
             default_backend echo\nfrontend tls\n bind {tls} ssl crt {}\n default_backend echo\nbackend echo\n \
             server one 127.0.0.1:{}\n",
            folder.path().join("both.pem").display(),
            devices.echo.port(),
        );
        std::fs::write(&config, text).unwrap();
        Command::new("haproxy").arg("-v").output().ok()?;
        let running = Running::start(Command::new("haproxy").arg("-db").arg("-q").arg("-f").arg(&config));
        wait_for(|| TcpStream::connect(plain).ok())?;
        let field = Field {
            plain,
            tls,
            peers: None,
            admin: None,
            token: "sg_unused".to_owned(),
            attacker_token: "sg_unused".to_owned(),
            attacked_device: OTHER_DEVICE,
            echo_port: devices.echo.port(),
            resetting_port: devices.resetting.port(),
            flooding_port: devices.flooding.port(),
            silent_port: silent.port,
            tls_client: TlsClient::trusting(&authority).without_resumption().config(),
        };
        let kind = Kind::HaProxy(running);
        Some(Self { kind, field, _devices: devices.all(), _silent: silent, _folder: folder })
    }

    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Sluicegate { .. } => "sluicegate",
            Kind::HaProxy(_) => "HAProxy",
        }
    }

    pub fn is_ours(&self) -> bool {
        matches!(self.kind, Kind::Sluicegate { .. })
    }

    fn pid(&self) -> u32 {
        match &self.kind {
            Kind::Sluicegate { relay, .. } => relay.pid(),
            Kind::HaProxy(running) => running.0.id(),
        }
    }

    /// Resident memory now.
    pub fn rss_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Open descriptors now.
    pub fn descriptors(&self) -> u64 {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count() as u64
    }
}

/// Devices on all addresses of this machine.
struct Devices {
    echo: Device,
    resetting: Device,
    flooding: Device,
}

impl Devices {
    fn start() -> Self {
        Self::after(|_| Ok(()))
    }

    /// Devices that answer the CONNECT which HAProxy passes on.
    fn answering() -> Self {
        Self::after(|socket| {
            read_head(socket)?;
            socket.write_all(b"HTTP/1.1 200 Connection Established\r\n\r\n")
        })
    }

    fn after(greet: fn(&mut TcpStream) -> io::Result<()>) -> Self {
        let echo = Device::serving(ALL_V4, move |mut socket| {
            if greet(&mut socket).is_ok() {
                let mut source = socket.try_clone().unwrap();
                let _whatever_ended_it = io::copy(&mut source, &mut socket);
            }
        });
        let resetting = Device::serving(ALL_V4, move |mut socket| {
            let _gone = greet(&mut socket);
            reset(socket);
        });
        let flooding = Device::serving(ALL_V4, move |mut socket| {
            socket.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
            if greet(&mut socket).is_ok() {
                while socket.write_all(&[7; 64 * 1024]).is_ok() {}
            }
        });
        Self { echo, resetting, flooding }
    }

    fn all(self) -> Vec<Device> {
        vec![self.echo, self.resetting, self.flooding]
    }
}

const NAME: &str = "relay.example";
