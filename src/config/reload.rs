//! The keys that a running node cannot apply when its configuration is reloaded.

use super::{Audit, Config, Listen, ListenerKind, Profile};

impl Config {
    /// The keys in which `next` differs and that need a new process. A running node applies all others.
    pub fn needs_new_process(&self, next: &Self) -> Vec<String> {
        let (store, vpn, forward) = (&self.store, &self.vpn, &self.forward);
        let (authz, admin) = (&self.authz, &self.admin);
        let differs = [
            // Readers, commands and writers have connections with these.
            ("store.url", store.url != next.store.url),
            ("store.profile", store.profile != next.store.profile),
            ("store.password_file", store.password_file != next.store.password_file),
            ("store.connect_timeout", store.connect_timeout != next.store.connect_timeout),
            ("store.statement_timeout", store.statement_timeout != next.store.statement_timeout),
            ("engine.threads", self.engine.threads != next.engine.threads),
            ("engine.buffers", self.engine.buffers != next.engine.buffers),
            ("vpn.addresses", vpn.addresses != next.vpn.addresses),
            ("vpn.wireguard_peers", vpn.wireguard_peers != next.vpn.wireguard_peers),
            ("vpn.wireguard_max_age", vpn.wireguard_max_age != next.vpn.wireguard_max_age),
            ("vpn.wireguard_command", vpn.wireguard_command != next.vpn.wireguard_command),
            ("vpn.node", vpn.node != next.vpn.node),
            ("vpn.report", vpn.report != next.vpn.report),
            ("forward.listen", forward.listen != next.forward.listen),
            ("forward.tls", forward.tls.is_some() != next.forward.tls.is_some()),
            ("forward.directory_url", forward.directory_url != next.forward.directory_url),
            (
                "forward.directory_password_file",
                forward.directory_password_file != next.forward.directory_password_file,
            ),
            ("authz.max_replica_lag", authz.max_replica_lag != next.authz.max_replica_lag),
            ("authz.reread", authz.reread != next.authz.reread),
            // Logins need other queries, which are composed at start.
            ("authz.tokens", self.reads_logins() != next.reads_logins()),
            // A confined process that looks no names up has given up the files of the resolver.
            ("authz.tokens", next.fetches_token_keys() && !self.needs_names()),
            ("authz.state", authz.state != next.authz.state),
            ("admin.address", admin.address != next.admin.address),
            ("admin.health_address", admin.health_address != next.admin.health_address),
            ("admin.socket", admin.socket != next.admin.socket),
            ("admin.socket_group", admin.socket_group != next.admin.socket_group),
            // What a process has given up it cannot get back.
            ("security.confine", self.security != next.security),
            // Engines drop their events where there was no audit log at the start.
            ("audit", is_off(&self.audit) && !is_off(&next.audit)),
        ];
        let differs = differs.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name.to_owned());
        moved_listeners(&self.listen, &next.listen).into_iter().chain(differs).collect()
    }

    fn reads_logins(&self) -> bool {
        self.store.profile == Profile::OpenBalena && self.authz.takes_login_secrets()
    }
}

fn is_off(audit: &Audit) -> bool {
    audit.path.is_none() && !audit.journald
}

/// The listeners for clients whose sockets would have to be opened or closed.
fn moved_listeners(before: &[Listen], after: &[Listen]) -> Vec<String> {
    let addresses = |listeners: &[Listen]| -> Vec<_> {
        let clients = listeners.iter().filter(|listen| listen.from == ListenerKind::Client);
        clients.map(|listen| listen.address).collect()
    };
    let (before, after) = (addresses(before), addresses(after));
    if before.len() != after.len() {
        return vec!["listen".to_owned()];
    }
    let moved = before.iter().zip(&after).enumerate().filter(|(_, (before, after))| before != after);
    moved.map(|(place, _)| format!("listen.{place}.address")).collect()
}
