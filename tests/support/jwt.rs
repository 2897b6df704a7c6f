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
    pub const ALGORITHMS: [&'static str; 5] = ["HS256", "EdDSA", "ES256", "RS256", "PS256"];
    /// Those with a public key.
    pub const PUBLIC: [&'static str; 4] = ["EdDSA", "ES256", "RS256", "PS256"];

    /// A new key in files of `folder` that begin with `name`.
    pub fn new(folder: &Path, name: &str, algorithm: &'static str) -> Self {
        let private = folder.join(format!("{name}.private"));
        let public = folder.join(format!("{name}.public"));
        let (private_name, public_name) = (private.to_str().unwrap(), public.to_str().unwrap());
        let kind: &[&str] = match algorithm {
            "HS256" => &["rand", "-hex", "-out", private_name, "32"],
            "EdDSA" => &["genpkey", "-algorithm", "ed25519", "-out", private_name],
            "ES256" => {
                &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private_name]
            }
            "RS256" | "PS256" => &["genpkey", "-algorithm", "RSA", "-out", private_name],
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

    /// The public key as a JSON Web Key with this name, and `more` members.
    pub fn jwk(&self, kid: &str, more: &Value) -> Value {
        let public = self.key_file.to_str().unwrap();
        let der = openssl(&["pkey", "-pubin", "-in", public, "-outform", "DER"], b"");
        let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut jwk = match self.algorithm {
            "EdDSA" => json!({ "kty": "OKP", "crv": "Ed25519", "x": number(&der[der.len() - 32..]) }),
            "ES256" => {
                let (x, y) = der[der.len() - 64..].split_at(32);
                json!({ "kty": "EC", "crv": "P-256", "x": number(x), "y": number(y) })
            }
            _ => {
                let modulus = openssl(&["rsa", "-pubin", "-in", public, "-modulus", "-noout"], b"");
                let modulus = String::from_utf8(modulus).unwrap();
                let modulus = hex::decode(modulus.trim().strip_prefix("Modulus=").unwrap()).unwrap();
                json!({ "kty": "RSA", "n": number(&modulus), "e": "AQAB" })
            }
        };
        jwk["kid"] = json!(kid);
        for (name, value) in more.as_object().into_iter().flatten() {
            jwk[name] = value.clone();
        }
        jwk
    }

    /// Signs under a header that names the key.
    pub fn sign_as(&self, kid: &str, claims: &Value) -> String {
        self.sign_under(&json!({ "alg": self.algorithm, "kid": kid }), claims)
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
            "ES256" => two_numbers(&openssl(&["dgst", "-sha256", "-sign", private, "-binary"], signed)),
            "PS256" => {
                let options = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"];
                openssl(&[&["dgst", "-sha256", "-sign", private, "-binary"], &options[..]].concat(), signed)
            }
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

/// The two numbers of an ECDSA signature in DER, as a JWS has them: 32 bytes each.
fn two_numbers(der: &[u8]) -> Vec<u8> {
    let mut rest = &der[2..];
    let mut numbers = Vec::new();
    for _ in 0..2 {
        let len = rest[1] as usize;
        let number = &rest[2..2 + len];
        let number = &number[number.len().saturating_sub(32)..];
        numbers.extend(std::iter::repeat_n(0, 32 - number.len()));
        numbers.extend(number);
        rest = &rest[2 + len..];
    }
    numbers
}

fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let output = output_of(Command::new("openssl").args(arguments), input);
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
