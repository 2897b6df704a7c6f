//! The TOML file as types: every key, its default and its unit. [`Config::load`] reads a file and the
//! environment's overrides into them.

mod addresses;
mod forward;
mod guard;
mod load;
mod overrides;
pub mod postgres;
mod queries;
mod reload;
mod tls;
mod token_key;
mod tokens;
mod validate;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

pub use addresses::AddressSource;
pub use forward::{Forward, ForwardTls};
pub use guard::{
    Allowance, Bound, Bounds, Canary, CanaryHolder, CanaryUuid, Guard, OnRegression, Regressions,
};
pub use load::{ConfigError, FilePosition, state_folder};
pub use overrides::environment;
pub use postgres::PostgresUrl;
pub use queries::{Queries, Query};
pub use tls::{CertificateFiles, ClientCertificates, ClientListenerTls, ListenTls, MinTlsVersion};
pub use token_key::{TokenAlgorithm, TokenKey, TokenKeyError};
pub use tokens::{SubjectClaims, TokenSigner};
pub use validate::{KeyProblem, is_node_name};

/// A whole configuration. [`Config::load`] gives a checked one; `Config::default()` is every key's default,
/// which allows no device at all.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub store: Store,
    pub listen: Vec<Listen>,
    pub engine: Engine,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub vpn: Vpn,
    pub forward: Forward,
    pub authz: Authz,
    pub admin: Admin,
    pub probe: Probe,
    pub audit: Audit,
    pub log: Log,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    pub url: StoreUrl,
    /// Whose schema it has.
    pub profile: Profile,
    /// Holds the password of a PostgreSQL store, read again with every connection. Without it, the URL's
    /// or the environment's PGPASSWORD is used.
    pub password_file: Option<PathBuf>,
    /// For one host of a PostgreSQL store to accept a connection.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// For a PostgreSQL store to begin an answer, or to go on with one.
    #[serde(with = "humantime_serde")]
    pub statement_timeout: Duration,
}

/// A schema that there are queries for. One of the operator's own has `authz.queries`, in the place of either's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Sluicegate's own.
    #[default]
    Reference,
    OpenBalena,
}

/// `sqlite:PATH` or `postgres://…`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum StoreUrl {
    Sqlite(PathBuf),
    Postgres(Box<PostgresUrl>),
}

/// One client listener, served by every engine thread.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    pub address: SocketAddr,
    /// What may follow a uuid in the CONNECT target, without the dot.
    #[serde(default = "default_suffixes")]
    pub suffixes: Vec<String>,
    /// Networks of load balancers, which say who the client is by a PROXY header (version 1 or 2). Where there
    /// are any, a client that comes from elsewhere or without a header is refused.
    #[serde(default)]
    pub proxy_from: Vec<IpNet>,
    /// Who comes to it.
    #[serde(skip)]
    pub from: ListenerKind,
    /// Clients speak TLS; behind a load balancer, after its header.
    #[serde(default)]
    pub tls: Option<ListenTls>,
}

/// Who comes to a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListenerKind {
    #[default]
    Client,
    /// Other nodes, with requests of their clients: the listener of `forward.listen`.
    Peer,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// Engine threads; 0 means one per CPU that this process may use.
    pub threads: usize,
    pub forwarding: Forwarding,
    pub kernel_tls: KernelTls,
    /// How long a thread that was busy a moment ago looks on before it sleeps; 0 turns it off.
    #[serde(with = "humantime_serde")]
    pub busy_poll: Duration,
    /// Capacity of one splice pipe, in bytes; the kernel rounds up to a power of two of pages.
    pub pipe_bytes: usize,
    /// Pipes that one thread may hold, in use and pooled.
    pub pipes: usize,
    /// Receive buffers of 4 KiB that one thread shares among its sessions; a power of two, at most 32768.
    pub buffers: u16,
}

/// How bytes move. Anything but `auto` is there so that the paths can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forwarding {
    /// Copy first, splice once a direction streams.
    Auto,
    Copy,
    Splice,
    /// The ring's own splice operation, which the kernel always hands to a worker thread.
    RingSplice,
}

/// Who opens and seals the records of a tunnel by TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelTls {
    /// The kernel, where it can.
    Auto,
    /// The relay itself.
    Off,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Sessions on this node, from accept to close. Each holds up to 288 KiB while its reader stalls.
    pub sessions: u32,
    pub sessions_per_principal: u32,
    pub sessions_per_device: u32,
    /// Tokens that nobody holds, from one IPv4 /24 or IPv6 /64, before it is told to come back later; 0 is no
    /// bound.
    pub unknown_tokens_per_minute: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// From accept to the end of the head.
    #[serde(with = "humantime_serde")]
    pub head: Duration,
    /// From the decision to a connected device.
    #[serde(with = "humantime_serde")]
    pub connect: Duration,
    /// No byte in either direction.
    #[serde(with = "humantime_serde")]
    pub idle: Duration,
    /// One direction has ended and the other moves nothing.
    #[serde(with = "humantime_serde")]
    pub half_closed: Duration,
    /// From SIGTERM to the end of the tunnels that are still open.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
    /// For another node to answer a request that was handed to it, its own dial included.
    #[serde(with = "humantime_serde")]
    pub forward: Duration,
    /// Silence before TCP probes a peer, on both sides; the kernel wants whole seconds.
    #[serde(with = "humantime_serde")]
    pub keepalive: Duration,
    /// Unacknowledged bytes or probes for this long end a connection, on both sides.
    #[serde(with = "humantime_serde")]
    pub user_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vpn {
    /// Networks that a device address must lie in. Nothing is dialled outside them, and a file has to name
    /// them; only a node without a file starts with loopback.
    pub allow: Vec<IpNet>,
    /// Who is asked, in this order, at which address the VPN has a device.
    pub addresses: Vec<AddressSource>,
    /// Which device a WireGuard peer is: lines of `PUBLIC-KEY uuid`.
    pub wireguard_peers: Option<PathBuf>,
    /// How old a WireGuard peer's latest handshake may be. A peer that is spoken to makes one every two minutes.
    #[serde(with = "humantime_serde")]
    pub wireguard_max_age: Duration,
    /// What is called with `show INTERFACE dump`.
    pub wireguard_command: PathBuf,
    /// Binds the device side to an interface (SO_BINDTODEVICE).
    pub interface: Option<String>,
    /// This node's name. A device whose row names another node is not dialled here.
    pub node: Option<String>,
    /// The store is told which devices are at `addresses`, by the role that keeps the directory of nodes.
    pub report: bool,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Authz {
    /// How often the store is asked for changes.
    #[serde(with = "humantime_serde")]
    pub refresh: Duration,
    /// How often the store is read whole.
    #[serde(with = "humantime_serde")]
    pub reconcile: Duration,
    /// Without word from the store for this long, nothing is decided any more.
    #[serde(with = "humantime_serde")]
    pub max_stale: Duration,
    /// A standby that is further behind its primary is not read where another host is not.
    #[serde(with = "humantime_serde")]
    pub max_replica_lag: Duration,
    /// How often a store whose queries were replaced is read: whole, since it has no outbox.
    #[serde(with = "humantime_serde")]
    pub reread: Duration,
    /// Whose session tokens are taken beside opaque ones.
    pub tokens: Vec<TokenSigner>,
    /// For a schema of the operator's own.
    pub queries: Queries,
    /// The folder in which the last good snapshot is kept for a restart without the store. The state folder
    /// where a configuration was read, and nothing is kept where none was.
    pub state: Option<PathBuf>,
    /// What a read of the store must pass before it decides anything.
    pub guard: Guard,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    pub address: SocketAddr,
    /// For what changes something, and for what is nobody else's business: for this user's processes.
    /// `admin.sock` in the state folder where a configuration was read, and nothing where none was.
    pub socket: Option<PathBuf>,
    /// Whose members may open the socket as well.
    pub socket_group: Option<String>,
    /// A file with the token that lets one change something over TCP, and see sessions. Without it the admin
    /// address only shows.
    pub token_file: Option<PathBuf>,
}

/// The node as a client of its own listener.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Probe {
    /// Between two probes; 0 turns them off.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// The uuid of a device to open a tunnel to. Without one a probe ends with the decision.
    pub device: Option<CanaryUuid>,
    pub port: u16,
    /// A file with the token that may reach the device, read for each probe.
    pub token_file: Option<PathBuf>,
}

/// Events are written to each place that is named, and nowhere where none is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// One JSON object per line, appended; opened anew on SIGHUP.
    pub path: Option<PathBuf>,
    /// To the system's journal, a field for each member.
    pub journald: bool,
    /// Refusals by one IPv4 address or IPv6 /64 that are written one by one within 10 s; more are summed.
    pub refusals_per_source: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub level: LogLevel,
    pub format: LogFormat,
    /// To the system's journal, with fields, in the place of stderr.
    pub journald: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    Text,
    Json,
}

impl Config {
    /// With clients or with other nodes.
    pub fn speaks_tls(&self) -> bool {
        self.forward.tls.is_some() || self.listen.iter().any(|listen| listen.tls.is_some())
    }
}

impl Vpn {
    /// Whether a device address may be dialled, whatever the store says. An IPv4-mapped IPv6 address is
    /// judged as the IPv4 address that the kernel would dial.
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allow.iter().any(|network| network.contains(&address))
    }

    /// Whether every address is from the VPN, and none from the store.
    pub fn knows_addresses(&self) -> bool {
        !self.addresses.contains(&AddressSource::Store)
    }
}

impl Listen {
    /// Whether clients are behind a load balancer.
    pub fn is_proxied(&self) -> bool {
        !self.proxy_from.is_empty()
    }

    /// Whether a PROXY header comes before the head.
    pub fn has_proxy_header(&self) -> bool {
        self.is_proxied() || self.from == ListenerKind::Peer
    }

    pub fn trusts_proxy(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.proxy_from.iter().any(|network| network.contains(&address))
    }
}

impl Authz {
    /// Whether a session token can say who asks by a secret, which then has to be among the credentials.
    pub fn takes_login_secrets(&self) -> bool {
        self.tokens.iter().any(|signer| matches!(signer.who, SubjectClaims::Secret { .. }))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            store: Store::default(),
            listen: vec![Listen::default()],
            engine: Engine::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            vpn: Vpn::default(),
            forward: Forward::default(),
            authz: Authz::default(),
            admin: Admin::default(),
            probe: Probe::default(),
            audit: Audit::default(),
            log: Log::default(),
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 3128)),
            suffixes: default_suffixes(),
            proxy_from: Vec::new(),
            from: ListenerKind::Client,
            tls: None,
        }
    }
}

impl Default for Probe {
    fn default() -> Self {
        Self { interval: Duration::from_secs(30), device: None, port: DEVICE_PORT, token_file: None }
    }
}

/// Of the SSH server on a balenaOS device.
const DEVICE_PORT: u16 = 22_222;

impl Default for Store {
    fn default() -> Self {
        Self {
            url: StoreUrl::Sqlite(state_folder().join("sluicegate.db")),
            profile: Profile::Reference,
            password_file: None,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            threads: 0,
            forwarding: Forwarding::Auto,
            kernel_tls: KernelTls::Auto,
            busy_poll: Duration::from_micros(50),
            pipe_bytes: 256 * 1024,
            pipes: 512,
            buffers: 1024,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 8_000,
            sessions_per_principal: 4_000,
            sessions_per_device: 1_000,
            unknown_tokens_per_minute: 60,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            connect: Duration::from_secs(5),
            idle: Duration::from_secs(3600),
            half_closed: Duration::from_secs(60),
            drain: Duration::from_secs(30),
            forward: Duration::from_secs(7),
            keepalive: Duration::from_secs(60),
            user_timeout: Duration::from_secs(60),
        }
    }
}

impl Vpn {
    /// What the embedded default and the demo allow.
    pub fn loopback() -> Self {
        let v4 = IpNet::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8).expect("8 is a valid prefix");
        let v6 = IpNet::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 128).expect("128 is a valid prefix");
        Self { allow: vec![v4, v6], ..Self::default() }
    }
}

impl Default for Vpn {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            addresses: vec![AddressSource::Store],
            wireguard_peers: None,
            wireguard_max_age: Duration::from_secs(180),
            wireguard_command: "wg".into(),
            interface: None,
            node: None,
            report: false,
        }
    }
}

impl Default for Authz {
    fn default() -> Self {
        Self {
            refresh: Duration::from_millis(100),
            reconcile: Duration::from_secs(3600),
            max_stale: Duration::from_secs(24 * 3600),
            max_replica_lag: Duration::from_secs(10),
            reread: Duration::from_secs(10),
            tokens: Vec::new(),
            queries: Queries::default(),
            state: None,
            guard: Guard::default(),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 9128)),
            socket: None,
            socket_group: None,
            token_file: None,
        }
    }
}

impl Default for Audit {
    fn default() -> Self {
        Self { path: None, journald: false, refusals_per_source: 100 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Text, journald: false }
    }
}

fn default_suffixes() -> Vec<String> {
    ["balena", "vpn", "resin"].map(String::from).to_vec()
}
