//! Attacks on the listener for other nodes.

use super::{Assault, Field};

/// Handshakes of TLS by somebody who is no node.
pub fn come_without_certificate(field: &Field, assault: &Assault) {
    let Some(peers) = field.peers else { return };
    assault.repeat(|| field.shake_hands(assault.connect_from_everywhere(peers)?).map(drop));
}

pub fn close_at_once(field: &Field, assault: &Assault) {
    let Some(peers) = field.peers else { return };
    assault.repeat(|| assault.connect_from_everywhere(peers).map(drop));
}
