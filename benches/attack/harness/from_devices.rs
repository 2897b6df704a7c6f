//! Attacks by a device, with the help of a client that opens tunnels to it.

use std::time::Duration;

use super::from_clients::open;
use super::{Assault, Field};
use crate::support::read_head;

/// Each tunnel is reset by the device as soon as it is open.
pub fn reset_each(field: &Field, assault: &Assault) {
    assault.repeat(|| {
        let mut tunnel = open(field, assault, field.resetting_port)?;
        // The reset.
        read_head(&mut tunnel).map(drop)
    });
}

/// Devices send as fast as they can to clients that read slowly.
pub fn send_endlessly(field: &Field, assault: &Assault) {
    let mut tunnels = Vec::new();
    while !assault.is_over() {
        if tunnels.len() < TUNNELS_EACH
            && let Ok(tunnel) = open(field, assault, field.flooding_port)
        {
            assault.attempts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tunnels.push(tunnel);
        }
        for tunnel in &mut tunnels {
            let _nothing_yet = std::io::Read::read(tunnel, &mut [0; 1024]);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

const TUNNELS_EACH: usize = 50;
