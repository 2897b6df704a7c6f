//! PEM files of certificates and keys.

use std::cell::OnceCell;
use std::path::PathBuf;

use sluicegate::wire::{certificate_name, read_certificates, read_private_key};

use super::tokens::folder;
use super::{KIB, Memory, Target};

pub const PEM_FILE: Target = Target {
    name: "pem_file",
    run: pem_file,
    seeds,
    words: &[
        "-----BEGIN CERTIFICATE-----\n",
        "-----END CERTIFICATE-----\n",
        "-----BEGIN PRIVATE KEY-----\n",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\n",
        "Proc-Type: 4,ENCRYPTED\n",
        "\n",
        "AA==",
    ],
    bytes_max: 4 * KIB,
    memory: Memory { fixed: 24 * KIB, per_byte: 60 },
};

fn seeds() -> Vec<Vec<u8>> {
    let made = rcgen::generate_simple_self_signed(["relay.example".to_owned()]).expect("a certificate");
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    vec![[certificate.clone(), key.clone()].concat().into(), certificate.into(), key.into()]
}

fn pem_file(input: &[u8]) {
    thread_local!(static PATH: OnceCell<PathBuf> = const { OnceCell::new() });
    PATH.with(|path| {
        let path = path.get_or_init(|| folder().join("pem"));
        std::fs::write(path, input).expect("a file in memory");
        match read_certificates(path) {
            Ok(certificates) => {
                assert!(!certificates.is_empty());
                certificates.iter().for_each(|certificate| _ = certificate_name(certificate));
            }
            Err(error) => check(&error.to_string()),
        }
        if let Err(error) = read_private_key(path) {
            check(&error.to_string());
        }
    });
}

fn check(message: &str) {
    assert!(!message.is_empty() && !message.contains("cannot be read"), "{message:?}");
}
