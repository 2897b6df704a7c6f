//! What people do, and what must come of it. Each step leaves the environment as it found it.

mod clients;
mod incident;
mod refusals;
mod revocation;
mod vpn;

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::Content;
use crate::world::World;

/// The steps in their order, each by the name that runs it alone.
pub const STEPS: &[(&str, fn(&mut World))] = &[
    ("the_balena_cli_reaches_ssh_http_and_echo", clients::the_balena_cli_reaches_ssh_http_and_echo),
    ("curl_fetches_a_page_by_the_load_balancer", clients::curl_fetches_a_page_by_the_load_balancer),
    ("ssh_goes_through_a_nodes_plain_port", clients::ssh_goes_through_a_nodes_plain_port),
    ("sluicegate_tunnel_carries_a_local_port", clients::sluicegate_tunnel_carries_a_local_port),
    ("the_audit_log_has_the_true_client", clients::the_audit_log_has_the_true_client),
    ("the_cli_shows_why_it_is_refused", refusals::the_cli_shows_why_it_is_refused),
    ("the_load_balancer_uses_both_nodes", refusals::the_load_balancer_uses_both_nodes),
    ("bad_input_is_answered", refusals::bad_input_is_answered),
    ("a_revoked_token_ends_a_live_cli_tunnel", revocation::a_revoked_token_ends_a_live_cli_tunnel),
    ("a_device_that_leaves_the_vpn_is_offline", vpn::a_device_that_leaves_the_vpn_is_offline),
    ("a_device_that_moves_is_found_at_its_new_node", vpn::a_device_that_moves_is_found_at_its_new_node),
    ("the_query_change_of_30_september_is_held", incident::the_query_change_of_30_september_is_held),
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

/// Whether a few bytes come back from an echo.
fn echoes(tunnel: &mut TcpStream) -> bool {
    tunnel.write_all(b"ping").is_ok() && tunnel.read_exact(&mut [0; 4]).is_ok()
}
