//! Checks a configuration beyond the types of its values.

use std::collections::HashSet;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use nix::unistd::Group;

use super::{AddressSource, Config, GuardConfig, Profile, StoreUrl, SubjectClaims};

/// A value that cannot work.
#[derive(Debug)]
pub struct KeyProblem {
    /// The dotted key; elements of lists by their place.
    pub key: String,
    pub problem: String,
}

pub(super) fn check(config: &Config) -> Result<(), KeyProblem> {
    check_store(config)?;
    check_listeners(config)?;
    check_durations(config)?;
    check_counts(config)?;
    check_tokens(config)?;
    check_guard(&config.authz.guard)?;
    check_admin(config)?;
    check_probe(config)?;
    check_vpn(config)?;
    check_forward(config)
}

fn check_forward(config: &Config) -> Result<(), KeyProblem> {
    let forward = &config.forward;
    if forward.directory_password_file.is_some() && forward.directory_url.is_none() {
        return found(
            "forward.directory_password_file",
            "it belongs to the role of `forward.directory_url`; set that too",
        );
    }
    let Some(listen) = forward.listen else {
        return match &forward.tls {
            Some(_) => found("forward.listen", "other nodes need an address of this node; set it"),
            None => Ok(()),
        };
    };
    let advertised = forward.advertise.unwrap_or(listen);
    let Some(name) = &config.vpn.node else {
        return found("forward.listen", "other nodes know this one by its name; set `vpn.node`");
    };
    if forward.tls.is_none() {
        return found("forward.tls", "nodes know each other by certificates; set `chain`, `key` and `ca`");
    }
    if !is_node_name(name) {
        return found(
            "vpn.node",
            "other nodes know this one by its name; use only letters, digits, `-`, `_` and `.`",
        );
    }
    if config.store.profile == Profile::OpenBalena && forward.directory_url.is_none() {
        return found(
            "forward.directory_url",
            "openBalena's database has no directory of nodes; name a store of sluicegate's own for it",
        );
    }
    if advertised.ip().is_unspecified() {
        return found(
            "forward.advertise",
            "other nodes cannot reach this address; set an address of this node",
        );
    }
    if !(1..=HOPS_MAX).contains(&forward.hops_max) {
        return found("forward.hops_max", &format!("must be between 1 and {HOPS_MAX}"));
    }
    if forward.idle_connections > IDLE_CONNECTIONS_MAX {
        return found("forward.idle_connections", &format!("must be at most {IDLE_CONNECTIONS_MAX}"));
    }
    if forward.max_age <= forward.heartbeat + forward.refresh {
        return found(
            "forward.max_age",
            "must be longer than forward.heartbeat and forward.refresh together",
        );
    }
    Ok(())
}

/// True for a name that can stand in a certificate and in a header.
pub fn is_node_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && name.len() <= NODE_NAME_BYTES_MAX && name.bytes().all(is_plain)
}

fn check_store(config: &Config) -> Result<(), KeyProblem> {
    match (config.store.profile, &config.store.url) {
        (Profile::OpenBalena, StoreUrl::Sqlite(_)) => {
            found("store.profile", "openBalena's database is on PostgreSQL; give `store.url` as postgres://…")
        }
        _ => Ok(()),
    }
}

fn check_probe(config: &Config) -> Result<(), KeyProblem> {
    let probe = &config.probe;
    match (&probe.device, &probe.token_file) {
        (Some(_), None) => {
            found("probe.device", "a tunnel to the device needs a token; set its file in `probe.token_file`")
        }
        (None, Some(_)) => found("probe.token_file", "the token has no device to reach; set `probe.device`"),
        (Some(_), Some(_)) if probe.port == 0 => found("probe.port", "0 is not a port"),
        _ if !probe.interval.is_zero() && probe.interval < PROBE_INTERVAL_MIN => {
            found("probe.interval", "must be at least 1s; 0s turns the probe off")
        }
        _ => Ok(()),
    }
}

fn check_listeners(config: &Config) -> Result<(), KeyProblem> {
    if config.listen.is_empty() {
        return found(
            "listen",
            "no listener; add one, such as `[[listen]]` with `address = \"127.0.0.1:3128\"`",
        );
    }
    let mut seen = HashSet::new();
    for (place, listen) in config.listen.iter().enumerate() {
        if listen.address.port() != 0 && !seen.insert(listen.address) {
            let problem = format!("{} is listed twice", listen.address);
            return found(&format!("listen.{place}.address"), &problem);
        }
        for suffix in &listen.suffixes {
            let is_label =
                !suffix.is_empty() && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            if !is_label {
                let problem =
                    format!("`{suffix}` is not a suffix; use letters, digits and `-`, without the dot");
                return found(&format!("listen.{place}.suffixes"), &problem);
            }
        }
    }
    if config.admin.address.port() != 0 && seen.contains(&config.admin.address) {
        return found("admin.address", "is also the address of a client listener; set another port");
    }
    Ok(())
}

fn check_durations(config: &Config) -> Result<(), KeyProblem> {
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
        ("timeouts.drain", timeouts.drain, Duration::ZERO..=LONGEST),
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
            return found(key, &format!("must be between {min} and {max}"));
        }
    }
    if authz.max_stale <= authz.refresh {
        return found("authz.max_stale", "must be longer than authz.refresh, or nothing is ever decided");
    }
    Ok(())
}

fn check_counts(config: &Config) -> Result<(), KeyProblem> {
    let limits = &config.limits;
    let positive = [
        ("limits.sessions", limits.sessions),
        ("limits.sessions_per_principal", limits.sessions_per_principal),
        ("limits.sessions_per_device", limits.sessions_per_device),
    ];
    for (key, count) in positive {
        if count == 0 {
            return found(key, "must be at least 1");
        }
    }
    if limits.unknown_tokens_per_minute > UNKNOWN_TOKENS_MAX {
        let problem = format!("must be at most {UNKNOWN_TOKENS_MAX}; 0 means no bound");
        return found("limits.unknown_tokens_per_minute", &problem);
    }
    let engine = &config.engine;
    if engine.threads > THREADS_MAX {
        return found("engine.threads", &format!("must be at most {THREADS_MAX}; 0 means one per CPU"));
    }
    if !engine.buffers.is_power_of_two() || engine.buffers > 32768 {
        return found("engine.buffers", "must be a power of two of at most 32768");
    }
    if !(PIPE_BYTES_MIN..=PIPE_BYTES_MAX).contains(&engine.pipe_bytes) {
        return found("engine.pipe_bytes", &format!("must be between {PIPE_BYTES_MIN} and {PIPE_BYTES_MAX}"));
    }
    if engine.pipes > PIPES_MAX {
        return found("engine.pipes", &format!("must be at most {PIPES_MAX}; each takes two descriptors"));
    }
    Ok(())
}

fn check_tokens(config: &Config) -> Result<(), KeyProblem> {
    let signers = &config.authz.tokens;
    if signers.len() > SIGNERS_MAX {
        let problem = format!("must be at most {SIGNERS_MAX}, since a forged token is checked against each");
        return found("authz.tokens", &problem);
    }
    for (place, signer) in signers.iter().enumerate() {
        if signer.leeway > LEEWAY_MAX {
            let max = humantime::format_duration(LEEWAY_MAX);
            let problem =
                format!("must be at most {max}, since tokens stay valid that long after their `exp`");
            return found(&format!("authz.tokens.{place}.leeway"), &problem);
        }
        let is_openbalena = config.store.profile == Profile::OpenBalena;
        match signer.who {
            // One secret says too little there: some logins have fewer rights than their user.
            SubjectClaims::Secret { .. } if is_openbalena => {
                let problem = "does not suit the profile openbalena; write `claims = \"openbalena\"` instead of \
                               `secret_claim` and `principal_claim`";
                return found(&format!("authz.tokens.{place}.secret_claim"), problem);
            }
            SubjectClaims::OpenBalena if !is_openbalena => {
                let problem =
                    "needs `store.profile = \"openbalena\"`, whose queries know the users and their roles";
                return found(&format!("authz.tokens.{place}.claims"), problem);
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_guard(guard: &GuardConfig) -> Result<(), KeyProblem> {
    let share = 0.0..=1.0;
    if !share.contains(&guard.max_regressions.share) {
        return found("authz.guard.max_regressions.share", "must be a share from 0 to 1");
    }
    for (key, budget) in guard.budgets.all() {
        if budget.is_some_and(|budget| !share.contains(&budget.share)) {
            return found(&format!("authz.guard.budgets.{key}.share"), "must be a share from 0 to 1");
        }
    }
    let bounds = &guard.bounds;
    for (relation, bound) in
        [("credentials", bounds.credentials), ("grants", bounds.grants), ("devices", bounds.devices)]
    {
        if bound.min.zip(bound.max).is_some_and(|(min, max)| min > max) {
            return found(&format!("authz.guard.bounds.{relation}"), "min is greater than max");
        }
    }
    if guard.probe_port == 0 {
        return found("authz.guard.probe_port", "must be at least 1");
    }
    Ok(())
}

fn check_admin(config: &Config) -> Result<(), KeyProblem> {
    match &config.admin.socket_group {
        Some(group) if !matches!(Group::from_name(group), Ok(Some(_))) => found(
            "admin.socket_group",
            &format!("there is no group `{group}` on this machine; create it with `groupadd`"),
        ),
        _ => Ok(()),
    }
}

fn check_vpn(config: &Config) -> Result<(), KeyProblem> {
    if config.vpn.allow.is_empty() {
        return found(
            "vpn.allow",
            "no network is allowed, so no device could be reached; set the VPN's network, such as \
             `allow = [\"10.8.0.0/16\"]`",
        );
    }
    let addresses = &config.vpn.addresses;
    if addresses.is_empty() {
        return found(
            "vpn.addresses",
            "no source is listed, so no device could be reached; the default is `[\"store\"]`",
        );
    }
    if (1..addresses.len()).any(|place| addresses[..place].contains(&addresses[place])) {
        return found("vpn.addresses", "a source is listed twice");
    }
    for source in addresses {
        if let (AddressSource::WireGuard(interface), None) = (source, &config.vpn.wireguard_peers) {
            return found(
                "vpn.addresses",
                &format!(
                    "wireguard:{interface} needs vpn.wireguard_peers, a file with lines of `PUBLIC-KEY uuid`"
                ),
            );
        }
    }
    check_report(config)?;
    match &config.vpn.interface {
        Some(interface) if if_nametoindex(interface.as_str()).is_err() => {
            found("vpn.interface", &format!("there is no network interface `{interface}` on this machine"))
        }
        _ => Ok(()),
    }
}

fn check_report(config: &Config) -> Result<(), KeyProblem> {
    let key = "vpn.report";
    if !config.vpn.report {
        return Ok(());
    }
    if config.store.profile == Profile::OpenBalena {
        return found(key, "openBalena's own VPN reports where devices are; remove it");
    }
    if config.forward.listen.is_none() {
        return found(
            key,
            "a node that reports its devices must also report itself; set `forward.listen`, `.tls` and `vpn.node`",
        );
    }
    if config.vpn.addresses.contains(&AddressSource::Store) {
        return found(
            "vpn.addresses",
            "with vpn.report, the store has only the addresses that nodes report; remove `store`",
        );
    }
    Ok(())
}

fn found(key: &str, problem: &str) -> Result<(), KeyProblem> {
    Err(KeyProblem { key: key.to_owned(), problem: problem.to_owned() })
}

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

/// A page; no pipe is smaller.
const PIPE_BYTES_MIN: usize = 4096;

const PIPE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Twice as many descriptors are the default limit of a process (`fs.nr_open`).
const PIPES_MAX: usize = 512 * 1024;

const PROBE_INTERVAL_MIN: Duration = Duration::from_secs(1);
