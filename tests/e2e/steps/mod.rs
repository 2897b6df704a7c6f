//! What people do, and what must come of it. Each step leaves the environment as it found it.

mod canary;
mod clients;
mod forwarded;
mod incident;
mod refusals;
mod revocation;
mod tls;
mod vpn;

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::Content;
use crate::world::World;

pub struct Step {
    /// The value of STEP that runs this step alone.
    pub name: &'static str,
    pub run: fn(&mut World),
}

macro_rules! steps {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$(Step { name: stringify!($name), run: $module::$name }),*]
    };
}

/// The steps, in the order in which they run.
pub const STEPS: &[Step] = steps![
    clients::the_balena_cli_reaches_ssh_http_and_echo,
    clients::curl_fetches_a_page_by_the_load_balancer,
    clients::ssh_goes_through_a_nodes_plain_port,
    clients::sluicegate_tunnel_carries_a_local_port,
    clients::the_audit_log_has_the_true_client,
    refusals::the_cli_shows_why_it_is_refused,
    refusals::the_load_balancer_uses_both_nodes,
    refusals::bad_input_is_answered,
    revocation::a_revoked_token_ends_a_live_cli_tunnel,
    forwarded::every_client_reaches_a_device_of_the_other_node,
    forwarded::the_cli_shows_what_the_next_node_refuses,
    forwarded::a_revoked_token_ends_a_tunnel_by_both_nodes,
    forwarded::a_node_that_dies_takes_nobody_elses_devices_down,
    canary::the_canary_takes_both_ways_and_tells_which_is_broken,
    forwarded::forwarded_beside_local_is_measured,
    tls::the_cli_and_curl_come_straight_to_a_node,
    vpn::a_device_that_leaves_the_vpn_is_offline,
    vpn::a_device_that_moves_is_found_at_its_new_node,
    incident::the_query_change_of_30_september_is_held,
];

/// Sends 1 MiB to an echo and takes it back at the same time; the tunnel is then as before.
#[track_caller]
fn echoes_a_mebibyte(tunnel: &mut TcpStream) {
    let content = Content::new(1, 1 << 20);
    let mut sink = tunnel.try_clone().unwrap();
    let mut back = vec![0; 1 << 20];
    std::thread::scope(|scope| {
        let sent = scope.spawn(move || content.send(&mut sink).unwrap());
        tunnel.read_exact(&mut back).unwrap();
        sent.join().unwrap();
    });
    assert_eq!(Content::digest_of(&back), content.digest());
}

/// Sends a few bytes to an echo; true if they come back.
fn echoes(tunnel: &mut TcpStream) -> bool {
    tunnel.write_all(b"ping").is_ok() && tunnel.read_exact(&mut [0; 4]).is_ok()
}
