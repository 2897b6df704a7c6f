//! The configuration file as values: every key, its default and its unit. [`Config::load`] reads the file and the
//! environment's overrides.

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
    Allowance, Bound, Bounds, Canary, CanaryHolder, CanaryUuid, GuardConfig, OnRegression, Regressions,
};
pub use load::{ConfigError, FilePosition, state_folder};
pub use overrides::environment;
pub use postgres::PostgresUrl;
pub use queries::{Queries, RelationQuery};
pub use tls::{CertificateFiles, ClientCertificates, ClientListenerTls, ListenTls, MinTlsVersion};
pub use token_key::{TokenAlgorithm, TokenKey, TokenKeyError};
pub use tokens::{SubjectClaims, TokenSigner};
pub use validate::{KeyProblem, is_node_name};

/// A whole configuration. [`Config::load`] returns a checked one. `Config::default()` has every key's default, which
/// allows no device at all.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub store: Store,
    pub listen: Vec<Listen>,
    pub engine: EngineConfig,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub vpn: Vpn,
    pub forward: Forward,
    pub authz: Authz,
    pub admin: Admin,
    pub probe: SelfProbeConfig,
    pub audit: Audit,
    pub log: Log,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    pub url: StoreUrl,
    /// The schema of the database.
    pub profile: Profile,
    /// A file with the password of a PostgreSQL store, read for each connection. Without it, the password in the URL
    /// or in the environment's PGPASSWORD is used.
    pub password_file: Option<PathBuf>,
    /// Time that one host of a PostgreSQL store has to accept a connection.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Time that a PostgreSQL store has to begin an answer, or to continue it.
    #[serde(with = "humantime_serde")]
    pub statement_timeout: Duration,
}

/// A database schema that sluicegate has queries for. `authz.queries` replaces them for any other schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Sluicegate's own.
    #[default]
    Reference,
    OpenBalena,
}

/// The store's address: `sqlite:PATH` or `postgres://…`.
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
    /// Suffixes that may follow a uuid in the CONNECT target, without the dot.
    #[serde(default = "default_suffixes")]
    pub suffixes: Vec<String>,
    /// Networks of load balancers, which name their client by a PROXY header (version 1 or 2). Where this is set, a
    /// connection from elsewhere or without a header is refused.
    #[serde(default)]
    pub proxy_from: Vec<IpNet>,
    /// The kind of its clients.
    #[serde(skip)]
    pub from: ListenerKind,
    /// TLS with the clients. Behind a load balancer it begins after the PROXY header.
    #[serde(default)]
    pub tls: Option<ListenTls>,
}

/// The clients of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListenerKind {
    #[default]
    Client,
    /// Other nodes, with requests of their clients: the listener of `forward.listen`.
    Peer,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// Engine threads; 0 means one per CPU that this process may use.
    pub threads: usize,
    pub forwarding: Forwarding,
    pub kernel_tls: KernelTls,
    /// Time that a thread which was busy a moment ago spins before it sleeps; 0 turns it off.
    #[serde(with = "humantime_serde")]
    pub busy_poll: Duration,
    /// Capacity of one splice pipe, in bytes; the kernel rounds up to a power of two of pages.
    pub pipe_bytes: usize,
    /// Pipes that one thread may hold, in use and pooled.
    pub pipes: usize,
    /// Receive buffers of 4 KiB that one thread shares among its sessions; a power of two, at most 32768.
    pub buffers: u16,
}

/// The path of the bytes. Values other than `auto` exist to compare the paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forwarding {
    /// Copy first, splice once a direction streams.
    Auto,
    Copy,
    Splice,
    /// The ring's own splice operation, which the kernel always runs on a worker thread.
    RingSplice,
}

/// The place where the records of a TLS tunnel are opened and sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelTls {
    /// The kernel opens and seals them, where it can.
    Auto,
    /// The relay opens and seals them.
    Off,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Sessions on this node, from accept to close. Each holds up to 288 KiB while its reader stalls.
    pub sessions: u32,
    pub sessions_per_principal: u32,
    pub sessions_per_device: u32,
    /// Unknown tokens per minute from one IPv4 /24 or IPv6 /64, after which its clients get 429; 0 is no bound.
    pub unknown_tokens_per_minute: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Time from accept to the end of the head.
    #[serde(with = "humantime_serde")]
    pub head: Duration,
    /// Time from the decision to the connection with the device.
    #[serde(with = "humantime_serde")]
    pub connect: Duration,
    /// Time without a byte in either direction, after which a tunnel ends.
    #[serde(with = "humantime_serde")]
    pub idle: Duration,
    /// Time without a byte after one direction has ended, after which a tunnel ends.
    #[serde(with = "humantime_serde")]
    pub half_closed: Duration,
    /// Time from SIGTERM to the end of the tunnels that are still open.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
    /// Time that a peer has to answer a forwarded request, its own dial included.
    #[serde(with = "humantime_serde")]
    pub forward: Duration,
    /// Silence after which TCP probes the other end, for clients and devices. The kernel counts whole seconds.
    #[serde(with = "humantime_serde")]
    pub keepalive: Duration,
    /// Time that bytes or probes may stay unacknowledged before the connection ends, for clients and devices.
    #[serde(with = "humantime_serde")]
    pub user_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vpn {
    /// Networks of the device addresses. Nothing is dialled outside them. A file must name them; only a node without a
    /// file starts with loopback.
    pub allow: Vec<IpNet>,
    /// Sources of device addresses, in the order in which they are used.
    pub addresses: Vec<AddressSource>,
    /// A file that names the device of each WireGuard peer: lines of `PUBLIC-KEY uuid`.
    pub wireguard_peers: Option<PathBuf>,
    /// Age of a WireGuard peer's latest handshake at most. A peer with traffic makes one every two minutes.
    #[serde(with = "humantime_serde")]
    pub wireguard_max_age: Duration,
    /// The command that is called with `show INTERFACE dump`.
    pub wireguard_command: PathBuf,
    /// Network interface that connections to devices are bound to (SO_BINDTODEVICE).
    pub interface: Option<String>,
    /// This node's name. A device whose row names another node is not dialled here.
    pub node: Option<String>,
    /// Reports to the store which devices are at `addresses`, by the role of `forward.directory_url`.
    pub report: bool,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Authz {
    /// Time between two polls of the store for changes.
    #[serde(with = "humantime_serde")]
    pub refresh: Duration,
    /// Time between two full reads of the store.
    #[serde(with = "humantime_serde")]
    pub reconcile: Duration,
    /// Age of the last answer of the store at which no request is decided any more.
    #[serde(with = "humantime_serde")]
    pub max_stale: Duration,
    /// Lag behind its primary beyond which a standby is not read while another host is less far behind.
    #[serde(with = "humantime_serde")]
    pub max_replica_lag: Duration,
    /// Time between two reads of a store whose queries were replaced. Each is a full read, since there is no outbox.
    #[serde(with = "humantime_serde")]
    pub reread: Duration,
    /// Signers whose session tokens are accepted, besides opaque tokens.
    pub tokens: Vec<TokenSigner>,
    /// Queries for a schema of the operator's own.
    pub queries: Queries,
    /// The folder with the last good snapshot, for a restart without the store. Loading a configuration sets it to the
    /// state folder where it is absent; `None` keeps nothing.
    pub state: Option<PathBuf>,
    /// The checks that a read of the store must pass before it is published.
    pub guard: GuardConfig,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    pub address: SocketAddr,
    /// The local socket, for commands that change something or show sessions. Only this user's processes may open it.
    /// Loading a configuration sets it to `admin.sock` in the state folder where it is absent; `None` opens none.
    pub socket: Option<PathBuf>,
    /// A group whose members may open the socket too.
    pub socket_group: Option<String>,
    /// A file with the token for changes and for the list of sessions over TCP. Without it, the admin address is
    /// read-only.
    pub token_file: Option<PathBuf>,
}

/// The self probe: the node as a client of its own listener.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelfProbeConfig {
    /// Time between two probes; 0 turns them off.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// The uuid of a device to open a tunnel to. Without it, a probe ends with the decision.
    pub device: Option<CanaryUuid>,
    pub port: u16,
    /// A file with a token that may reach the device, read for each probe.
    pub token_file: Option<PathBuf>,
}

/// The destinations of audit events. Each one that is set gets every event.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// A file that gets one JSON object per line. It is opened again on SIGHUP.
    pub path: Option<PathBuf>,
    /// Writes events to the system's journal, with a field for each member.
    pub journald: bool,
    /// Refusals of one IPv4 address or IPv6 /64 in 10 s that are written one by one; further ones are summed up.
    pub refusals_per_source: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub level: LogLevel,
    pub format: LogFormat,
    /// Writes to the system's journal, with fields, instead of stderr.
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
    /// True where the node speaks TLS with clients or with other nodes.
    pub fn speaks_tls(&self) -> bool {
        self.forward.tls.is_some() || self.listen.iter().any(|listen| listen.tls.is_some())
    }
}

impl Vpn {
    /// True where a device address may be dialled, whatever the store says. An IPv4-mapped IPv6 address counts as the
    /// IPv4 address that the kernel would dial.
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allow.iter().any(|network| network.contains(&address))
    }

    /// True where every device address is from the VPN, and none from the store.
    pub fn knows_addresses(&self) -> bool {
        !self.addresses.contains(&AddressSource::Store)
    }
}

impl Listen {
    /// True where clients are behind a load balancer.
    pub fn is_proxied(&self) -> bool {
        !self.proxy_from.is_empty()
    }

    /// True where a PROXY header precedes the head.
    pub fn has_proxy_header(&self) -> bool {
        self.is_proxied() || self.from == ListenerKind::Peer
    }

    pub fn trusts_proxy(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.proxy_from.iter().any(|network| network.contains(&address))
    }
}

impl Authz {
    /// True where a session token may name its subject by a secret, which must then be among the credentials.
    pub fn takes_login_secrets(&self) -> bool {
        self.tokens.iter().any(|signer| matches!(signer.who, SubjectClaims::Secret { .. }))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            store: Store::default(),
            listen: vec![Listen::default()],
            engine: EngineConfig::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            vpn: Vpn::default(),
            forward: Forward::default(),
            authz: Authz::default(),
            admin: Admin::default(),
            probe: SelfProbeConfig::default(),
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

impl Default for SelfProbeConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(30), device: None, port: DEVICE_PORT, token_file: None }
    }
}

/// Port of the SSH server on a balenaOS device.
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

impl Default for EngineConfig {
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
    /// The networks of the embedded default and of the demo.
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
            guard: GuardConfig::default(),
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
