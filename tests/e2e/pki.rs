//! The test's certificate authority: one for the load balancer, the VPN servers and the devices.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
    /// Its certificate, which clients are to trust.
    pub file: PathBuf,
}

/// The holder of a certificate.
pub enum Holder<'a> {
    /// One that is dialled under these names.
    Server(&'a [&'a str]),
    /// One that dials.
    Client,
    /// One that is dialled under these names, and dials others.
    Both(&'a [&'a str]),
}

/// Files with a certificate and its key.
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Both, as HAProxy wants them.
    pub both: PathBuf,
}

impl Authority {
    pub fn new(folder: &Path) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "the test's authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = folder.join("ca.pem");
        std::fs::write(&file, issuer.pem()).unwrap();
        Self { issuer, folder: folder.to_owned(), file }
    }

    pub fn issue(&self, common_name: &str, holder: &Holder) -> Pair {
        let (server, client) = (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
        let (names, usages) = match holder {
            Holder::Server(names) => (*names, vec![server]),
            Holder::Client => (&[][..], vec![client]),
            Holder::Both(names) => (*names, vec![server, client]),
        };
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let write = |extension: &str, text: &str| {
            let file = self.folder.join(format!("{common_name}.{extension}"));
            std::fs::write(&file, text).unwrap();
            file
        };
        let key = key.serialize_pem();
        Pair {
            both: write("both.pem", &format!("{certificate}{key}")),
            certificate: write("pem", &certificate),
            key: write("key", &key),
        }
    }
}
