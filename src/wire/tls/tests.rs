//! Two sides of a connection against each other, in memory.

use proptest::prelude::*;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, SupportedProtocolVersion, version};

use super::*;

const NAME: &str = "relay.example";

/// Both sides of a connection, and the records between them.
struct TlsPair {
    client: TlsConnection,
    server: TlsConnection,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
}

/// Runs `act` and appends the records that it makes to `way`.
fn put<T>(way: &mut Vec<u8>, act: impl FnOnce(&mut Sealed) -> Result<T, TlsError>) -> Result<T, TlsError> {
    let mut sealed = Sealed::default();
    let outcome = act(&mut sealed);
    way.extend_from_slice(sealed.bytes());
    outcome
}

impl TlsPair {
    fn new(version: &'static SupportedProtocolVersion) -> Self {
        Self::made(version, false)
    }

    /// A pair whose server requires a client certificate and does not trust the signer of the client's.
    fn with_client_certificate() -> Self {
        Self::made(&version::TLS13, true)
    }

    fn made(version: &'static SupportedProtocolVersion, wants_certificate: bool) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new([NAME.to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap()
            .der()
            .clone();
        let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let certified = CertifiedKey::new(vec![certificate.clone()], any_supported_type(&der).unwrap());
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[version])
            .unwrap();
        let server = if wants_certificate {
            let roots = Arc::new(roots.clone());
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
            server.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            server.with_no_client_auth()
        };
        let server = server.with_cert_resolver(Arc::new(Certificates::new(vec![certified]).unwrap()));
        let (own, own_key) = stranger();
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![own], own_key)
            .unwrap();
        Self {
            client: TlsConnection::connect(Arc::new(client), ServerName::try_from(NAME).unwrap()).unwrap(),
            server: TlsConnection::accept(Arc::new(server)).unwrap(),
            to_server: Vec::new(),
            to_client: Vec::new(),
        }
    }

    fn open(version: &'static SupportedProtocolVersion) -> Self {
        let mut pair = Self::new(version);
        // The client speaks first.
        put(&mut pair.to_server, |out| pair.client.receive(&[], &mut Vec::new(), out)).unwrap();
        while !(pair.to_server.is_empty() && pair.to_client.is_empty()) {
            assert!(pair.pass().0.is_empty());
        }
        assert!(pair.client.is_open() && pair.server.is_open());
        pair
    }

    /// Delivers all records. Returns the plain bytes that the server and the client have read.
    fn pass(&mut self) -> (Vec<u8>, Vec<u8>) {
        let (mut at_server, mut at_client) = (Vec::new(), Vec::new());
        let records = std::mem::take(&mut self.to_server);
        put(&mut self.to_client, |out| self.server.receive(&records, &mut at_server, out)).unwrap();
        let records = std::mem::take(&mut self.to_client);
        put(&mut self.to_server, |out| self.client.receive(&records, &mut at_client, out)).unwrap();
        (at_server, at_client)
    }
}

/// Makes a self-signed certificate.
fn stranger() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "a stranger");
    let certificate = params.self_signed(&key).unwrap();
    (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];

#[test]
fn bytes_and_the_end_arrive_by_either_version() {
    for version in VERSIONS {
        let mut pair = TlsPair::open(version);
        let sent: Vec<u8> = (0..100_000u32).map(|n| (n / 7) as u8).collect();
        put(&mut pair.to_server, |out| pair.client.write(&sent, out)).unwrap();
        put(&mut pair.to_client, |out| pair.server.write(b"short", out)).unwrap();
        assert_eq!(pair.pass(), (sent, b"short".to_vec()));
        assert!(!pair.server.has_ended());
        put(&mut pair.to_server, |out| pair.client.end(out)).unwrap();
        assert_eq!(pair.pass().0, b"");
        assert!(pair.server.has_ended() && !pair.client.has_ended());
        // One direction has ended; the other has not.
        put(&mut pair.to_client, |out| pair.server.write(b"and this", out)).unwrap();
        put(&mut pair.to_client, |out| pair.server.end(out)).unwrap();
        assert_eq!(pair.pass().1, b"and this");
        assert!(pair.client.has_ended());
    }
}

#[test]
fn a_short_write_is_one_record() {
    for version in VERSIONS {
        let mut pair = TlsPair::open(version);
        put(&mut pair.to_client, |out| {
            pair.server.write(b"HTTP/1.1 200 Connection Established\r\n\r\n", out)
        })
        .unwrap();
        let len = usize::from(u16::from_be_bytes([pair.to_client[3], pair.to_client[4]]));
        assert_eq!((pair.to_client[0], pair.to_client.len()), (23, 5 + len));
    }
}

#[test]
fn nothing_can_be_sent_before_the_handshake_is_over() {
    let mut pair = TlsPair::new(&version::TLS13);
    let refused = put(&mut pair.to_client, |out| pair.server.write(b"too early", out)).unwrap_err();
    assert!(matches!(refused, TlsError::NotOpen), "{refused}");
    assert!(pair.to_client.is_empty());
}

#[test]
fn an_altered_record_is_an_error_with_an_alert_for_the_peer() {
    let mut pair = TlsPair::open(&version::TLS13);
    put(&mut pair.to_server, |out| pair.client.write(b"payload", out)).unwrap();
    *pair.to_server.last_mut().unwrap() ^= 1;
    let mut plain = Vec::new();
    let error =
        put(&mut pair.to_client, |out| pair.server.receive(&pair.to_server, &mut plain, out)).unwrap_err();
    assert!(matches!(error, TlsError::Protocol(rustls::Error::DecryptError)), "{error}");
    assert!(plain.is_empty());
    let alert = pair.client.receive(&pair.to_client, &mut plain, &mut Sealed::default()).unwrap_err();
    assert!(
        matches!(
            alert,
            TlsError::Protocol(rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac))
        ),
        "{alert}"
    );
}

#[test]
fn a_client_gets_the_refusal_of_its_certificate_although_it_has_sent_a_request() {
    let mut pair = TlsPair::with_client_certificate();
    put(&mut pair.to_server, |out| pair.client.receive(&[], &mut Vec::new(), out)).unwrap();
    let hello = std::mem::take(&mut pair.to_server);
    put(&mut pair.to_client, |out| pair.server.receive(&hello, &mut Vec::new(), out)).unwrap();
    let flight = std::mem::take(&mut pair.to_client);
    put(&mut pair.to_server, |out| pair.client.receive(&flight, &mut Vec::new(), out)).unwrap();
    put(&mut pair.to_server, |out| pair.client.write(b"a request", out)).unwrap();
    let mut plain = Vec::new();
    put(&mut pair.to_client, |out| pair.server.receive(&pair.to_server, &mut plain, out)).unwrap_err();
    assert!(plain.is_empty());
    let alert = pair.client.receive(&pair.to_client, &mut plain, &mut Sealed::default()).unwrap_err();
    assert!(alert.to_string().contains("unknown_ca"), "{alert}");
}

proptest! {
    #[test]
    fn bytes_arrive_in_order_however_their_records_are_cut(
        writes in prop::collection::vec(0..40_000usize, 1..6),
        cuts in prop::collection::vec(1..20_000usize, 1..8),
    ) {
        let mut pair = TlsPair::open(&version::TLS13);
        let mut sent = Vec::new();
        for (number, len) in writes.into_iter().enumerate() {
            let bytes: Vec<u8> = (0..len).map(|place| (place * 31 + number) as u8).collect();
            put(&mut pair.to_server, |out| pair.client.write(&bytes, out)).unwrap();
            sent.extend_from_slice(&bytes);
        }
        let mut arrived = Vec::new();
        let mut cuts = cuts.iter().cycle();
        let mut left = pair.to_server.as_slice();
        while !left.is_empty() {
            let (now, later) = left.split_at((*cuts.next().unwrap()).min(left.len()));
            pair.server.receive(now, &mut arrived, &mut Sealed::default()).unwrap();
            left = later;
        }
        prop_assert!(pair.server.rest().is_empty());
        prop_assert_eq!(arrived, sent);
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(wild in prop::collection::vec(any::<u8>(), 0..2_000)) {
        for mut side in [TlsPair::new(&version::TLS13).server, TlsPair::open(&version::TLS12).server] {
            // After an error, further use of the connection must not panic.
            let _refused = side.receive(&wild, &mut Vec::new(), &mut Sealed::default());
            let _refused = side.write(b"x", &mut Sealed::default());
            let _refused = side.receive(&wild, &mut Vec::new(), &mut Sealed::default());
        }
    }
}
