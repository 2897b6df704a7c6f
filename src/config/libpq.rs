//! Parameters that libpq knows in a URL, and that this program does not need or cannot do.
//!
//! A value that asks for what is done anyway is accepted. Any other is refused with what to use instead, so that
//! nothing in a URL is silently without effect.

/// A parameter of libpq that is not passed on.
struct FixedParameter {
    name: &'static str,
    /// The values that say what is done anyway.
    accepted: &'static [&'static str],
    instead: &'static str,
}

/// Checks a parameter. `None` where it is not one of these; an error says what to use instead.
pub(super) fn check(name: &str, value: &str) -> Option<Result<(), String>> {
    let known = FIXED.iter().find(|known| known.name == name)?;
    if known.accepted.iter().any(|accepted| accepted.eq_ignore_ascii_case(value)) {
        return Some(Ok(()));
    }
    let accepted = match known.accepted.first() {
        Some(first) => format!(" other than `{first}`"),
        None => String::new(),
    };
    Some(Err(format!("{name}{accepted} cannot be used here; {}", known.instead)))
}

const GSSAPI: &str = "this program has no GSSAPI: let the role log in by a password or by sslcert and sslkey";

const KEEPALIVES: &str = "the relay sets keepalives itself, and `store.statement_timeout` ends a connection that answers nothing; leave it out";

const TLS_VERSIONS: &str = "TLS 1.2 and 1.3 are spoken, whichever is the highest of both sides; leave it out";

const REVOCATION: &str =
    "revocation lists are not read; give the server a certificate of a short life, and leave it out";

/// The parameters of libpq 18 that are not passed on.
/// <https://www.postgresql.org/docs/18/libpq-connect.html#LIBPQ-PARAMKEYWORDS>
const FIXED: &[FixedParameter] = &[
    fixed("client_encoding", &["UTF8", "UTF-8", "auto"], "names are read as UTF-8; leave it out"),
    fixed("fallback_application_name", &[], "write application_name"),
    fixed("gssencmode", &["disable", "prefer"], "this program has no GSSAPI: encrypt by sslmode"),
    fixed("krbsrvname", &[], GSSAPI),
    fixed("gsslib", &[], GSSAPI),
    fixed("gssdelegation", &["0"], GSSAPI),
    fixed("keepalives", &["1"], KEEPALIVES),
    fixed("keepalives_idle", &[], KEEPALIVES),
    fixed("keepalives_interval", &[], KEEPALIVES),
    fixed("keepalives_count", &[], KEEPALIVES),
    fixed("keepalives_retries", &[], KEEPALIVES),
    fixed("tcp_user_timeout", &[], KEEPALIVES),
    fixed(
        "load_balance_hosts",
        &["disable"],
        "hosts are tried in their order; write another order at each node",
    ),
    fixed("passfile", &[], "name a file that holds the password alone by `store.password_file`"),
    fixed("service", &[], "write the host, user and database of the service into the URL"),
    fixed("servicefile", &[], "write the host, user and database of the service into the URL"),
    fixed("replication", &["false", "off", "no", "0"], "a relay reads by queries; leave it out"),
    fixed(
        "require_auth",
        &[],
        "say by pg_hba.conf of the server how the role logs in; for the channel, write \
         channel_binding=require",
    ),
    fixed(
        "requirepeer",
        &[],
        "a relay checks servers by sslmode=verify-full; over a local socket, protect its folder",
    ),
    fixed("requiressl", &["0"], "write sslmode=require"),
    fixed("scram_client_key", &[], "put the password into `store.password_file`"),
    fixed("scram_server_key", &[], "put the password into `store.password_file`"),
    fixed("sslcertmode", &["allow"], "give or leave out sslcert and sslkey"),
    fixed("sslcompression", &["0"], "TLS has no compression any more; leave it out"),
    fixed("sslcrl", &[], REVOCATION),
    fixed("sslcrldir", &[], REVOCATION),
    fixed("sslkeylogfile", &[], "keys of connections are not written down; leave it out"),
    fixed("sslpassword", &[], "write the key without a password: `openssl pkey -in FILE -out NEW`"),
    fixed("sslsni", &["1"], "the host's name is always sent; leave it out"),
    fixed("ssl_min_protocol_version", &["TLSv1.2"], TLS_VERSIONS),
    fixed("ssl_max_protocol_version", &["TLSv1.3"], TLS_VERSIONS),
    fixed("min_protocol_version", &["3.0"], "version 3.0 of the protocol is spoken; leave it out"),
    fixed("max_protocol_version", &["3.0"], "version 3.0 of the protocol is spoken; leave it out"),
];

const fn fixed(
    name: &'static str,
    accepted: &'static [&'static str],
    instead: &'static str,
) -> FixedParameter {
    FixedParameter { name, accepted, instead }
}
