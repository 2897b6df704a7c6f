//! What a configuration must hold beyond its types.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use super::Config;

/// A value that cannot work.
pub(super) struct Finding {
    /// Dotted, elements of lists by their place.
    pub key: String,
    pub problem: String,
}

pub(super) fn check(config: &Config) -> Result<(), Finding> {
    check_listeners(config)?;
    check_durations(config)?;
    check_counts(config)?;
    check_vpn(config)
}

fn check_listeners(config: &Config) -> Result<(), Finding> {
    if config.listen.is_empty() {
        return found(
            "listen",
            "no listener; add one, such as `[[listen]]` with `address = \"127.0.0.1:3128\"`",
        );
    }
    let mut seen = HashSet::new();
    for (place, listen) in config.listen.iter().enumerate() {
        if listen.address.port() != 0 && !seen.insert(listen.address) {
            let problem = format!("{} is there twice", listen.address);
            return found(&format!("listen.{place}.address"), &problem);
        }
        for suffix in &listen.suffixes {
            let is_label =
                !suffix.is_empty() && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            if !is_label {
                let problem =
                    format!("`{suffix}` is no suffix; use letters, digits and `-`, without the dot");
                return found(&format!("listen.{place}.suffixes"), &problem);
            }
        }
    }
    Ok(())
}

fn check_durations(config: &Config) -> Result<(), Finding> {
    let (timeouts, authz) = (&config.timeouts, &config.authz);
    let positive = [
        ("timeouts.head", timeouts.head),
        ("timeouts.connect", timeouts.connect),
        ("timeouts.idle", timeouts.idle),
        ("timeouts.half_closed", timeouts.half_closed),
        ("timeouts.keepalive", timeouts.keepalive),
        ("timeouts.user_timeout", timeouts.user_timeout),
        ("authz.refresh", authz.refresh),
        ("authz.reconcile", authz.reconcile),
        ("authz.max_stale", authz.max_stale),
    ];
    for (key, duration) in positive {
        if duration.is_zero() {
            return found(key, "must be longer than nothing, such as \"10s\"");
        }
    }
    if authz.max_stale <= authz.refresh {
        return found("authz.max_stale", "must be longer than authz.refresh, or nothing is ever decided");
    }
    if config.engine.busy_poll > BUSY_POLL_MAX {
        return found("engine.busy_poll", "must be at most 10ms; longer takes a CPU for itself");
    }
    Ok(())
}

fn check_counts(config: &Config) -> Result<(), Finding> {
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
    let engine = &config.engine;
    if engine.threads > THREADS_MAX {
        return found("engine.threads", &format!("must be at most {THREADS_MAX}; 0 means one per CPU"));
    }
    if !engine.buffers.is_power_of_two() || engine.buffers > 32768 {
        return found("engine.buffers", "must be a power of two of at most 32768");
    }
    if !(4096..=PIPE_BYTES_MAX).contains(&engine.pipe_bytes) {
        return found("engine.pipe_bytes", "must be between 4096 and 16777216");
    }
    Ok(())
}

fn check_vpn(config: &Config) -> Result<(), Finding> {
    if config.vpn.allow.is_empty() {
        return found(
            "vpn.allow",
            "no network is allowed, so no device could be reached; name the VPN's, such as \
             `allow = [\"10.8.0.0/16\"]`",
        );
    }
    match &config.vpn.interface {
        Some(interface) if !Path::new("/sys/class/net").join(interface).exists() => {
            found("vpn.interface", &format!("there is no network interface `{interface}` on this machine"))
        }
        _ => Ok(()),
    }
}

fn found(key: &str, problem: &str) -> Result<(), Finding> {
    Err(Finding { key: key.to_owned(), problem: problem.to_owned() })
}

const BUSY_POLL_MAX: Duration = Duration::from_millis(10);

const THREADS_MAX: usize = 1024;

const PIPE_BYTES_MAX: usize = 16 * 1024 * 1024;
