//! Explains the errors of the TLS library in plain words. Its own texts name its internal types.

use std::fmt::Debug;
use std::io;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error};

/// Explains why TLS with another program failed.
pub fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(problem) => {
            format!("the other side's certificate {}", explain_certificate(problem))
        }
        Error::AlertReceived(alert) => {
            format!("the other side ended it with the alert {}", alert_name(*alert))
        }
        Error::InvalidMessage(_) => "the other side does not speak TLS, or sent a broken record".to_owned(),
        Error::PeerIncompatible(why) => format!("the two sides do not fit together: {}", words(why, " ")),
        Error::PeerMisbehaved(why) => format!("the other side broke the protocol: {}", words(why, " ")),
        Error::InappropriateMessage { got_type, .. } => {
            format!("the other side sent a record out of turn ({})", words(got_type, " "))
        }
        Error::InappropriateHandshakeMessage { got_type, .. } => {
            format!("the other side sent a message out of turn ({})", words(got_type, " "))
        }
        Error::NoCertificatesPresented => "the other side has shown no certificate".to_owned(),
        Error::DecryptError => "a record of the other side cannot be decrypted".to_owned(),
        Error::NoApplicationProtocol => "the two sides have no protocol (ALPN) in common".to_owned(),
        Error::InconsistentKeys(why) => {
            format!("the key does not belong to the certificate ({})", words(why, " "))
        }
        // The library's text in these two is a sentence.
        Error::General(text) => text.clone(),
        Error::Other(other) => other.0.to_string(),
        rest => words(rest, " "),
    }
}

/// Explains an I/O error, which may be one of the TLS library.
pub fn explain_io(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(inner) => explain(inner),
        None => error.to_string(),
    }
}

/// Explains why a certificate is not accepted, as the rest of a sentence that begins with the certificate.
pub fn explain_certificate(problem: &CertificateError) -> String {
    use CertificateError as Problem;
    match problem {
        Problem::UnknownIssuer => "is not signed by a CA that is trusted".to_owned(),
        Problem::Expired => "has expired".to_owned(),
        Problem::ExpiredContext { not_after, .. } => format!("has expired on {}", date(*not_after)),
        Problem::NotValidYet => "is not valid yet".to_owned(),
        Problem::NotValidYetContext { not_before, .. } => {
            format!("is not valid before {}", date(*not_before))
        }
        Problem::NotValidForName => "is for another name".to_owned(),
        Problem::NotValidForNameContext { expected, presented } => {
            format!("is not for {}{}", expected.to_str(), instead(presented))
        }
        Problem::InvalidPurpose => "may not be used for this (its extended key usage)".to_owned(),
        Problem::InvalidPurposeContext { required, .. } => {
            format!("may not be used for {required} (its extended key usage lacks that)")
        }
        Problem::BadEncoding => "is not well-formed; it was cut or changed".to_owned(),
        Problem::BadSignature => {
            "does not fit a signature: the CA that it names has not signed it, or its key is not the other side's".to_owned()
        }
        Problem::UnhandledCriticalExtension => {
            "has a critical extension that this program does not know".to_owned()
        }
        Problem::UnsupportedSignatureAlgorithmContext { .. }
        | Problem::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "has a signature or a key of a kind that is not supported; use ECDSA, Ed25519, or RSA with SHA-256 and at \
             least 2048 bits"
                .to_owned()
        }
        Problem::Other(other) => match other.0.downcast_ref::<webpki::Error>() {
            Some(error) => explain_webpki(error),
            None => format!("is refused: {}", other.0),
        },
        rest => format!("is refused: {}", words(rest, " ")),
    }
}

/// Names that a certificate is for instead, such as ` but for a.example`.
pub fn instead(presented: &[String]) -> String {
    // The library writes them as DnsName("a.example").
    let bare = |name: &String| match name.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"')) {
        Some((name, _)) => name.to_owned(),
        None => name.clone(),
    };
    let names: Vec<String> = presented.iter().take(NAMES_SHOWN_MAX).map(bare).collect();
    match names.as_slice() {
        [] => " nor for any name: it has no subjectAltName (`openssl req -x509 -addext subjectAltName=DNS:NAME` gives \
               one), and a common name does not count"
            .to_owned(),
        names => format!(" but for {}", names.join(", ")),
    }
}

/// A time in a certificate, in UTC.
pub fn date_of(time: SystemTime) -> String {
    let known = Timestamp::try_from(time).map(|time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string());
    known.unwrap_or_else(|_| "a time beyond all calendars".to_owned())
}

fn date(time: UnixTime) -> String {
    date_of(SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs()))
}

fn explain_webpki(error: &webpki::Error) -> String {
    use webpki::Error as Problem;
    match error {
        Problem::CaUsedAsEndEntity => {
            "is a CA's own certificate (CA:TRUE), which a server or a client may show only where it is trusted \
             itself; make one with basicConstraints=CA:FALSE, or name its file as the CA's"
                .to_owned()
        }
        Problem::EndEntityUsedAsCa => "is signed by one that is no CA's (CA:FALSE)".to_owned(),
        Problem::UnsupportedCertVersion => {
            "is of X.509 version 1, which has no alternative names and no extensions; make one of version 3, such as \
             by `openssl req -x509 -addext subjectAltName=DNS:NAME`"
                .to_owned()
        }
        Problem::BadDer | Problem::BadDerTime | Problem::TrailingData(_) => {
            "is not well-formed; it was cut or changed".to_owned()
        }
        Problem::PathLenConstraintViolated => "has more CAs above it than one of them allows".to_owned(),
        Problem::NameConstraintViolation => "has a name that its CA may not sign for".to_owned(),
        Problem::InvalidCertValidity => "ends before it begins".to_owned(),
        rest => format!("is refused: {}", words(rest, " ")),
    }
}

/// The name of an alert as RFC 8446 has it, such as `unknown_ca`.
fn alert_name(alert: AlertDescription) -> String {
    words(alert, "_").to_lowercase()
}

/// Makes words of the name of a variant, such as "no cipher suites in common" of `NoCipherSuitesInCommon`. What the
/// variant holds is left out.
fn words(variant: impl Debug, between: &str) -> String {
    let name = format!("{variant:?}");
    let name: Vec<char> = name.chars().take_while(char::is_ascii_alphanumeric).collect();
    let is_upper = |place: usize| name.get(place).is_some_and(char::is_ascii_uppercase);
    let mut text = String::with_capacity(2 * name.len());
    for (place, letter) in name.iter().enumerate() {
        let after_upper = place > 0 && is_upper(place - 1);
        let before_upper = is_upper(place + 1);
        let before_lower = name.get(place + 1).is_some_and(char::is_ascii_lowercase);
        if place > 0 && is_upper(place) && (!after_upper || before_lower) {
            text.push_str(between);
        }
        let is_acronym = is_upper(place) && ((after_upper && !before_lower) || before_upper);
        text.push(if is_acronym { *letter } else { letter.to_ascii_lowercase() });
    }
    text
}

/// Number of names that a text lists. Some certificates have hundreds.
const NAMES_SHOWN_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{OtherError, PeerIncompatible};

    use super::*;

    #[test]
    fn a_variant_becomes_words() {
        assert_eq!(words(PeerIncompatible::NoCipherSuitesInCommon, " "), "no cipher suites in common");
        assert_eq!(words(AlertDescription::UnknownPSKIdentity, "_"), "unknown_PSK_identity");
        assert_eq!(alert_name(AlertDescription::UnknownCA), "unknown_ca");
        assert_eq!(words(Some("x"), " "), "some");
    }

    #[test]
    fn no_text_shows_a_type_of_the_library() {
        let other = |error| CertificateError::Other(OtherError(Arc::new(error)));
        let invalid = Error::InvalidCertificate;
        for (error, variant) in [
            (Error::AlertReceived(AlertDescription::BadRecordMac), "BadRecordMac"),
            (Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered), "Tls12NotOffered"),
            (Error::HandshakeNotComplete, "HandshakeNotComplete"),
            (invalid(CertificateError::UnknownIssuer), "UnknownIssuer"),
            (invalid(CertificateError::BadSignature), "BadSignature"),
            (invalid(CertificateError::ApplicationVerificationFailure), "ApplicationVerificationFailure"),
            (invalid(other(webpki::Error::CaUsedAsEndEntity)), "CaUsedAsEndEntity"),
            (invalid(other(webpki::Error::UnsupportedCertVersion)), "UnsupportedCertVersion"),
            (invalid(other(webpki::Error::MaximumPathDepthExceeded)), "MaximumPathDepthExceeded"),
        ] {
            assert!(format!("{error:?}").contains(variant), "the variant's name is right: {error:?}");
            let text = explain(&error);
            assert!(!text.contains(variant) && !text.contains("OtherError"), "{text}");
        }
    }
}
