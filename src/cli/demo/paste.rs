//! Lines for a person to paste into another terminal.

use super::client::USER;
use super::page::ssh_banner;
use super::rights::SSH_PORT;
use super::screen::Screen;
use super::world::DemoWorld;

pub(super) fn show(world: &DemoWorld, screen: &Screen) {
    screen.section("The relay stays up. In another terminal:");
    screen.text(&format!("\n{}\n", curl(world)));
    screen.text(&match ssh_banner() {
        Some(_) => format!("{}\n", ssh(world)),
        None => format!("(no ssh line: no sshd answers on 127.0.0.1:{SSH_PORT})\n"),
    });
    let folder = world.folder().display();
    screen.text(&format!("Ctrl-C ends it and removes {folder}."));
}

fn curl(world: &DemoWorld) -> String {
    let (relay, token, target) = (world.client.relay, &world.rights.token, world.web());
    format!("curl --proxytunnel -x http://{relay} -U {USER}:{token} http://{target}/")
}

/// A line for ssh through `sluicegate tunnel`. The host key is that of this machine's sshd.
fn ssh(world: &DemoWorld) -> String {
    let (relay, token, uuid) = (world.client.relay, &world.rights.token, world.rights.ssh);
    let program = std::env::current_exe().unwrap_or_else(|_| "sluicegate".into());
    format!(
        "SLUICEGATE_TOKEN={token} ssh -o HostKeyAlias=127.0.0.1 \\\n  \
         -o ProxyCommand='\"{}\" tunnel {uuid}:{SSH_PORT} --relay {relay} --stdio' {uuid}.balena",
        program.display()
    )
}
