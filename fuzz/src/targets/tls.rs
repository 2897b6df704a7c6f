//! TLS records from a client, a server, and within an open connection.

use std::cell::OnceCell;
use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use sluicegate::wire::{Sealed, TlsConnection, TlsError};

use super::{KIB, Memory, Target};
use crate::input::Input;

pub const TLS_RECORDS: Target = Target {
    name: "tls_records",
    run: tls_records,
    seeds,
    words: &[
        "\x16\x03\x01",
        "\x16\x03\x03",
        "\x17\x03\x03",
        "\x15\x03\x03\0\x02\x01\0",
        "\x14\x03\x03\0\x01\x01",
        "\0\0",
    ],
    bytes_max: 20 * KIB,
    // Two connections with their keys and buffers; a handshake with its certificates.
    memory: Memory { fixed: 768 * KIB, per_byte: 24 },
};

const NAME: &str = "relay.example";

struct Configs {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Configs {
    fn new() -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a certificate");
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).expect("a certificate");
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a key that belongs to it");
        // Nothing is kept from one input to the next.
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.resumption = rustls::client::Resumption::disabled();
        Self { server: Arc::new(server), client: Arc::new(client) }
    }

    fn server(&self) -> TlsConnection {
        TlsConnection::accept(Arc::clone(&self.server)).expect("a server")
    }

    fn client(&self) -> TlsConnection {
        let name = ServerName::try_from(NAME).expect("a name");
        TlsConnection::connect(Arc::clone(&self.client), name).expect("a client")
    }
}

thread_local!(static CONFIGS: OnceCell<Configs> = const { OnceCell::new() });

fn with_configs<T>(act: impl FnOnce(&Configs) -> T) -> T {
    CONFIGS.with(|configs| act(configs.get_or_init(Configs::new)))
}

fn seeds() -> Vec<Vec<u8>> {
    with_configs(|configs| {
        let mut client = configs.client();
        let (_, _, hello) = receive(&mut client, b"");
        let (_, _, answer) = receive(&mut configs.server(), &hello);
        let cuts = [0; 6];
        vec![
            [&[0], &cuts[..], &hello].concat(),
            [&[1], &cuts[..], &answer].concat(),
            [&[7], &cuts[..], b"some bytes that are sealed"].concat(),
        ]
    })
}

fn tls_records(input: &[u8]) {
    with_configs(|configs| {
        let mut input = Input(input);
        let mode = input.byte() % 8;
        let places = input.take(6);
        let bytes = input.0;
        let pieces = Input(places).cut(bytes);
        match mode {
            0..=4 => check_server(configs, bytes, &pieces),
            5 | 6 => check_client(configs, &pieces),
            _ => check_open(configs, bytes, places),
        }
    });
}

/// Outcome of receiving, the plain bytes, and the answer.
fn receive(connection: &mut TlsConnection, bytes: &[u8]) -> (Result<(), TlsError>, Vec<u8>, Vec<u8>) {
    let (mut plain, mut answer) = (Vec::new(), Sealed::default());
    let outcome = connection.receive(bytes, &mut plain, &mut answer);
    (outcome, plain, answer.bytes().to_vec())
}

/// A server says the same of any bytes, however they are cut, and as rustls' own buffered connection does.
fn check_server(configs: &Configs, bytes: &[u8], pieces: &[&[u8]]) {
    let mut whole = configs.server();
    let (outcome, plain, _) = receive(&mut whole, bytes);
    assert!(plain.is_empty() && !whole.is_open(), "no handshake is over without its client's last message");
    assert!(whole.rest().len() <= bytes.len());
    let mut cut = configs.server();
    let mut cut_outcome = Ok(());
    for piece in pieces {
        cut_outcome = receive(&mut cut, piece).0;
        if cut_outcome.is_err() {
            assert!(matches!(receive(&mut cut, piece).0, Err(TlsError::Failed)), "nothing follows an error");
            break;
        }
    }
    let shown = |outcome: &Result<(), TlsError>| outcome.as_ref().err().map(ToString::to_string);
    assert_eq!(shown(&cut_outcome), shown(&outcome), "in pieces");

    let mut buffered = rustls::ServerConnection::new(Arc::clone(&configs.server)).expect("a server");
    let mut left = bytes;
    let theirs = loop {
        // It has a bound of its own, which says nothing of the protocol.
        let Ok(read) = buffered.read_tls(&mut left) else { return };
        if let Err(error) = buffered.process_new_packets() {
            break Some(TlsError::Protocol(error).to_string());
        }
        if read == 0 {
            break None;
        }
    };
    assert_eq!(shown(&outcome), theirs, "as rustls itself");
}

fn check_client(configs: &Configs, pieces: &[&[u8]]) {
    let mut client = configs.client();
    let (started, _, hello) = receive(&mut client, b"");
    assert!(started.is_ok() && hello.starts_with(b"\x16\x03\x01"));
    for piece in pieces {
        let (outcome, plain, answer) = receive(&mut client, piece);
        assert!(plain.is_empty() && !client.is_open(), "nobody can answer for the server");
        if outcome.is_err() {
            // The alert, or nothing. Once there are keys, it is sealed, behind a change_cipher_spec for middleboxes.
            assert!(
                answer.is_empty() || answer[0] == 21 || answer.starts_with(b"\x14\x03\x03\0\x01\x01\x17")
            );
            return;
        }
    }
}

/// Bytes go through an open connection unchanged; a record that was changed on its way ends it, and gives nothing.
fn check_open(configs: &Configs, bytes: &[u8], places: &[u8]) {
    let (mut client, mut server) = (configs.client(), configs.server());
    let (_, _, mut to_server) = receive(&mut client, b"");
    while !(client.is_open() && server.is_open()) {
        let (outcome, _, to_client) = receive(&mut server, &to_server);
        outcome.expect("a handshake");
        let (outcome, _, answer) = receive(&mut client, &to_client);
        outcome.expect("a handshake");
        to_server = answer;
    }
    let mut sealed = Sealed::default();
    client.write(bytes, &mut sealed).expect("an open connection");
    let mut records = sealed.bytes().to_vec();
    let [at_low, at_high, change, ..] = *places else { return };
    let at = usize::from(u16::from_le_bytes([at_low, at_high])) % records.len().max(1);
    if change == 0 || records.is_empty() {
        let (outcome, plain, _) = receive(&mut server, &records);
        assert!(outcome.is_ok() && plain == bytes && server.rest().is_empty());
        let mut end = Sealed::default();
        client.end(&mut end).expect("an open connection");
        assert!(receive(&mut server, end.bytes()).0.is_ok() && server.has_ended());
        return;
    }
    records[at] ^= change;
    let (outcome, plain, _) = receive(&mut server, &records);
    assert!(bytes.starts_with(&plain), "what was opened is genuine");
    assert!(
        outcome.is_err() || plain.len() < bytes.len() || is_outer(at, &records),
        "a changed record is not taken"
    );
}

/// True for a byte outside of what protects a record: its version, which nobody reads.
fn is_outer(at: usize, records: &[u8]) -> bool {
    let mut begin = 0;
    while begin + 5 <= records.len() {
        let end = begin + 5 + usize::from(u16::from_be_bytes([records[begin + 3], records[begin + 4]]));
        if at < end {
            return at < begin + 5;
        }
        begin = end;
    }
    true
}
