//! What integration tests share: the real binary as a child, devices and clients on real sockets, and
//! content whose every byte counts.
//!
//! Helpers bring things about and report what happened; what must be true is asserted in the tests.
#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each test program and bench uses a part of this"
)]

mod audit;
mod both_stores;
mod browser;
mod client;
mod content;
mod device;
mod ethernet;
mod faults;
pub mod forwarder;
mod http;
mod installation;
mod jwt;
mod key_server;
mod made_once;
mod mounts;
mod netns;
mod openbalena;
mod openvpn;
mod pki;
mod postgres;
mod process;
mod proxy;
mod rights;
mod site;
mod skip;
pub mod sshd;
mod store_file;
mod store_view;

use std::time::{Duration, Instant};

pub use audit::Audit;
pub use both_stores::StoreUnderTest;
pub(crate) use both_stores::on_both_stores;
pub use browser::Browser;
pub use client::{Answer, Request, connect, read_head};
pub use content::{Content, Digest, End, receive, receive_slowly};
pub use device::{ALL_V4, Device, Silent, V4, V6, reset};
pub use ethernet::Switch;
pub use faults::Faults;
pub use http::{HttpAnswer, exchange};
pub use installation::{Installation, Judged};
pub use jwt::{Signer, in_seconds, unsigned};
pub use key_server::{KeyAnswer, KeyServer};
pub use made_once::MadeOnce;
pub use mounts::{as_seen_by, with_mounts};
pub use netns::Namespace;
pub use openbalena::{OpenBalena, replace};
pub use openvpn::{Vpn, VpnClient, vpn_or_skip};
pub use pki::{
    Authority, Pair, TlsClient, TlsStream, ask_by_tls, exchange_all, kernel_has_tls, node_section,
    node_section_at, shake_hands,
};
pub use postgres::{Cluster, Database, Pooler};
pub use process::{BINARY, Relay, Running, Signal, assert_done, output_of};
pub use proxy::{Fault, Proxy};
pub use rights::{Rights, UUID, init_store, open_admin, postgres_source, store_at};
pub use site::{DEVICE, DEVICE_V6, OTHER_DEVICE, Site};
pub use skip::{ipv6_or_skip, root_or_skip, skip, tools_or_skip};
pub use sshd::Sshd;
pub use store_file::StoreFile;
pub use store_view::{Changes, Rows, StoreView};

/// Longest wait for anything without a deadline of its own. A busy two-core machine needs far less, so a wait that
/// reaches it means "never".
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An address that nobody listens on, for a program that is to listen there. Its port is below those that the kernel
/// gives to outgoing connections, so that no other test's connection takes it in between.
pub fn free_address() -> std::net::SocketAddr {
    use std::sync::atomic::{AtomicU32, Ordering};
    static TRIED: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(61).wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + (number % 22_000) as u16;
        if let Ok(listener) = std::net::TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().unwrap();
        }
    }
}

/// Asks again and again until there is an answer; `None` when patience has run out.
pub fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let give_up_at = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() > give_up_at {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
