//! The subjects of a token of openBalena's API: a token may name several, and opens what any of them may reach.

use sha2::{Digest, Sha256};

use crate::authz::{KeyHash, LoginUser, PortRange, PrincipalId, Subject, UnixMillis};
use crate::wire::{LoginRights, OpenBalenaLogin};

/// The subject of `login`, whose token has the hash `token` and expires at `until`, and further ones whose rights it
/// has as well.
pub(super) fn subjects(
    login: &OpenBalenaLogin,
    token: KeyHash,
    until: UnixMillis,
) -> (Subject, Vec<Subject>) {
    let guest = Subject::Principal { id: GUEST, token, until };
    match login {
        OpenBalenaLogin::User { number, secret, rights } => {
            let key = match secret {
                Some(secret) => KeyHash::of_login_secret(secret),
                None => KeyHash::of_login_without_secret(*number),
            };
            let acts_as = (*rights == LoginRights::Guest).then_some(GUEST);
            (Subject::Login { key, user: LoginUser::Number(*number), acts_as, until }, Vec::new())
        }
        OpenBalenaLogin::Roles { names, actor, secret } => {
            let principals = names.iter().flat_map(|name| {
                let own = actor.map(|actor| role_principal(&format!("own role {actor}:{name}")));
                [Some(role_principal(&format!("role:{name}"))), own].into_iter().flatten()
            });
            let subject = |id| match secret {
                Some(secret) => {
                    // The secret is that of the actor's user: without an actor it is nobody's.
                    let (key, user) =
                        (KeyHash::of_login_secret(secret), LoginUser::Actor(actor.unwrap_or(0)));
                    Subject::Login { key, user, acts_as: Some(id), until }
                }
                None => Subject::Principal { id, token, until },
            };
            (subject(GUEST), principals.map(subject).collect())
        }
        OpenBalenaLogin::Permissions { rights: LoginRights::Guest, .. } => (guest, Vec::new()),
        OpenBalenaLogin::Permissions { names, actor, rights: LoginRights::All } => {
            let id = PrincipalId(*actor);
            let ports = names.iter().filter_map(|name| opened_ports(name));
            (guest, ports.map(|ports| Subject::Bearer { id, token, ports, until }).collect())
        }
        OpenBalenaLogin::Service { key } => {
            (Subject::Secret { key: KeyHash::of_token(key.as_bytes()), principal: None, until }, Vec::new())
        }
    }
}

/// Returns the ports that a permission opens on every device; `None` where it opens none, or has a filter. The same
/// rule in SQL is in src/store/postgres/openbalena/rights.sql.
fn opened_ports(permission: &str) -> Option<PortRange> {
    let mut parts = permission.split('?');
    let name = parts.next()?;
    if parts.next().is_some_and(|filter| filter != "true") {
        return None;
    }
    let action =
        ["resource.", "resin.device.", "resin."].iter().find_map(|prefix| name.strip_prefix(prefix))?;
    if let "all" | "tunnel-any" = action {
        return Some(PortRange::ANY);
    }
    let digits = action.strip_prefix("tunnel-")?;
    let port: u16 = digits.parse().ok().filter(|port: &u16| port.to_string() == digits)?;
    PortRange::new(port, port)
}

/// Number of the principal that the store's query for grants gives a role. It is negative, as no other principal's is.
fn role_principal(holder: &str) -> PrincipalId {
    let hash = Sha256::digest(holder);
    let mut head = [0; 8];
    head.copy_from_slice(&hash[..8]);
    PrincipalId(i64::from_be_bytes(head) | i64::MIN)
}

/// The principal who has the guest's rights and no others.
const GUEST: PrincipalId = PrincipalId(0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permission_in_a_token_opens_what_its_whole_name_says() {
        let one = |port| PortRange::new(port, port);
        for (name, expected) in [
            ("resource.all", Some(PortRange::ANY)),
            ("resin.tunnel-any", Some(PortRange::ANY)),
            ("resin.device.all?true", Some(PortRange::ANY)),
            ("resin.device.tunnel-22222", one(22_222)),
            ("resin.tunnel-1", one(1)),
            ("resource.tunnel-65535", one(65_535)),
            ("resin.device.tunnel-65536", None),
            ("resin.device.tunnel-0", None),
            ("resin.device.tunnel-022", None),
            ("resin.device.tunnel-+22", None),
            ("resin.device.tunnel-80-443", None),
            ("resin.device.tunnel-firewall", None),
            ("resin.device.all?actor eq @__ACTOR_ID", None),
            ("resin.device.all?", None),
            ("resin.device.resin.all", None),
            ("resource.device.all", None),
            ("tunnel-22222", None),
            ("all", None),
        ] {
            assert_eq!(opened_ports(name), expected, "{name}");
        }
    }
}
