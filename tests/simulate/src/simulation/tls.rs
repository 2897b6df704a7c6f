//! TLS of simulated clients: real handshakes and records, by the library that the relay uses.
//!
//! The key is of Ed25519, so that no length depends on chance, and there is no resumption, which would depend on the
//! history before. So the bytes differ from run to run, and their number and order do not.

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};

use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, SerialNumber};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};

use crate::config::{Config, Listen, Vpn};
use crate::wire::{Sealed, TlsConfigs, TlsConnection};

/// A client's side of a TLS connection.
pub struct TlsEnd {
    tls: TlsConnection,
    /// Records that the connection has no room for yet.
    pub outbox: VecDeque<u8>,
    has_failed: bool,
}

impl TlsEnd {
    pub fn new() -> Self {
        let name = ServerName::try_from(NAME).expect("a name");
        let tls = TlsConnection::connect(Arc::clone(&SETTINGS.client), name).expect("a client");
        let mut end = Self { tls, outbox: VecDeque::new(), has_failed: false };
        end.receive(&[]);
        end
    }

    pub fn is_open(&self) -> bool {
        self.tls.is_open()
    }

    /// The relay has sent its close_notify.
    pub fn has_seen_end(&self) -> bool {
        self.tls.has_ended()
    }

    /// Opens records. Returns their plain bytes.
    pub fn receive(&mut self, records: &[u8]) -> Vec<u8> {
        let (mut plain, mut answer) = (Vec::new(), Sealed::default());
        self.has_failed |= self.tls.receive(records, &mut plain, &mut answer).is_err();
        self.outbox.extend(answer.bytes());
        plain
    }

    /// Puts `plain` into the outbox, sealed.
    pub fn send(&mut self, plain: &[u8]) {
        let mut sealed = Sealed::default();
        self.has_failed |= self.tls.write(plain, &mut sealed).is_err();
        self.outbox.extend(sealed.bytes());
    }

    /// Puts a close_notify into the outbox.
    pub fn end(&mut self) {
        let mut sealed = Sealed::default();
        self.has_failed |= self.tls.end(&mut sealed).is_err();
        self.outbox.extend(sealed.bytes());
    }

    pub fn has_failed(&self) -> bool {
        self.has_failed
    }
}

/// The settings of a node that speaks TLS, and of its clients.
pub struct TlsSettings {
    pub listen: Listen,
    pub node: TlsConfigs,
    client: Arc<ClientConfig>,
}

/// Made once for all histories.
pub static SETTINGS: LazyLock<TlsSettings> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder for a certificate");
    let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let mut params = CertificateParams::new([NAME.to_owned()]).expect("a name");
    params.serial_number = Some(SerialNumber::from(7));
    let certificate = params.self_signed(&key).expect("a certificate");
    std::fs::write(folder.path().join("chain"), certificate.pem()).expect("a file");
    std::fs::write(folder.path().join("key"), key.serialize_pem()).expect("a file");
    let text = "address = '127.0.0.1:0'\ntls.certificates = [{ chain = '@/chain', key = '@/key' }]";
    let listen: Listen =
        toml::from_str(&text.replace('@', &folder.path().display().to_string())).expect("a listener");
    let config = Config { vpn: Vpn::loopback(), listen: vec![listen.clone()], ..Config::default() };
    let node = TlsConfigs::load(&config).expect("its certificate");
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).expect("a root");
    let mut client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.resumption = Resumption::disabled();
    TlsSettings { listen, node, client: Arc::new(client) }
});

const NAME: &str = "relay.example";
