//! Session tokens as a login would make them, signed by openssl: not by what the relay checks them with.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::output_of;

/// Whoever logs people in, with a key in a folder.
pub struct Signer {
    pub algorithm: &'static str,
    /// The file for the relay: the secret, or the public key.
    pub key_file: PathBuf,
    private: PathBuf,
}

impl Signer {
    pub const ALGORITHMS: [&'static str; 3] = ["HS256", "EdDSA", "RS256"];

    /// A new key in files of `folder` that begin with `name`.
    pub fn new(folder: &Path, name: &str, algorithm: &'static str) -> Self {
        let private = folder.join(format!("{name}.private"));
        let public = folder.join(format!("{name}.public"));
        let (private_name, public_name) = (private.to_str().unwrap(), public.to_str().unwrap());
        let kind: &[&str] = match algorithm {
            "HS256" => &["rand", "-hex", "-out", private_name, "32"],
            "EdDSA" => &["genpkey", "-algorithm", "ed25519", "-out", private_name],
            "RS256" => &["genpkey", "-algorithm", "RSA", "-out", private_name],
            other => panic!("no {other} here"),
        };
        openssl(kind, b"");
        std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o600)).unwrap();
        let key_file = if algorithm == "HS256" {
            private.clone()
        } else {
            openssl(&["pkey", "-in", private_name, "-pubout", "-out", public_name], b"");
            public
        };
        Self { algorithm, key_file, private }
    }

    /// Whoever takes what is in `file` for a secret.
    pub fn with_secret(file: &Path) -> Self {
        Self { algorithm: "HS256", key_file: file.to_owned(), private: file.to_owned() }
    }

    /// The signer as an element of `authz.tokens`, with `more` keys of it.
    pub fn entry(&self, more: &str) -> String {
        format!("{{ algorithm = '{}', key_file = '{}', {more} }}", self.algorithm, self.key_file.display())
    }

    pub fn sign(&self, claims: &Value) -> String {
        self.sign_under(&json!({ "alg": self.algorithm, "typ": "JWT" }), claims)
    }

    /// Signs like [`Signer::sign`], under a header of the test's choice.
    pub fn sign_under(&self, header: &Value, claims: &Value) -> String {
        let signed = unsigned(header, claims);
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(self.signature(signed.as_bytes())))
    }

    /// The secret that signs with HS256.
    pub fn secret(&self) -> String {
        std::fs::read_to_string(&self.private).unwrap().trim().to_owned()
    }

    fn signature(&self, signed: &[u8]) -> Vec<u8> {
        let private = self.private.to_str().unwrap();
        match self.algorithm {
            "HS256" => {
                let key = format!("hexkey:{}", hex::encode(self.secret()));
                openssl(&["dgst", "-sha256", "-mac", "HMAC", "-macopt", &key, "-binary"], signed)
            }
            "RS256" => openssl(&["dgst", "-sha256", "-sign", private, "-binary"], signed),
            _ => {
                // It wants to know how long the message is before it reads it.
                let message = self.private.with_extension("message");
                std::fs::write(&message, signed).unwrap();
                let message = message.to_str().unwrap();
                openssl(&["pkeyutl", "-sign", "-inkey", private, "-rawin", "-in", message], b"")
            }
        }
    }
}

/// Header and claims of a token, without a signature.
pub fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// So many seconds from now, as a claim has it.
pub fn in_seconds(seconds: i64) -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 + seconds
}

fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let output = output_of(Command::new("openssl").args(arguments), input);
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
