use proptest::prelude::*;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, SupportedProtocolVersion, version};

use super::*;

const NAME: &str = "relay.example";

/// Both sides of a connection, and what is on its way.
struct Pair {
    client: Tls,
    server: Tls,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
}

impl Pair {
    fn new(version: &'static SupportedProtocolVersion) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new([NAME.to_owned()]).unwrap().self_signed(&key).unwrap().der().clone();
        let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let certified = CertifiedKey::new(vec![certificate.clone()], any_supported_type(&der).unwrap());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Certificates::new(vec![certified]).unwrap()));
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            client: Tls::connect(Arc::new(client), ServerName::try_from(NAME).unwrap()).unwrap(),
            server: Tls::accept(Arc::new(server)).unwrap(),
            to_server: Vec::new(),
            to_client: Vec::new(),
        }
    }

    fn open(version: &'static SupportedProtocolVersion) -> Self {
        let mut pair = Self::new(version);
        // The client speaks first.
        pair.client.read(&mut [], &mut Vec::new(), &mut pair.to_server).unwrap();
        while !(pair.to_server.is_empty() && pair.to_client.is_empty()) {
            assert!(pair.pass().0.is_empty());
        }
        assert!(pair.client.is_open() && pair.server.is_open());
        pair
    }

    /// Hands each side what is on its way to it; what the server and the client have read.
    fn pass(&mut self) -> (Vec<u8>, Vec<u8>) {
        let (mut at_server, mut at_client) = (Vec::new(), Vec::new());
        let mut records = std::mem::take(&mut self.to_server);
        let taken = self.server.read(&mut records, &mut at_server, &mut self.to_client).unwrap();
        self.to_server.splice(0..0, records.drain(taken..));
        let mut records = std::mem::take(&mut self.to_client);
        let taken = self.client.read(&mut records, &mut at_client, &mut self.to_server).unwrap();
        self.to_client.splice(0..0, records.drain(taken..));
        (at_server, at_client)
    }
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];

#[test]
fn bytes_and_the_end_arrive_by_either_version() {
    for version in VERSIONS {
        let mut pair = Pair::open(version);
        let sent: Vec<u8> = (0..100_000u32).map(|n| (n / 7) as u8).collect();
        pair.client.write(&sent, &mut pair.to_server).unwrap();
        pair.server.write(b"short", &mut pair.to_client).unwrap();
        assert_eq!(pair.pass(), (sent, b"short".to_vec()));
        assert!(!pair.server.has_ended());
        pair.client.end(&mut pair.to_server).unwrap();
        assert_eq!(pair.pass().0, b"");
        assert!(pair.server.has_ended() && !pair.client.has_ended());
        // One direction has ended; the other has not.
        pair.server.write(b"and this", &mut pair.to_client).unwrap();
        pair.server.end(&mut pair.to_client).unwrap();
        assert_eq!(pair.pass().1, b"and this");
        assert!(pair.client.has_ended());
    }
}

#[test]
fn a_short_write_is_one_record() {
    for version in VERSIONS {
        let mut pair = Pair::open(version);
        pair.server.write(b"HTTP/1.1 200 Connection Established\r\n\r\n", &mut pair.to_client).unwrap();
        let len = usize::from(u16::from_be_bytes([pair.to_client[3], pair.to_client[4]]));
        assert_eq!((pair.to_client[0], pair.to_client.len()), (23, 5 + len));
    }
}

#[test]
fn nothing_can_be_sent_before_the_handshake_is_over() {
    let mut pair = Pair::new(&version::TLS13);
    let refused = pair.server.write(b"too early", &mut pair.to_client).unwrap_err();
    assert!(matches!(refused, TlsError::NotOpen), "{refused}");
    assert!(pair.to_client.is_empty());
}

#[test]
fn a_record_that_was_changed_on_its_way_is_an_error_that_the_peer_is_told() {
    let mut pair = Pair::open(&version::TLS13);
    pair.client.write(b"payload", &mut pair.to_server).unwrap();
    *pair.to_server.last_mut().unwrap() ^= 1;
    let mut plain = Vec::new();
    let error = pair.server.read(&mut pair.to_server, &mut plain, &mut pair.to_client).unwrap_err();
    assert!(matches!(error, TlsError::Protocol(rustls::Error::DecryptError)), "{error}");
    assert!(plain.is_empty());
    let told = pair.client.read(&mut pair.to_client, &mut plain, &mut Vec::new()).unwrap_err();
    assert!(
        matches!(told, TlsError::Protocol(rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac))),
        "{told}"
    );
}

proptest! {
    #[test]
    fn bytes_arrive_in_order_however_their_records_are_cut(
        writes in prop::collection::vec(0..40_000usize, 1..6),
        cuts in prop::collection::vec(1..20_000usize, 1..8),
    ) {
        let mut pair = Pair::open(&version::TLS13);
        let mut sent = Vec::new();
        for (number, len) in writes.into_iter().enumerate() {
            let bytes: Vec<u8> = (0..len).map(|place| (place * 31 + number) as u8).collect();
            pair.client.write(&bytes, &mut pair.to_server).unwrap();
            sent.extend_from_slice(&bytes);
        }
        let (mut held, mut arrived) = (Vec::new(), Vec::new());
        let mut cuts = cuts.iter().cycle();
        let mut left = pair.to_server.as_slice();
        while !left.is_empty() {
            let (now, later) = left.split_at((*cuts.next().unwrap()).min(left.len()));
            held.extend_from_slice(now);
            let taken = pair.server.read(&mut held, &mut arrived, &mut pair.to_client).unwrap();
            held.drain(..taken);
            left = later;
        }
        prop_assert!(held.is_empty());
        prop_assert_eq!(arrived, sent);
    }

    #[test]
    fn no_bytes_are_too_wild(wild in prop::collection::vec(any::<u8>(), 0..2_000)) {
        for mut side in [Pair::new(&version::TLS13).server, Pair::open(&version::TLS12).server] {
            let mut records = wild.clone();
            if let Ok(taken) = side.read(&mut records, &mut Vec::new(), &mut Vec::new()) {
                prop_assert!(taken <= records.len());
            }
        }
    }
}
