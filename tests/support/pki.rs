//! Certificates that a test makes for itself, and TLS as a client speaks it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion, version};

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

    /// For a server or a client, whichever it is used as.
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
    /// Writes `NAME.crt` and `NAME.key` into `folder`; their paths.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let paths = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        std::fs::write(&paths.0, &self.certificate).unwrap();
        std::fs::write(&paths.1, &self.key).unwrap();
        paths
    }
}

/// What makes a node with this name of a relay, with a certificate for it.
pub fn node_section(name: &str, authority: &Authority) -> String {
    let (chain, key) = authority.issue(name, &[name]).write(authority.file.parent().unwrap(), name);
    format!(
        "vpn.node = '{name}'\nforward.listen = '127.0.0.1:0'\n\
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
        Self { roots, versions, own: None, resumption: Resumption::default(), config: None }
    }

    pub fn only(mut self, version: &'static SupportedProtocolVersion) -> Self {
        self.versions = vec![version];
        self
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

    /// The same from connection to connection, so that a later one can go on from an earlier.
    pub fn config(&mut self) -> Arc<ClientConfig> {
        if let Some(config) = &self.config {
            return Arc::clone(config);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
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

    /// The same where the connection is there already.
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
