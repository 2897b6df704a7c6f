//! All targets.

mod addresses;
mod config;
mod files;
mod handover;
mod peers;
mod proxy;
mod requests;
mod rows;
mod state;
mod tls;
mod tokens;

use super::{Memory, Target};

/// Every target, by the name of its folder in `corpus/`.
pub const TARGETS: [Target; 18] = [
    requests::CONNECT_HEAD,
    proxy::PROXY_HEADER,
    peers::PEER_REQUEST,
    peers::PEER_REPLY,
    tokens::SESSION_TOKEN,
    tokens::TOKEN_KEY,
    tokens::KEY_SET,
    tls::TLS_RECORDS,
    files::PEM_FILE,
    addresses::ADDRESS_FILE,
    addresses::OPENVPN_STATUS,
    addresses::OPENVPN_MANAGEMENT,
    addresses::WIREGUARD_DUMP,
    state::JOURNAL_FRAMES,
    state::KEPT_STATE,
    config::CONFIG,
    rows::STORE_ROWS,
    handover::HANDOVER_MESSAGES,
];

/// A target without seeds of encoders.
fn no_seeds() -> Vec<Vec<u8>> {
    Vec::new()
}

const KIB: usize = 1024;
