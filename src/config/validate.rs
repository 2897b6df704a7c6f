//! Checks a configuration beyond the types of its values.

use std::collections::HashSet;
use std::time::Duration;

use nix::unistd::Group;

use super::{AddressSource, Config, GuardConfig, Profile, SignerKeys, StoreUrl, SubjectClaims};

/// A value that cannot work.
#[derive(Debug)]
pub struct KeyProblem {
    /// The dotted key; elements of lists by their place.
    pub key: String,
    pub problem: String,
}

/// Returns every problem of the values, in no particular order.
pub(super) fn check(config: &Config) -> Vec<KeyProblem> {
    let mut problems = Problems::default();
    check_store(config, &mut problems);
    check_listeners(config, &mut problems);
    check_durations(config, &mut problems);
    check_counts(config, &mut problems);
    check_tokens(config, &mut problems);
    check_guard(&config.authz.guard, &mut problems);
    check_probe(config, &mut problems);
    check_usage(config, &mut problems);
    check_vpn(config, &mut problems);
    check_forward(config, &mut problems);
    problems.0
}

/// Returns every problem of the values on this machine.
pub(super) fn check_machine(config: &Config) -> Vec<KeyProblem> {
    let mut problems = Problems::default();
    check_admin(config, &mut problems);
    problems.0
}

/// The problems that were found.
#[derive(Default)]
struct Problems(Vec<KeyProblem>);

impl Problems {
    fn add(&mut self, key: &str, problem: &str) {
        self.0.push(KeyProblem { key: key.to_owned(), problem: problem.to_owned() });
    }
}

fn check_forward(config: &Config, problems: &mut Problems) {
    let forward = &config.forward;
    if forward.directory_password_file.is_some() && forward.directory_url.is_none() {
        problems.add(
            "forward.directory_password_file",
            "it belongs to the role of `forward.directory_url`; set that too",
        );
    }
    if !(1..=HOPS_MAX).contains(&forward.hops_max) {
        problems.add("forward.hops_max", &format!("must be between 1 and {HOPS_MAX}"));
    }
    if forward.idle_connections > IDLE_CONNECTIONS_MAX {
        problems.add("forward.idle_connections", &format!("must be at most {IDLE_CONNECTIONS_MAX}"));
    }
    if forward.max_age <= forward.heartbeat.saturating_add(forward.refresh) {
        problems.add("forward.max_age", "must be longer than forward.heartbeat and forward.refresh together");
    }
    let Some(listen) = forward.listen else {
        if forward.tls.is_some() {
            problems.add("forward.listen", "other nodes need an address of this node; set it");
        }
        return;
    };
    let advertised = forward.advertise.unwrap_or(listen);
    match &config.vpn.node {
        None => problems.add("forward.listen", "other nodes know this one by its name; set `vpn.node`"),
        Some(name) if !is_node_name(name) => problems.add(
            "vpn.node",
            "other nodes know this one by its name; use only letters, digits, `-`, `_` and `.`",
        ),
        Some(_) => {}
    }
    if forward.tls.is_none() {
        problems.add("forward.tls", "nodes know each other by certificates; set `chain`, `key` and `ca`");
    }
    if config.store.profile == Profile::OpenBalena && forward.directory_url.is_none() {
        problems.add(
            "forward.directory_url",
            "openBalena's database has no directory of nodes; name a store of sluicegate's own for it",
        );
    }
    if advertised.ip().is_unspecified() {
        problems
            .add("forward.advertise", "other nodes cannot reach this address; set an address of this node");
    }
}

/// True for a name that can stand in a certificate and in a header.
pub fn is_node_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && name.len() <= NODE_NAME_BYTES_MAX && name.bytes().all(is_plain)
}

fn check_store(config: &Config, problems: &mut Problems) {
    if let (Profile::OpenBalena, StoreUrl::Sqlite(_)) = (config.store.profile, &config.store.url) {
        problems
            .add("store.profile", "openBalena's database is on PostgreSQL; give `store.url` as postgres://…");
    }
}

fn check_probe(config: &Config, problems: &mut Problems) {
    let probe = &config.probe;
    match (&probe.device, &probe.token_file) {
        (Some(_), None) => problems
            .add("probe.device", "a tunnel to the device needs a token; set its file in `probe.token_file`"),
        (None, Some(_)) => {
            problems.add("probe.token_file", "the token has no device to reach; set `probe.device`")
        }
        (Some(_), Some(_)) if probe.port == 0 => problems.add("probe.port", "0 is not a port"),
        _ if !probe.interval.is_zero() && probe.interval < PROBE_INTERVAL_MIN => {
            problems.add("probe.interval", "must be at least 1s; 0s turns the probe off")
        }
        _ => {}
    }
}

fn check_usage(config: &Config, problems: &mut Problems) {
    let interval = config.usage.interval;
    if !interval.is_zero() && !(USAGE_INTERVAL_MIN..=USAGE_INTERVAL_MAX).contains(&interval) {
        problems.add("usage.interval", "must be between 1s and 1day; 0s counts nothing");
    }
}

fn check_listeners(config: &Config, problems: &mut Problems) {
    if config.listen.is_empty() {
        problems
            .add("listen", "no listener; add one, such as `[[listen]]` with `address = \"127.0.0.1:3128\"`");
    }
    let mut seen = HashSet::new();
    for (place, listen) in config.listen.iter().enumerate() {
        if listen.address.port() != 0 && !seen.insert(listen.address) {
            let problem = format!("{} is listed twice", listen.address);
            problems.add(&format!("listen.{place}.address"), &problem);
        }
        for suffix in &listen.suffixes {
            let is_label =
                !suffix.is_empty() && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            if !is_label {
                let problem =
                    format!("`{suffix}` is not a suffix; use letters, digits and `-`, without the dot");
                problems.add(&format!("listen.{place}.suffixes"), &problem);
            }
        }
    }
    let admin = [
        ("admin.address", Some(config.admin.address)),
        ("admin.health_address", config.admin.health_address),
        ("forward.listen", config.forward.listen),
    ];
    for (key, address) in admin {
        let Some(address) = address.filter(|address| address.port() != 0) else { continue };
        if !seen.insert(address) {
            problems
                .add(key, &format!("{address} is also the address of another listener; set another port"));
        }
    }
}

fn check_durations(config: &Config, problems: &mut Problems) {
    let (timeouts, authz) = (&config.timeouts, &config.authz);
    let bounded = [
        ("timeouts.head", timeouts.head, TICK..=LONGEST),
        ("timeouts.connect", timeouts.connect, TICK..=LONGEST),
        ("timeouts.idle", timeouts.idle, TICK..=LONGEST),
        ("timeouts.half_closed", timeouts.half_closed, TICK..=LONGEST),
        ("timeouts.forward", timeouts.forward, TICK..=LONGEST),
        ("forward.heartbeat", config.forward.heartbeat, TICK..=LONGEST),
        ("forward.refresh", config.forward.refresh, TICK..=LONGEST),
        ("forward.max_age", config.forward.max_age, TICK..=LONGEST),
        ("timeouts.lame_duck", timeouts.lame_duck, Duration::ZERO..=LONGEST),
        ("timeouts.drain", timeouts.drain, Duration::ZERO..=LONGEST),
        ("timeouts.linger", timeouts.linger, Duration::ZERO..=LONGEST),
        ("timeouts.keepalive", timeouts.keepalive, KEEPALIVE_MIN..=KEEPALIVE_MAX),
        ("timeouts.user_timeout", timeouts.user_timeout, TICK..=USER_TIMEOUT_MAX),
        ("store.connect_timeout", config.store.connect_timeout, TICK..=LONGEST),
        ("store.statement_timeout", config.store.statement_timeout, TICK..=STATEMENT_TIMEOUT_MAX),
        ("authz.refresh", authz.refresh, TICK..=LONGEST),
        ("authz.reconcile", authz.reconcile, TICK..=LONGEST),
        ("authz.max_stale", authz.max_stale, TICK..=LONGEST),
        ("authz.max_replica_lag", authz.max_replica_lag, TICK..=LONGEST),
        ("authz.reread", authz.reread, TICK..=LONGEST),
        ("authz.guard.window", authz.guard.window, TICK..=WINDOW_MAX),
        ("authz.guard.probe_time", authz.guard.probe_time, TICK..=PROBE_TIME_MAX),
        ("authz.guard.probation", authz.guard.probation, Duration::ZERO..=LONGEST),
        ("engine.busy_poll", config.engine.busy_poll, Duration::ZERO..=BUSY_POLL_MAX),
    ];
    for (key, duration, range) in bounded {
        if !range.contains(&duration) {
            let [min, max] = [range.start(), range.end()].map(|end| humantime::format_duration(*end));
            problems.add(key, &format!("must be between {min} and {max}"));
        }
    }
    if authz.max_stale <= authz.refresh {
        problems.add("authz.max_stale", "must be longer than authz.refresh, or nothing is ever decided");
    }
}

fn check_counts(config: &Config, problems: &mut Problems) {
    let limits = &config.limits;
    let positive = [
        ("limits.sessions", limits.sessions),
        ("limits.sessions_per_principal", limits.sessions_per_principal),
        ("limits.sessions_per_device", limits.sessions_per_device),
    ];
    for (key, count) in positive {
        if count == 0 {
            problems.add(key, "must be at least 1");
        }
    }
    if limits.unknown_tokens_per_minute > UNKNOWN_TOKENS_MAX {
        let problem = format!("must be at most {UNKNOWN_TOKENS_MAX}; 0 means no bound");
        problems.add("limits.unknown_tokens_per_minute", &problem);
    }
    let engine = &config.engine;
    if engine.threads > THREADS_MAX {
        problems.add("engine.threads", &format!("must be at most {THREADS_MAX}; 0 means one per CPU"));
    }
    if !engine.buffers.is_power_of_two() || engine.buffers > 32768 {
        problems.add("engine.buffers", "must be a power of two of at most 32768");
    }
    if !(PIPE_BYTES_MIN..=PIPE_BYTES_MAX).contains(&engine.pipe_bytes) {
        problems.add("engine.pipe_bytes", &format!("must be between {PIPE_BYTES_MIN} and {PIPE_BYTES_MAX}"));
    }
    if engine.pipes > PIPES_MAX {
        problems.add("engine.pipes", &format!("must be at most {PIPES_MAX}; each takes two descriptors"));
    }
}

fn check_tokens(config: &Config, problems: &mut Problems) {
    let signers = &config.authz.tokens;
    if signers.len() > SIGNERS_MAX {
        let problem = format!("must be at most {SIGNERS_MAX}, since a forged token is checked against each");
        problems.add("authz.tokens", &problem);
    }
    for (place, signer) in signers.iter().enumerate() {
        if signer.leeway > LEEWAY_MAX {
            let max = humantime::format_duration(LEEWAY_MAX);
            let problem =
                format!("must be at most {max}, since tokens stay valid that long after their `exp`");
            problems.add(&format!("authz.tokens.{place}.leeway"), &problem);
        }
        if let SignerKeys::Set(source) = &signer.keys
            && !(KEYS_REFRESH_MIN..=KEYS_REFRESH_MAX).contains(&source.refresh)
        {
            let [min, max] = [KEYS_REFRESH_MIN, KEYS_REFRESH_MAX].map(humantime::format_duration);
            let problem = format!("must be between {min} and {max}");
            problems.add(&format!("authz.tokens.{place}.keys_refresh"), &problem);
        }
        let is_openbalena = config.store.profile == Profile::OpenBalena;
        match signer.who {
            // One secret says too little there: some logins have fewer rights than their user.
            SubjectClaims::Secret { .. } if is_openbalena => {
                let problem = "does not suit the profile openbalena; write `claims = \"openbalena\"` instead of \
                               `secret_claim` and `principal_claim`";
                problems.add(&format!("authz.tokens.{place}.secret_claim"), problem);
            }
            SubjectClaims::OpenBalena if !is_openbalena => {
                let problem =
                    "needs `store.profile = \"openbalena\"`, whose queries know the users and their roles";
                problems.add(&format!("authz.tokens.{place}.claims"), problem);
            }
            _ => {}
        }
    }
}

fn check_guard(guard: &GuardConfig, problems: &mut Problems) {
    let share = 0.0..=1.0;
    if !share.contains(&guard.max_regressions.share) {
        problems.add("authz.guard.max_regressions.share", "must be a share from 0 to 1");
    }
    for (key, budget) in guard.budgets.all() {
        if budget.is_some_and(|budget| !share.contains(&budget.share)) {
            problems.add(&format!("authz.guard.budgets.{key}.share"), "must be a share from 0 to 1");
        }
    }
    let bounds = &guard.bounds;
    for (relation, bound) in
        [("credentials", bounds.credentials), ("grants", bounds.grants), ("devices", bounds.devices)]
    {
        if bound.min.zip(bound.max).is_some_and(|(min, max)| min > max) {
            problems.add(&format!("authz.guard.bounds.{relation}"), "min is greater than max");
        }
    }
    if guard.probe_port == 0 {
        problems.add("authz.guard.probe_port", "must be at least 1");
    }
}

fn check_admin(config: &Config, problems: &mut Problems) {
    if let Some(group) = &config.admin.socket_group
        && !matches!(Group::from_name(group), Ok(Some(_)))
    {
        problems.add(
            "admin.socket_group",
            &format!("there is no group `{group}` on this machine; create it with `groupadd`"),
        );
    }
}

fn check_vpn(config: &Config, problems: &mut Problems) {
    if config.vpn.allow.is_empty() {
        problems.add(
            "vpn.allow",
            "no network is allowed, so no device could be reached; set the VPN's network, such as \
             `allow = [\"10.8.0.0/16\"]`",
        );
    }
    let addresses = &config.vpn.addresses;
    if addresses.is_empty() {
        problems.add(
            "vpn.addresses",
            "no source is listed, so no device could be reached; the default is `[\"store\"]`",
        );
    }
    if (1..addresses.len()).any(|place| addresses[..place].contains(&addresses[place])) {
        problems.add("vpn.addresses", "a source is listed twice");
    }
    for source in addresses {
        if let (AddressSource::WireGuard(interface), None) = (source, &config.vpn.wireguard_peers) {
            problems.add(
                "vpn.addresses",
                &format!(
                    "wireguard:{interface} needs vpn.wireguard_peers, a file with lines of `PUBLIC-KEY uuid`"
                ),
            );
        }
    }
    check_report(config, problems);
    if let Some(interface) = &config.vpn.interface
        && !is_interface_name(interface)
    {
        problems.add("vpn.interface", &format!("no network interface can have the name `{interface}`"));
    }
}

/// True for a name that Linux gives to network interfaces. Whether there is one is found out while the relay runs.
fn is_interface_name(name: &str) -> bool {
    let is_plain = |letter: char| !letter.is_whitespace() && !"/:".contains(letter);
    (1..=INTERFACE_BYTES_MAX).contains(&name.len())
        && ![".", ".."].contains(&name)
        && name.chars().all(is_plain)
}

fn check_report(config: &Config, problems: &mut Problems) {
    let key = "vpn.report";
    if !config.vpn.report {
        return;
    }
    if config.store.profile == Profile::OpenBalena {
        problems.add(key, "openBalena's own VPN reports where devices are; remove it");
    }
    if config.forward.listen.is_none() {
        problems.add(
            key,
            "a node that reports its devices must also report itself; set `forward.listen`, `.tls` and `vpn.node`",
        );
    }
    if config.vpn.addresses.contains(&AddressSource::Store) {
        problems.add(
            "vpn.addresses",
            "with vpn.report, the store has only the addresses that nodes report; remove `store`",
        );
    }
}

/// Bytes of an interface's name at most: the kernel's IFNAMSIZ without the final zero.
const INTERFACE_BYTES_MAX: usize = 15;

/// The unit in which engine threads and the control thread count time.
const TICK: Duration = Duration::from_millis(1);

/// Ten years: longer than any process lives, short enough to be added to any clock.
const LONGEST: Duration = Duration::from_secs(10 * 31_557_600);

/// The server counts milliseconds in an int; whole days read better than its exact limit.
const STATEMENT_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 24 * 3600);

/// The kernel counts silence in whole seconds.
const KEEPALIVE_MIN: Duration = Duration::from_secs(1);

/// `MAX_TCP_KEEPIDLE` of Linux.
const KEEPALIVE_MAX: Duration = Duration::from_secs(32_767);

/// Longer than anybody waits for a peer that is gone. Milliseconds of it fit into an int of the kernel.
const USER_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 24 * 3600);

/// A longer busy poll would keep a CPU busy all the time.
const BUSY_POLL_MAX: Duration = Duration::from_millis(10);

/// Changes of a whole day are kept in memory, and a wrong answer is no accident any more by then.
const WINDOW_MAX: Duration = Duration::from_secs(24 * 3600);

/// A candidate waits for its probes, and so does every new right in it.
const PROBE_TIME_MAX: Duration = Duration::from_secs(30);

/// Nodes that a request may pass; more would be a loop in practice.
const HOPS_MAX: usize = 8;

/// Connections of one engine thread to each peer.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// Bytes of a name in a certificate at most (RFC 1035, section 2.3.4).
const NODE_NAME_BYTES_MAX: usize = 253;

const THREADS_MAX: usize = 1024;

/// More than a busy node can refuse in a minute.
const UNKNOWN_TOKENS_MAX: u32 = 100_000;

/// Enough for two keys of each of several issuers.
const SIGNERS_MAX: usize = 16;

/// Clocks that differ by more need correction.
const LEEWAY_MAX: Duration = Duration::from_secs(5 * 60);

/// Times between two reads of a set of keys: not so often that a login service notices, and not so rarely that a key
/// which it removed counts for days.
const KEYS_REFRESH_MIN: Duration = Duration::from_secs(1);
const KEYS_REFRESH_MAX: Duration = Duration::from_secs(24 * 3600);

/// A page; no pipe is smaller.
const PIPE_BYTES_MIN: usize = 4096;

const PIPE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Twice as many descriptors are the default limit of a process (`fs.nr_open`).
const PIPES_MAX: usize = 512 * 1024;

/// Length of an interval of use. Shorter ones would write more than they tell; a longer one would lose too much with the
/// process.
const USAGE_INTERVAL_MIN: Duration = Duration::from_secs(1);
const USAGE_INTERVAL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

const PROBE_INTERVAL_MIN: Duration = Duration::from_secs(1);
