//! Attackers, good clients beside them, and what those notice.
//!
//! Good clients have open tunnels that exchange small messages, and open new ones all the time. An attack runs for some
//! seconds; figures of the good clients before, during and after it are compared.

mod assault;
mod from_admin;
mod from_clients;
mod from_devices;
mod from_peers;
mod good;
mod table;
mod target;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub use assault::{Assault, Attack};
use good::{GoodClients, Quality};
pub use table::{header, line, write};
pub use target::{Field, Target};

/// All attacks, by who makes them.
pub const ATTACKS: &[Attack] = &[
    Attack::of_both("nobody: connections closed at once", 2, from_clients::close_at_once),
    Attack::of_both("nobody: connections reset at once", 2, from_clients::reset_at_once),
    Attack::of_both("nobody: silent connections of one address", 2, from_clients::stay_silent),
    Attack::of_both("nobody: slow heads from everywhere", 2, from_clients::send_slow_heads),
    Attack::of_both("nobody: heads without an end", 2, from_clients::send_endless_heads),
    Attack::of_both("nobody: slow TLS handshakes", 2, from_clients::shake_hands_slowly),
    Attack::of_both("nobody: TLS handshakes", 2, from_clients::shake_hands),
    Attack::of_both("nobody: TLS renegotiations", 2, from_clients::renegotiate),
    Attack::of_ours("nobody: unknown tokens from everywhere", 2, from_clients::guess_tokens),
    Attack::of_ours("nobody: unknown tokens from one address", 2, from_clients::guess_tokens_from_here),
    Attack::of_ours("client: unknown devices", 2, from_clients::guess_devices),
    Attack::of_both("client: tunnels opened and closed", 2, from_clients::open_and_close),
    Attack::of_both("client: tunnels that are never read", 2, from_clients::never_read),
    Attack::of_ours("client: devices that do not answer", 2, from_clients::dial_silence),
    Attack::of_ours("device: resets each tunnel", 2, from_devices::reset_each),
    Attack::of_ours("device: sends without an end", 2, from_devices::send_endlessly),
    Attack::of_ours("peer: no certificate", 2, from_peers::come_without_certificate),
    Attack::of_ours("peer: connections closed at once", 2, from_peers::close_at_once),
    Attack::of_ours("admin: page, status and metrics", 8, from_admin::scrape),
    Attack::of_ours("admin: silent connections", 2, from_admin::stay_silent),
    Attack::of_ours("admin: wrong tokens", 2, from_admin::guess_tokens),
];

/// What an attack did to the good clients, and to the process.
pub struct Outcome {
    pub before: Quality,
    pub during: Quality,
    pub after: Quality,
    pub attempts: u64,
    pub rss_bytes_before: u64,
    pub rss_bytes_max: u64,
    pub descriptors_max: u64,
    /// Time from the end of the attack until new tunnels are opened as before; `None` for not within [`RECOVERY_MAX`].
    pub recovered_after: Option<Duration>,
}

/// Runs an attack for `time` beside good clients.
pub fn run(attack: &Attack, target: &Target, time: Duration) -> Outcome {
    raise_descriptors();
    let mut good = GoodClients::start(&target.field);
    std::thread::sleep(QUIET_TIME);
    let before = good.take();
    let rss_bytes_before = target.rss_bytes();
    let assault = Arc::new(Assault::lasting(time));
    let (mut rss_bytes_max, mut descriptors_max) = (0, 0);
    std::thread::scope(|threads| {
        let field = &target.field;
        for _ in 0..attack.threads {
            threads.spawn(|| (attack.make)(field, &assault));
        }
        while !assault.is_over() {
            rss_bytes_max = target.rss_bytes().max(rss_bytes_max);
            descriptors_max = target.descriptors().max(descriptors_max);
            std::thread::sleep(LOOK_EVERY);
        }
    });
    let ended_at = Instant::now();
    let during = good.take();
    let limit = before.opening_p99.max(OPENING_USUAL) * 2;
    let recovered_after = loop {
        std::thread::sleep(LOOK_EVERY);
        if good.opened_within(limit) {
            break Some(ended_at.elapsed());
        }
        if ended_at.elapsed() > RECOVERY_MAX {
            break None;
        }
    };
    std::thread::sleep(LOOK_EVERY * 4);
    let after = good.stop();
    let attempts = assault.attempts.load(Ordering::Relaxed);
    Outcome {
        before,
        during,
        after,
        attempts,
        rss_bytes_before,
        rss_bytes_max,
        descriptors_max,
        recovered_after,
    }
}

/// Attackers have thousands of sockets.
fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// Time that shows how good clients fare without an attack.
const QUIET_TIME: Duration = Duration::from_millis(1500);

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What an opening takes on a machine that is busy with the attackers, too.
const OPENING_USUAL: Duration = Duration::from_millis(100);

pub const RECOVERY_MAX: Duration = Duration::from_secs(20);
