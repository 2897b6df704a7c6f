//! A client's head means the same however the network cuts it, and nothing a client sends breaks the parser.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;
use sluicegate::wire::{ConnectHead, CredentialForm, HEAD_BYTES_MAX, HttpVersion, Token, parse_head};

/// A valid head, what it says, and what the client sends right behind it.
#[derive(Clone, Debug)]
struct Sent {
    version: HttpVersion,
    uuid: String,
    port: u16,
    token: Option<Vec<u8>>,
    form: CredentialForm,
    head: String,
    payload: Vec<u8>,
}

impl Sent {
    fn bytes(&self) -> Vec<u8> {
        [self.head.as_bytes(), &self.payload].concat()
    }

    fn meaning(&self) -> ConnectHead<'_> {
        ConnectHead {
            version: self.version,
            uuid: &self.uuid,
            port: self.port,
            token: self.token.clone().map(Token::new),
            credential_form: self.form,
            len: self.head.len(),
        }
    }
}

fn suffixes() -> Vec<String> {
    ["balena", "vpn", "resin"].map(String::from).to_vec()
}

/// A `Proxy-Authorization` line, or none; the token that a relay must find in it, and its form.
fn credentials() -> impl Strategy<Value = (String, Option<Vec<u8>>, CredentialForm)> {
    let name = "[Pp]roxy-[Aa]uthorization: {0,2}";
    let basic = (name, "(Basic|basic|BASIC) {1,2}", "[a-z]{0,4}", prop::collection::vec(any::<u8>(), 1..24));
    let without_user = (name, "[!-9;-~]{1,24}");
    let bearer = (name, "(Bearer|bEARER) {1,2}", "[!-~]{1,24}");
    prop_oneof![
        Just((String::new(), None, CredentialForm::Absent)),
        basic.prop_map(|(name, scheme, user, token)| {
            let pair = [user.as_bytes(), b":", &token].concat();
            (
                format!("{name}{scheme}{}\r\n", BASE64_STANDARD.encode(pair)),
                Some(token),
                CredentialForm::Password,
            )
        }),
        without_user.prop_map(|(name, token)| {
            let line = format!("{name}Basic {}\r\n", BASE64_STANDARD.encode(&token));
            (line, Some(token.into_bytes()), CredentialForm::NoColon)
        }),
        bearer.prop_map(|(name, scheme, token)| {
            (format!("{name}{scheme}{token}\r\n"), Some(token.into_bytes()), CredentialForm::Bearer)
        }),
    ]
}

fn sent() -> impl Strategy<Value = Sent> {
    let suffix = prop_oneof![Just(String::new()), "\\.([bB]alena|BALENA|vpn|ReSin)".boxed()];
    let version = prop_oneof![Just(HttpVersion::Http10), Just(HttpVersion::Http11)];
    // Values may hold bytes above 127, here those of UTF-8.
    let others = "(X-[A-Za-z0-9-]{0,8}:[ -~\u{80}-\u{2000}]{0,12}\r\n){0,4}";
    let payload = prop::collection::vec(any::<u8>(), 0..40);
    (
        "[0-9a-fA-F]{1,62}",
        suffix,
        prop::option::of(1..=u16::MAX),
        version,
        others,
        credentials(),
        others,
        payload,
    )
        .prop_map(|(uuid, suffix, port, version, before, (line, token, form), after, payload)| {
            let port_text = port.map(|port| format!(":{port}")).unwrap_or_default();
            let version_text = if version == HttpVersion::Http10 { "HTTP/1.0" } else { "HTTP/1.1" };
            let head =
                format!("CONNECT {uuid}{suffix}{port_text} {version_text}\r\n{before}{line}{after}\r\n");
            Sent { version, uuid, port: port.unwrap_or(80), token, form, head, payload }
        })
}

/// Bytes that look like heads and are wrong in ways that matter.
fn near_misses() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::sample::select(vec![
        "CONNECT ",
        "GET ",
        "PRI * HTTP/2.0",
        "ab",
        "ab.balena",
        ".example",
        ":22",
        ":0",
        ":99999",
        "/",
        " ",
        " HTTP/1.0",
        " HTTP/1.1",
        " HTTP/2.0",
        "\r\n",
        "\r",
        "\n",
        "\r\n\r\n",
        "X: y\r\n",
        ":",
        "\t",
        "\0",
        "\u{e9}",
        "\u{16}",
        "Proxy-Authorization: Bearer t\r\n",
        "Proxy-Authorization: Basic !\r\n",
        "Host: a\r\n",
        "Content-Length: 4\r\n",
        "Content-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
    ]);
    prop::collection::vec(pieces, 0..10).prop_map(|pieces| pieces.concat().into_bytes())
}

/// A valid head in which some bytes were replaced, inserted or lost.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let edits = prop::collection::vec((any::<prop::sample::Index>(), 0..3, any::<u8>()), 1..4);
    (sent(), edits).prop_map(|(sent, edits)| {
        let mut bytes = sent.bytes();
        for (place, kind, byte) in edits {
            let at = place.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        bytes
    })
}

/// Parses every prefix of `bytes` that `lengths` names and expects that what was settled stays settled.
fn expect_settled_for_good(bytes: &[u8], lengths: impl Iterator<Item = usize>) -> Result<(), TestCaseError> {
    let suffixes = suffixes();
    let mut settled = None;
    for len in lengths {
        let result = parse_head(&bytes[..len], &suffixes);
        match &settled {
            Some((first, first_len)) => {
                prop_assert_eq!(&result, first, "{} bytes, settled at {}", len, first_len);
            }
            None if result != Ok(None) => settled = Some((result, len)),
            None => {}
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_head_cut_at_any_byte_is_awaited_and_then_means_the_same(sent in sent()) {
        let (bytes, suffixes) = (sent.bytes(), suffixes());
        for len in 0..sent.head.len() {
            prop_assert_eq!(parse_head(&bytes[..len], &suffixes), Ok(None), "after {} bytes", len);
        }
        for len in sent.head.len()..=bytes.len() {
            prop_assert_eq!(parse_head(&bytes[..len], &suffixes), Ok(Some(sent.meaning())));
        }
    }

    #[test]
    fn what_a_mutated_head_comes_to_does_not_change_with_more_bytes(bytes in mutated()) {
        expect_settled_for_good(&bytes, 0..=bytes.len())?;
    }

    #[test]
    fn what_a_near_miss_comes_to_does_not_change_with_more_bytes(bytes in near_misses()) {
        expect_settled_for_good(&bytes, 0..=bytes.len())?;
    }

    #[test]
    fn what_garbage_comes_to_does_not_change_with_more_bytes(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        expect_settled_for_good(&bytes, 0..=bytes.len())?;
    }

    #[test]
    fn a_head_near_the_limit_comes_to_one_end(
        sent in sent(),
        surplus in -300..300_i64,
        bad_byte in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let filler = "f".repeat((HEAD_BYTES_MAX as i64 - sent.head.len() as i64 + surplus) as usize);
        let (line, headers) = sent.head.split_once("\r\n").expect("a head has a request line");
        let mut bytes = format!("{line}\r\nX: {filler}\r\n{headers}").into_bytes();
        bytes.extend_from_slice(&sent.payload);
        if let Some((place, byte)) = bad_byte {
            let at = place.index(bytes.len());
            bytes[at] = byte;
        }
        let near_limit = HEAD_BYTES_MAX.saturating_sub(20).min(bytes.len());
        expect_settled_for_good(&bytes, (0..near_limit).step_by(331).chain(near_limit..=bytes.len()))?;
        if bytes.len() >= HEAD_BYTES_MAX {
            prop_assert_ne!(parse_head(&bytes, &suffixes()), Ok(None), "the limit is the end of waiting");
        }
    }
}
