//! TLS to a PostgreSQL server: each `sslmode` lets in and turns away what libpq's does.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, ServerConnection};
use sluicegate::config::Authz;
use sluicegate::store::StoreError;

use crate::support::{Authority, Cluster, Device, Pair, Rights, StoreView, V4, store_at};

/// A server with a certificate for 127.0.0.1, or for the names that are given.
fn server(authority: &Authority, names: &[&str]) -> Option<Cluster> {
    server_with(&authority.issue("db", names), &authority.issuer.pem())
}

/// A server that shows the certificate of `pair`, and trusts clients of `root`.
fn server_with(pair: &Pair, root: &str) -> Option<Cluster> {
    let settings = "ssl = on\nssl_cert_file = 'own.crt'\nssl_key_file = 'own.key'\nssl_ca_file = 'ca.crt'\n";
    Cluster::with_files(settings, &[("own.crt", &pair.certificate), ("own.key", &pair.key), ("ca.crt", root)])
}

fn source(rights: &Rights, parameters: &str) -> StoreView {
    let url = format!("{}?application_name=reader&{parameters}", rights.database.relay_url());
    StoreView::new(&store_at(&url), &Authz::default())
}

/// True if the server says that the relay's session is encrypted.
fn is_encrypted(rights: &Rights, parameters: &str) -> Result<bool, StoreError> {
    let mut source = source(rights, parameters);
    source.read_all()?;
    let sql =
        "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'reader'
        ORDER BY backend_start DESC LIMIT 1";
    Ok(rights.database.client().query_one(sql, &[]).unwrap().get(0))
}

fn refusal(rights: &Rights, parameters: &str) -> String {
    source(rights, parameters).read_all().unwrap_err().to_string()
}

#[test]
fn without_a_root_a_connection_is_encrypted_where_it_can_be_and_may_be() {
    let folder = tempfile::tempdir().unwrap();
    let Some(cluster) = server(&Authority::new(folder.path(), "ours"), &["elsewhere.example"]) else {
        return;
    };
    let rights = Rights::new(&cluster);
    for (parameters, encrypted) in
        [("", true), ("sslmode=disable", false), ("sslmode=prefer", true), ("sslmode=require", true)]
    {
        assert_eq!(is_encrypted(&rights, parameters).unwrap(), encrypted, "{parameters}");
    }
}

#[test]
fn a_server_without_tls_is_read_only_where_that_is_allowed() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    assert!(!is_encrypted(&rights, "sslmode=prefer").unwrap());
    for mode in ["require", "verify-ca", "verify-full"] {
        let refusal = refusal(&rights, &format!("sslmode={mode}"));
        assert!(refusal.contains("server does not support TLS"), "{mode}: {refusal}");
    }
}

#[test]
fn a_root_that_is_given_is_one_to_go_by() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new(folder.path(), "ours"), Authority::new(folder.path(), "theirs"));
    let Some(cluster) = server(&ours, &["elsewhere.example"]) else { return };
    let rights = Rights::new(&cluster);
    for mode in ["require", "verify-ca"] {
        let with = |authority: &Authority| format!("sslmode={mode}&sslrootcert={}", authority.file.display());
        assert!(is_encrypted(&rights, &with(&ours)).unwrap(), "{mode}: whatever name it is for");
        let refusal = refusal(&rights, &with(&theirs));
        assert!(refusal.contains("certificate is not signed by a CA that is trusted"), "{mode}: {refusal}");
        assert!(
            refusal.contains("see sslmode and sslrootcert"),
            "the remedy is not of a dead server: {refusal}"
        );
    }
}

#[test]
fn a_full_check_wants_the_host_that_was_dialled() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    let full = format!("sslmode=verify-full&sslrootcert={}", ours.file.display());
    let Some(here) = server(&ours, &["127.0.0.1"]) else { return };
    assert!(is_encrypted(&Rights::new(&here), &full).unwrap());
    let Some(elsewhere) = server(&ours, &["elsewhere.example"]) else { return };
    let refusal = refusal(&Rights::new(&elsewhere), &full);
    assert!(refusal.contains("is not for 127.0.0.1 but for elsewhere.example"), "{refusal}");
}

#[test]
fn the_machines_own_roots_do_not_lead_to_an_unknown_authority() {
    let folder = tempfile::tempdir().unwrap();
    let Some(cluster) = server(&Authority::new(folder.path(), "ours"), &["127.0.0.1"]) else { return };
    let rights = Rights::new(&cluster);
    for parameters in ["sslmode=verify-ca", "sslmode=verify-full&sslrootcert=system"] {
        let refusal = refusal(&rights, parameters);
        let message = ["not signed by a CA that is trusted", "this machine trusts no certificate"];
        assert!(message.iter().any(|message| refusal.contains(message)), "{parameters}: {refusal}");
    }
}

#[test]
fn a_node_can_prove_itself_by_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    let Some(cluster) = server(&ours, &["127.0.0.1"]) else { return };
    let rights = Rights::new(&cluster);
    let role = rights.database.relay();
    let hba = format!("hostssl all {role} all cert\nhost all postgres all trust\n");
    std::fs::write(cluster.data().join("pg_hba.conf"), hba).unwrap();
    rights.by_hand("SELECT pg_reload_conf()");
    crate::support::wait_for(|| cluster.try_client(&role, "postgres").is_err().then_some(())).unwrap();

    let pair = ours.issue(&role, &[]);
    let (certificate, key) = (folder.path().join("node.crt"), folder.path().join("node.key"));
    std::fs::write(&certificate, pair.certificate).unwrap();
    std::fs::write(&key, pair.key).unwrap();
    let with = format!("sslmode=require&sslcert={}&sslkey={}", certificate.display(), key.display());
    assert!(is_encrypted(&rights, &with).unwrap());
    assert!(source(&rights, "sslmode=require").read_all().is_err());
}

#[test]
fn who_shows_a_certificate_without_having_its_key_is_refused_in_every_mode() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    let pair = ours.issue("db", &["127.0.0.1"]);
    let (with_key, without_key) =
        (impostor(&pair, &pair.key), impostor(&pair, &ours.issue("thief", &[]).key));
    for mode in ["require", "verify-ca", "verify-full"] {
        let root =
            if mode == "require" { String::new() } else { format!("&sslrootcert={}", ours.file.display()) };
        let refusal = |server: &Device| {
            let url = format!("postgres://relay@{}/db?sslmode={mode}{root}", server.address());
            StoreView::new(&store_at(&url), &Authz::default()).read_all().unwrap_err().to_string()
        };
        let refused = refusal(&without_key);
        assert!(refused.contains("certificate does not fit a signature"), "{mode}: {refused}");
        let refused = refusal(&with_key);
        assert!(!refused.contains("certificate"), "{mode}: it comes as far as the login: {refused}");
    }
}

/// A server that shows the certificate of `pair`, signs with `key`, and ends each connection after the handshake.
fn impostor(pair: &Pair, key: &str) -> Device {
    let provider = rustls::crypto::ring::default_provider();
    let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let resolver = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    let config = Arc::new(config);
    Device::serving(V4, move |mut socket| {
        // The SSLRequest, which has no variable part.
        socket.read_exact(&mut [0; 8]).unwrap();
        socket.write_all(b"S").unwrap();
        let mut connection = ServerConnection::new(Arc::clone(&config)).unwrap();
        // Fails where the client refuses.
        let _refused = connection.complete_io(&mut socket);
    })
}

#[test]
fn a_file_that_holds_no_certificate_is_told() {
    let Some(cluster) = Cluster::shared() else { return };
    let rights = Rights::new(cluster);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("root.pem");
    let with = format!("sslmode=verify-ca&sslrootcert={}", file.display());
    assert!(refusal(&rights, &with).contains("root.pem: it cannot be read: No such file"));
    std::fs::write(&file, "nothing").unwrap();
    assert!(
        refusal(&rights, &with).contains("sslrootcert") && refusal(&rights, &with).contains("it is not PEM")
    );
}

/// `openssl req -x509` makes such a certificate, and libpq accepts it where it is the root.
#[test]
fn a_server_whose_certificate_signed_itself_is_trusted_by_that_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let pair = Pair::self_signed(&["127.0.0.1"]);
    let root = folder.path().join("own.pem");
    std::fs::write(&root, &pair.certificate).unwrap();
    let Some(cluster) = server_with(&pair, &pair.certificate) else { return };
    let rights = Rights::new(&cluster);
    for mode in ["require", "verify-ca", "verify-full"] {
        let with = format!("sslmode={mode}&sslrootcert={}", root.display());
        assert!(is_encrypted(&rights, &with).unwrap(), "{mode}");
    }
}
