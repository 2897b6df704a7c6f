//! Every cause for which a session is refused or a tunnel ends, in one table.
//!
//! To add a cause, add a line to the table below and a row to docs/audit.md; a test compares the two. The audit
//! log, the metrics and the status page take their names from here.

mod conversions;

use std::fmt;

use serde::{Serialize, Serializer};

/// Defines [`Cause`]: in each line the meaning, the variant and the slug.
macro_rules! causes {
    ($(#[doc = $meaning:literal] $variant:ident = $slug:literal,)+) => {
        /// The true cause of a refusal or of a tunnel's end. The client gets a reply, which may hide it.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Cause {
            $(#[doc = $meaning] $variant,)+
        }

        impl Cause {
            /// All causes, in the order of declaration, so that a cause's discriminant is its index here.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name of the cause in the audit log and in metrics.
            pub const fn slug(self) -> &'static str {
                match self {
                    $(Self::$variant => $slug,)+
                }
            }

            /// One sentence that says what happened.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning.trim_ascii(),)+
                }
            }
        }
    };
}

causes! {
    // The end of a tunnel.
    /// Both sides ended.
    Closed = "closed",
    /// The client reset its connection.
    ClientReset = "client-reset",
    /// The client's machine did not answer for `timeouts.user_timeout`.
    ClientTimeout = "client-timeout",
    /// The client's connection failed in another way.
    ClientError = "client-error",
    /// The client's connection ended without TLS's closing message, so data may be missing.
    ClientTruncated = "client-truncated",
    /// The client sent a TLS record that is not valid.
    ClientTls = "client-tls",
    /// The device reset its connection.
    DeviceReset = "device-reset",
    /// The device's connection failed in another way.
    DeviceError = "device-error",
    /// The connection to the peer that holds the device ended without TLS's closing message.
    NodeTruncated = "node-truncated",
    /// No byte moved for `timeouts.idle`.
    IdleTimeout = "idle-timeout",
    /// One direction had ended, and the other moved nothing for `timeouts.half_closed`.
    HalfClosedTimeout = "half-closed-timeout",
    /// The credential or the grant expired, while nothing could be decided.
    RightExpired = "right-expired",
    /// The credential is no longer in the store.
    CredentialRemoved = "credential-removed",
    /// The grant is no longer in the store.
    GrantRemoved = "grant-removed",
    /// The grant is still there, but no longer for this port.
    GrantNarrowed = "grant-narrowed",
    /// The device is no longer in the store.
    DeviceRemoved = "device-removed",
    /// An operator ended the session.
    EndedByAdmin = "ended-by-admin",
    /// Memory for TCP ran short, and the tunnel had stalled for longer than the others.
    TcpMemory = "tcp-memory",
    /// The relay stopped.
    NodeStopped = "node-stopped",
    /// The relay has a defect; please report it.
    NodePanic = "node-panic",
    /// The engine thread of the session lost its ring, or failed, and began anew.
    NodeThread = "node-thread",

    // A head that cannot be used.
    /// The head is not valid.
    Malformed = "malformed",
    /// The client ended its side before the head was complete.
    HeadTruncated = "head-truncated",
    /// The method was not CONNECT.
    Method = "method",
    /// The head was over 8 KiB, had more than 64 headers, or a token over 4096 bytes.
    HeadTooLarge = "head-too-large",
    /// The head was not complete in `timeouts.head`.
    HeadTimeout = "head-timeout",
    /// The listener has `proxy_from`, and no PROXY header came.
    ProxyHeaderMissing = "proxy-header-missing",
    /// The PROXY header is not valid, or too long.
    ProxyHeaderMalformed = "proxy-header-malformed",
    /// The connection came from outside `proxy_from`.
    ProxyUntrusted = "proxy-untrusted",
    /// The listener speaks TLS, and the client did not.
    NotTls = "not-tls",

    // The token.
    /// The head had no usable token.
    CredentialMissing = "credential-missing",
    /// No credential in the store has this token.
    CredentialUnknown = "credential-unknown",
    /// The token's time is over.
    CredentialExpired = "credential-expired",
    /// Somebody revoked the token.
    CredentialRevoked = "credential-revoked",
    /// Somebody removed the principal.
    PrincipalRevoked = "principal-revoked",
    /// A session token names another principal than the one that its secret belongs to.
    PrincipalMismatch = "principal-mismatch",
    /// A session token is signed by an algorithm that no configured key has, or not at all.
    TokenAlgorithm = "token-algorithm",
    /// A session token names a key that is not configured.
    TokenKey = "token-key",
    /// The keys of a session token's signer could not be read, or are being read once more.
    TokenKeysMissing = "token-keys-missing",
    /// No configured key signed the session token.
    TokenSignature = "token-signature",
    /// A session token is signed well, but is not a JSON object, or needs an extension that the relay does not know.
    TokenMalformed = "token-malformed",
    /// A session token is from another issuer.
    TokenIssuer = "token-issuer",
    /// A session token is for another audience.
    TokenAudience = "token-audience",
    /// A session token has no `exp`.
    TokenNoExpiry = "token-no-expiry",
    /// A session token's `exp` is over.
    TokenExpired = "token-expired",
    /// A session token's `nbf` has not come yet.
    TokenNotYetValid = "token-not-yet-valid",
    /// A session token does not say who asks.
    TokenClaims = "token-claims",
    /// The token begins with `jwt_secret:`, which no token may.
    TokenReserved = "token-reserved",
    /// The client's network has sent too many unknown tokens.
    UnknownTokens = "unknown-tokens",

    // The right to reach the device.
    /// The store has no such device.
    DeviceUnknown = "device-unknown",
    /// The principal has no grant for the device.
    NoGrant = "no-grant",
    /// The principal has a grant for the device, but not for this port.
    PortNotGranted = "port-not-granted",
    /// The grant's time is over.
    GrantExpired = "grant-expired",
    /// Somebody revoked the grant.
    GrantRevoked = "grant-revoked",
    /// No snapshot was ever published.
    NoSnapshot = "no-snapshot",
    /// The store has not confirmed the snapshot for `authz.max_stale`.
    SnapshotStale = "snapshot-stale",
    /// The token is unknown, and the store cannot be asked whether it is new.
    StoreUnreachable = "store-unreachable",

    // The way to the device by another node.
    /// The device has no VPN connection, or no address is known for it.
    DeviceOffline = "device-offline",
    /// Another node holds the device, and this one is not set up to pass requests on.
    DeviceElsewhere = "device-elsewhere",
    /// It cannot be told whose the device's address is, so nobody is dialled.
    DeviceDisputed = "device-disputed",
    /// The directory has no entry for the peer that holds the device.
    NodeUnknown = "node-unknown",
    /// The peer that holds the device has sent no heartbeat for `forward.max_age`, and could not be reached either.
    NodeStale = "node-stale",
    /// The peer that holds the device is in `forward.refuse`, or its address is not in `forward.allow`.
    NodeRefused = "node-refused",
    /// Another process has this node's name; this one waits as its stand-by.
    NodeStandBy = "node-stand-by",
    /// The peer that holds the device did not answer other requests a moment ago, and is asked again in a while.
    NodeHangs = "node-hangs",
    /// This node could not open a socket, or begin TLS, for the connection to the peer.
    NodeSocket = "node-socket",
    /// The connection to the peer failed.
    NodeUnreachable = "node-unreachable",
    /// This node has too many TLS handshakes under way to begin one with the peer.
    NodeHandshakesFull = "node-handshakes-full",
    /// TLS with the peer failed.
    NodeTls = "node-tls",
    /// The peer did not read the request.
    NodeStalled = "node-stalled",
    /// The connection to the peer broke before it replied.
    NodeLost = "node-lost",
    /// The peer closed the connection before it replied.
    NodeClosed = "node-closed",
    /// The peer's reply is not one that this version knows.
    NodeReply = "node-reply",
    /// The peer did not reply in `timeouts.forward`.
    NodeTimeout = "node-timeout",
    /// The peer refused the request.
    RefusedByNode = "refused-by-node",
    /// The request came over the nodes' listener, from one that is no node of the directory.
    NodeStranger = "node-stranger",
    /// The request was to go to a node where it has been, or has come by `forward.hops_max` nodes.
    Loop = "loop",

    // The connection to the device.
    /// The device's address is outside `vpn.allow`.
    DeviceAddressNotAllowed = "device-address-not-allowed",
    /// The device refused the connection.
    DevicePortClosed = "device-port-closed",
    /// The device did not answer in `timeouts.connect`, or, in a tunnel, for `timeouts.user_timeout`.
    DeviceTimeout = "device-timeout",
    /// The connection to the device failed in another way.
    DeviceUnreachable = "device-unreachable",
    /// The node has no interface `vpn.interface`.
    VpnInterfaceMissing = "vpn-interface-missing",
    /// The node could not open a socket for the device.
    DeviceSocket = "device-socket",

    // The node's limits.
    /// `limits.sessions` sessions exist on this node.
    LimitNode = "limit-node",
    /// The client's network has `limits.heads_per_network` sessions that have sent no head.
    LimitNetwork = "limit-network",
    /// The node needed the place, and the client had sent no head for longer than the others.
    HeadDropped = "head-dropped",
    /// The principal has `limits.sessions_per_principal` sessions.
    LimitPrincipal = "limit-principal",
    /// The device has `limits.sessions_per_device` sessions.
    LimitDevice = "limit-device",
    /// The process or the system has no file descriptor left.
    Descriptors = "descriptors",
    /// The system has no memory left for a socket.
    Memory = "memory",
    /// The node has no local port left for a connection to the device.
    LocalPorts = "local-ports",
    /// The node is about to stop.
    Draining = "draining",

    // A session that ended without a reply.
    /// The client left before it got a reply.
    ClientClosed = "client-closed",
    /// The client did not read, so the reply or the TLS handshake could not be sent.
    ClientStalled = "client-stalled",
    /// The TLS handshake failed.
    TlsHandshake = "tls-handshake",
    /// The TLS handshake was not complete in `timeouts.head`.
    TlsTimeout = "tls-timeout",
    /// This node has too many TLS handshakes under way.
    TlsHandshakesFull = "tls-handshakes-full",
    /// The client sent more than 64 KiB before the TLS handshake was complete.
    TlsHandshakeTooLarge = "tls-handshake-too-large",
    /// The kernel failed to take over the tunnel's TLS records; the client had got its 200.
    KernelTls = "kernel-tls",
}

/// Orders causes by slug, so that a list of them is in alphabetical order.
impl Ord for Cause {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.slug().cmp(other.slug())
    }
}

impl PartialOrd for Cause {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.slug())
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.slug())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_a_slug_of_its_own_and_a_sentence() {
        let slugs: std::collections::BTreeSet<_> = Cause::ALL.iter().map(|cause| cause.slug()).collect();
        assert_eq!(slugs.len(), Cause::ALL.len());
        for (index, &cause) in Cause::ALL.iter().enumerate() {
            assert_eq!(cause as usize, index);
            assert!(cause.slug().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{cause}");
            assert!(cause.meaning().ends_with('.') && !cause.meaning().starts_with(' '), "{cause}");
        }
    }
}
