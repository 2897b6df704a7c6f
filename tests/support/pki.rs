//! Certificates that a test makes for itself, and TLS as a client speaks it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedCipherSuite,
    SupportedProtocolVersion, version,
};

use super::connect;

/// A certificate authority with its certificate in a file.
pub struct Authority {
    pub issuer: CertifiedIssuer<'static, KeyPair>,
    pub file: PathBuf,
}

/// A certificate and its key, as PEM.
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = folder.join(format!("{name}.pem"));
        std::fs::write(&file, issuer.pem()).unwrap();
        Self { issuer, file }
    }

    /// Issues a certificate that is good for a server and for a client.
    pub fn issue(&self, common_name: &str, alternative_names: &[&str]) -> Pair {
        self.sign(params(common_name, alternative_names))
    }

    /// One whose time is over.
    pub fn issue_expired(&self, name: &str) -> Pair {
        let mut params = params(name, &[name]);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 2, 1);
        self.sign(params)
    }

    /// One that is valid from this year on.
    pub fn issue_from(&self, name: &str, year: i32) -> Pair {
        let mut params = params(name, &[name]);
        params.not_before = rcgen::date_time_ymd(year, 1, 1);
        self.sign(params)
    }

    /// One that ends on this day.
    pub fn issue_until(&self, name: &str, year: i32, month: u8, day: u8) -> Pair {
        let mut params = params(name, &[name]);
        params.not_after = rcgen::date_time_ymd(year, month, day);
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { certificate, key: key.serialize_pem() }
    }
}

fn params(common_name: &str, alternative_names: &[&str]) -> CertificateParams {
    let names: Vec<String> = alternative_names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

impl Pair {
    /// A certificate with its own signature that is a CA's too, as `openssl req -x509` makes it.
    pub fn self_signed(alternative_names: &[&str]) -> Self {
        let names: Vec<String> = alternative_names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }

    /// Writes `NAME.crt` and `NAME.key` into `folder`; their paths.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let paths = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        std::fs::write(&paths.0, &self.certificate).unwrap();
        std::fs::write(&paths.1, &self.key).unwrap();
        paths
    }
}

/// The configuration that makes a relay a node of this name, with a certificate.
pub fn node_section(name: &str, authority: &Authority) -> String {
    node_section_at("127.0.0.1:0", name, authority)
}

/// The same as [`node_section`], with a given address for peers.
pub fn node_section_at(listen: &str, name: &str, authority: &Authority) -> String {
    let (chain, key) = authority.issue(name, &[name]).write(authority.file.parent().unwrap(), name);
    format!(
        "vpn.node = '{name}'\nforward.listen = '{listen}'\n\
         forward.tls = {{ chain = '{}', key = '{}', ca = '{}' }}\n\
         forward.heartbeat = '200ms'\nforward.refresh = '50ms'\nforward.max_age = '1500ms'",
        chain.display(),
        key.display(),
        authority.file.display(),
    )
}

/// A TLS client in the making.
pub struct TlsClient {
    roots: RootCertStore,
    versions: Vec<&'static SupportedProtocolVersion>,
    suites: Vec<SupportedCipherSuite>,
    own: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    resumption: Resumption,
    config: Option<Arc<ClientConfig>>,
}

/// A connection by TLS. Dropped, it is closed without a word.
pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

impl TlsClient {
    pub fn trusting(authority: &Authority) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(authority.issuer.der().clone()).unwrap();
        let versions = vec![&version::TLS12, &version::TLS13];
        let suites = rustls::crypto::ring::ALL_CIPHER_SUITES.to_vec();
        Self { roots, versions, suites, own: None, resumption: Resumption::default(), config: None }
    }

    pub fn only(mut self, version: &'static SupportedProtocolVersion) -> Self {
        self.versions = vec![version];
        self
    }

    /// Allows one cipher suite, and with it one TLS version.
    pub fn only_suite(mut self, suite: SupportedCipherSuite) -> Self {
        self.suites = vec![suite];
        self.only(suite.version())
    }

    pub fn showing(mut self, pair: &Pair) -> Self {
        let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
        self.own = Some((certificate, PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap()));
        self
    }

    /// Every connection is to shake hands in full.
    pub fn without_resumption(mut self) -> Self {
        self.resumption = Resumption::disabled();
        self
    }

    /// The client's configuration, shared by its connections so that a later one can resume an earlier one.
    pub fn config(&mut self) -> Arc<ClientConfig> {
        if let Some(config) = &self.config {
            return Arc::clone(config);
        }
        let provider = rustls::crypto::ring::default_provider();
        let provider = CryptoProvider { cipher_suites: self.suites.clone(), ..provider };
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&self.versions)
            .unwrap()
            .with_root_certificates(self.roots.clone());
        let mut config = match &self.own {
            Some((certificate, key)) => {
                builder.with_client_auth_cert(vec![certificate.clone()], key.clone_key()).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.resumption = self.resumption.clone();
        Arc::clone(self.config.insert(Arc::new(config)))
    }

    /// Connects and shakes hands, wanting `name`.
    pub fn connect(&mut self, address: SocketAddr, name: &str) -> io::Result<TlsStream> {
        self.connect_over(connect(address), name)
    }

    /// Does the TLS handshake on a connection that is open already.
    pub fn connect_over(&mut self, stream: TcpStream, name: &str) -> io::Result<TlsStream> {
        shake_hands_over(&self.config(), stream, name)
    }
}

/// A new connection by TLS, for whoever has the configuration already.
pub fn shake_hands(config: &Arc<ClientConfig>, address: SocketAddr, name: &str) -> io::Result<TlsStream> {
    shake_hands_over(config, connect(address), name)
}

fn shake_hands_over(config: &Arc<ClientConfig>, stream: TcpStream, name: &str) -> io::Result<TlsStream> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Sends `bytes` and reads the head of the reply, and not one byte more; its text.
pub fn ask_by_tls(stream: &mut TlsStream, bytes: &[u8]) -> io::Result<String> {
    stream.write_all(bytes)?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// True if the kernel has TLS. A relay that may load modules loads the kernel's.
pub fn kernel_has_tls() -> bool {
    let modes = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_ulp").unwrap_or_default();
    modes.split_whitespace().any(|mode| mode == "tls")
}

/// Sends so many bytes and reads them back at the same time; digests of both.
pub fn exchange_all(mut tunnel: TlsStream, bytes: usize) -> (u64, u64) {
    let (mut sent, mut read) = (0, 0);
    let (mut sent_digest, mut read_digest) = (0u64, 0u64);
    let digest = |digest: &mut u64, bytes: &[u8]| {
        for byte in bytes {
            *digest = digest.wrapping_mul(0x100_0000_01b3) ^ u64::from(*byte);
        }
    };
    let mut chunk = vec![0; 256 * 1024];
    tunnel.sock.set_nonblocking(true).unwrap();
    while read < bytes {
        let mut moved = false;
        if sent < bytes && !tunnel.conn.wants_write() {
            let part: Vec<u8> = (sent..bytes.min(sent + 50_000)).map(|place| (place / 11) as u8).collect();
            let taken = tunnel.conn.writer().write(&part).unwrap();
            digest(&mut sent_digest, &part[..taken]);
            sent += taken;
        }
        while tunnel.conn.wants_write() {
            match tunnel.conn.write_tls(&mut tunnel.sock) {
                Ok(_) => moved = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        match tunnel.conn.read_tls(&mut tunnel.sock) {
            Ok(0) => panic!("the tunnel ended after {read} bytes"),
            Ok(_) => {
                moved = true;
                tunnel.conn.process_new_packets().unwrap();
                while let Ok(count @ 1..) = tunnel.conn.reader().read(&mut chunk) {
                    digest(&mut read_digest, &chunk[..count]);
                    read += count;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        if !moved {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    (sent_digest, read_digest)
}
