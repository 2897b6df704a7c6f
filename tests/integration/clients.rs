//! Clients that people have: curl, OpenSSH and socat. `tunnel.rs` is about ours.

use std::net::SocketAddr;
use std::process::Command;

use crate::support::{
    Content, DEVICE, Device, Site, Sshd, V4, assert_done, output_of, root_or_skip, tools_or_skip,
};

const PAGE: &[u8] = b"<p>a page of the device</p>\n";

fn curl(relay: SocketAddr, port: u16) -> Command {
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--show-error",
        "--verbose",
        "--max-time",
        "60",
        "--noproxy",
        "",
        "--proxytunnel",
    ]);
    curl.arg("--proxy").arg(format!("http://{relay}")).arg(format!("http://{DEVICE}.balena:{port}/"));
    curl
}

#[test]
fn curl_fetches_a_page_with_either_scheme() {
    if !tools_or_skip("curl_fetches_a_page_with_either_scheme", &["curl"]) {
        return;
    }
    let site = Site::new("");
    let relay = site.start();
    let device = Device::http(PAGE);
    let bearer = format!("Proxy-Authorization: Bearer {}", site.token);
    let user = format!("anybody:{}", site.token);
    for credentials in [["--proxy-header", bearer.as_str()], ["--proxy-user", user.as_str()]] {
        let mut curl = curl(relay.address(), device.port());
        let output = output_of(curl.args(credentials), b"");
        assert_done(&output);
        assert_eq!(output.stdout, PAGE, "{}", credentials[0]);
    }
}

#[test]
fn curl_takes_a_token_in_the_url_of_the_proxy_as_user_name_or_as_password() {
    if !tools_or_skip("curl_takes_a_token_in_the_url_of_the_proxy_as_user_name_or_as_password", &["curl"]) {
        return;
    }
    let site = Site::new("");
    let relay = site.start();
    let device = Device::http(PAGE);
    let token = &site.token;
    for user in [format!("{token}@"), format!("{token}:@"), format!("anybody:{token}@"), format!(":{token}@")]
    {
        let mut curl = curl(relay.address(), device.port());
        let output = output_of(curl.arg("--proxy").arg(format!("http://{user}{}", relay.address())), b"");
        assert_done(&output);
        assert_eq!(output.stdout, PAGE, "{}", user.replace(token, "TOKEN"));
    }
}

#[test]
fn curl_shows_a_refusal_as_it_was_said() {
    if !tools_or_skip("curl_shows_a_refusal_as_it_was_said", &["curl"]) {
        return;
    }
    let site = Site::new("");
    let relay = site.start();
    let output = output_of(&mut curl(relay.address(), 80), b"");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(message.contains("< HTTP/1.1 407 Proxy Authentication Required"), "{message}");
    assert!(message.contains("< Sluicegate-Reason: credentials"), "{message}");
}

/// socat's address of a port of [`DEVICE`] behind the relay.
fn socat_proxy(site: &Site, relay: SocketAddr, port: &str) -> String {
    let (ip, proxy_port) = (relay.ip(), relay.port());
    format!("PROXY:{ip}:{DEVICE}.balena:{port},proxyport={proxy_port},proxyauth=anybody:{}", site.token)
}

#[test]
fn socat_gets_back_what_it_sends() {
    if !tools_or_skip("socat_gets_back_what_it_sends", &["socat"]) {
        return;
    }
    let site = Site::new("");
    let relay = site.start();
    let device = Device::echo(V4);
    let content = Content::new(1, 8 << 20);
    let address = socat_proxy(&site, relay.address(), &device.port().to_string());
    // By default socat waits half a second for the rest after its stdin has ended; here it waits for the FIN.
    let output = output_of(Command::new("socat").args(["-t", "60", "-", &address]), &content.to_vec());
    assert_done(&output);
    assert_eq!(Content::digest_of(&output.stdout), content.digest());
}

fn sshd() -> Sshd {
    Sshd::start(SocketAddr::new(V4, Device::closed_port()))
}

fn can_ssh(name: &str) -> bool {
    root_or_skip(name) && tools_or_skip(name, &["ssh", "sshd", "ssh-keygen"])
}

#[test]
fn openssh_works_with_sluicegate_tunnel_as_its_proxy_command() {
    if !can_ssh("openssh_works_with_sluicegate_tunnel_as_its_proxy_command") {
        return;
    }
    let site = Site::new("");
    let relay = site.start();
    let sshd = sshd();
    let content = Content::new(2, 8 << 20);
    let proxy_command =
        format!("{} tunnel %h:%p --relay {} --stdio", crate::support::BINARY, relay.address());
    let mut ssh = sshd.cat_through(DEVICE, &proxy_command);
    let output = output_of(ssh.env("SLUICEGATE_TOKEN", &site.token), &content.to_vec());
    assert_done(&output);
    assert_eq!(Content::digest_of(&output.stdout), content.digest());
}

#[test]
fn openssh_works_with_socat_as_its_proxy_command() {
    let name = "openssh_works_with_socat_as_its_proxy_command";
    if !can_ssh(name) || !tools_or_skip(name, &["socat"]) {
        return;
    }
    let site = Site::new("");
    let relay = site.start();
    let sshd = sshd();
    let content = Content::new(3, 8 << 20);
    let proxy_command = format!("socat - {}", socat_proxy(&site, relay.address(), "%p"));
    let output = output_of(&mut sshd.cat_through(DEVICE, &proxy_command), &content.to_vec());
    assert_done(&output);
    assert_eq!(Content::digest_of(&output.stdout), content.digest());
}

#[test]
fn an_ssh_that_is_refused_shows_why() {
    if !can_ssh("an_ssh_that_is_refused_shows_why") {
        return;
    }
    let site = Site::new("");
    let relay = site.start();
    let sshd = sshd();
    let proxy_command =
        format!("{} tunnel %h:%p --relay {} --stdio", crate::support::BINARY, relay.address());
    let output =
        output_of(sshd.cat_through(DEVICE, &proxy_command).env("SLUICEGATE_TOKEN", "sg_nobody"), b"");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(message.contains("the token is unknown, expired or revoked"), "{message}");
}
