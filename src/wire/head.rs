//! Parses the head of a CONNECT request into a device, a port and a token.
//!
//! It does not check whether the device exists or the token is valid; the decision does. A wrong head gives the
//! same error however its bytes arrive: the first byte that makes it invalid decides, and later bytes never change
//! the error.

use super::credentials::{CredentialForm, ParsedCredentials, TOKEN_BYTES_MAX, Token, parse_credentials};
use super::framing::check_framing;
use super::{HttpVersion, Reply};

/// Bytes of a head at most; a longer one is refused with 431.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;

/// A complete, valid head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectHead<'a> {
    pub version: HttpVersion,
    /// The hex digits before the suffix, as sent.
    pub uuid: &'a str,
    pub port: u16,
    /// `None` where the head carries no usable `Proxy-Authorization`.
    pub token: Option<Token>,
    pub credential_form: CredentialForm,
    /// Bytes of the head, its empty line included; the bytes after it are the device's.
    pub len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("{detail}")]
    Malformed { version: HttpVersion, detail: &'static str },
    #[error("the method is not CONNECT")]
    Method { version: HttpVersion },
    #[error(
        "the head is longer than {HEAD_BYTES_MAX} bytes, has more than {HEADERS_MAX} headers, or its token more than \
         {TOKEN_BYTES_MAX} bytes"
    )]
    TooLarge { version: HttpVersion },
}

impl HeadError {
    pub const fn reply(self) -> Reply {
        match self {
            Self::Malformed { .. } => Reply::Malformed,
            Self::Method { .. } => Reply::Method,
            Self::TooLarge { .. } => Reply::HeadTooLarge,
        }
    }

    /// The HTTP version for the reply.
    pub const fn version(self) -> HttpVersion {
        match self {
            Self::Malformed { version, .. } | Self::Method { version } | Self::TooLarge { version } => {
                version
            }
        }
    }
}

/// Parses a head; `Ok(None)` while it is not complete. Returns an error as soon as the method, the target or a
/// forbidden byte makes it invalid. Checks the fields, which may contradict each other, only at the end of the head.
///
/// The value of a field that is not parsed may hold bytes above 127, which mean nothing here (RFC 9110, section 5.5).
///
/// It parses from the first byte at each call. That is quadratic for a client that sends byte by byte;
/// [`HEAD_BYTES_MAX`] limits it.
pub fn parse_head<'a>(bytes: &'a [u8], suffixes: &[String]) -> Result<Option<ConnectHead<'a>>, HeadError> {
    let window = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
    // Of the request line, parse the bytes before a bad byte first: they may be wrong already.
    let bad_byte = request_line(window).iter().position(|&byte| byte == 0 || !byte.is_ascii());
    let text = &window[..bad_byte.unwrap_or(window.len())];

    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(text);
    let version = match request.version {
        Some(0) => HttpVersion::Http10,
        _ => HttpVersion::Http11,
    };
    let malformed = |detail| HeadError::Malformed { version, detail };

    // The version is last in the request line: once it is read, so are the method and the target.
    let target = match (request.version, request.method, request.path) {
        (Some(_), Some("CONNECT"), Some(path)) => Some(parse_target(path, suffixes).map_err(malformed)?),
        (Some(_), ..) => return Err(HeadError::Method { version }),
        (None, ..) => None,
    };
    match parsed {
        Ok(httparse::Status::Complete(len)) => {
            let ConnectTarget { uuid, port } = target.expect("a complete head has a request line");
            check_framing(request.headers).map_err(malformed)?;
            let ParsedCredentials { token, form } = parse_credentials(request.headers).map_err(malformed)?;
            if token.as_ref().is_some_and(|token| token.as_bytes().len() > TOKEN_BYTES_MAX) {
                return Err(HeadError::TooLarge { version });
            }
            Ok(Some(ConnectHead { version, uuid, port, token, credential_form: form, len }))
        }
        Ok(httparse::Status::Partial) if bad_byte.is_some() => {
            Err(malformed("the request line holds a NUL or a byte that is not ASCII"))
        }
        Ok(httparse::Status::Partial) if window.len() == HEAD_BYTES_MAX => {
            Err(HeadError::TooLarge { version })
        }
        Ok(httparse::Status::Partial) => Ok(None),
        Err(httparse::Error::TooManyHeaders) => Err(HeadError::TooLarge { version }),
        Err(error) => Err(malformed(match error {
            httparse::Error::Version => "the request is not HTTP/1.0 or HTTP/1.1",
            httparse::Error::HeaderName => "a header's name holds a byte that it may not",
            httparse::Error::HeaderValue => "a header's value holds a byte that it may not",
            httparse::Error::NewLine => "a line does not end in CR LF",
            _ => "the request line is not that of an HTTP request",
        })),
    }
}

/// The bytes up to the end of the request line, with the empty lines that may precede it (RFC 9112, section 2.2).
fn request_line(head: &[u8]) -> &[u8] {
    let begin = head.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(head.len());
    let end = head[begin..].iter().position(|&byte| byte == b'\n').map_or(head.len(), |end| begin + end);
    &head[..end]
}

/// The device and port that a CONNECT names.
struct ConnectTarget<'a> {
    uuid: &'a str,
    port: u16,
}

/// Parses `<uuid>[.<suffix>][:port]`. The decision checks the length of the uuid.
fn parse_target<'a>(text: &'a str, suffixes: &[String]) -> Result<ConnectTarget<'a>, &'static str> {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, parse_port(port).ok_or("the target's port is not one of 1 to 65535")?),
        None => (text, PORT_DEFAULT),
    };
    let uuid = match host.split_once('.') {
        Some((uuid, suffix)) if suffixes.iter().any(|known| known.eq_ignore_ascii_case(suffix)) => uuid,
        Some(_) => return Err("the target's suffix is not one of `listen.suffixes`"),
        None => host,
    };
    if uuid.is_empty() || !uuid.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err("the target does not name a device by hex digits");
    }
    Ok(ConnectTarget { uuid, port })
}

fn parse_port(text: &str) -> Option<u16> {
    // `parse` alone would accept a plus sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|&port| port != 0)
}

/// The port of a target that names none.
const PORT_DEFAULT: u16 = 80;

/// Header lines of a head at most. Clients send between one and ten. The table for them takes 2 KiB of an engine
/// thread's stack.
pub(super) const HEADERS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0123456789abcdef0123456789ABCDEF";

    fn suffixes() -> Vec<String> {
        ["balena", "vpn", "resin"].map(String::from).to_vec()
    }

    fn parse(head: &str) -> Result<Option<ConnectHead<'_>>, HeadError> {
        parse_head(head.as_bytes(), &suffixes())
    }

    fn complete(head: &str) -> ConnectHead<'_> {
        parse(head).unwrap().unwrap_or_else(|| panic!("{head:?} is complete"))
    }

    #[test]
    fn the_head_that_the_balena_cli_sends_is_understood() {
        let head = format!(
            "CONNECT {UUID}.balena:22222 HTTP/1.0\r\nProxy-Authorization: Basic dXNlcjp0b2tlbg==\r\n\r\n"
        );
        let sent = format!("{head}SSH-2.0-client\r\n\0\u{ff}");
        let expected = ConnectHead {
            version: HttpVersion::Http10,
            uuid: UUID,
            port: 22222,
            token: Some(Token::new(b"token".to_vec())),
            credential_form: CredentialForm::Password,
            len: head.len(),
        };
        assert_eq!(complete(&sent), expected);
    }

    #[test]
    fn a_target_may_leave_out_its_suffix_and_its_port() {
        for (target, port) in [
            (UUID.to_string(), 80),
            (format!("{UUID}:1"), 1),
            (format!("{UUID}.VPN"), 80),
            (format!("{UUID}.ReSiN:65535"), 65535),
            (format!("{UUID}.balena:0022"), 22),
        ] {
            let head = format!("CONNECT {target} HTTP/1.1\r\n\r\n");
            let head = complete(&head);
            assert_eq!((head.uuid, head.port, &head.token), (UUID, port, &None), "{target}");
        }
    }

    #[test]
    fn a_uuid_of_an_impossible_length_is_left_to_the_decision() {
        assert_eq!(complete("CONNECT ab.balena HTTP/1.1\r\n\r\n").uuid, "ab");
    }

    #[test]
    fn a_target_that_is_not_a_device_is_malformed() {
        for (target, expected) in [
            ("ab.example", "suffix"),
            ("ab.", "suffix"),
            ("ab.balena.", "suffix"),
            ("ab.balena.balena", "suffix"),
            ("example:22", "hex"),
            (".balena:22", "hex"),
            (":22", "hex"),
            ("/", "hex"),
            ("http://ab.balena/", "port"),
            ("ab.balena:", "port"),
            ("ab.balena:0", "port"),
            ("ab.balena:65536", "port"),
            ("ab.balena:+22", "port"),
            ("ab.balena:-1", "port"),
            ("ab.balena:22:22", "port"),
            ("[::1]:22", "port"),
        ] {
            let head = format!("CONNECT {target} HTTP/1.0\r\n");
            let Err(HeadError::Malformed { version: HttpVersion::Http10, detail }) = parse(&head) else {
                panic!("{target}: {:?}", parse(&head));
            };
            assert!(detail.contains(expected), "{target}: {detail}");
        }
    }

    #[test]
    fn a_token_that_no_node_could_hand_on_is_refused_by_the_first_one() {
        for (len, fits) in [(TOKEN_BYTES_MAX, true), (TOKEN_BYTES_MAX + 1, false)] {
            let token = "t".repeat(len);
            let basic = Token::new(token.clone().into_bytes()).basic();
            for credentials in [format!("Bearer {token}"), String::from_utf8(basic.to_vec()).unwrap()] {
                let head = format!("CONNECT {UUID} HTTP/1.1\r\nProxy-Authorization: {credentials}\r\n\r\n");
                let parsed = parse(&head);
                assert_eq!(parsed.is_ok(), fits, "{parsed:?}");
                assert!(fits || matches!(parsed, Err(HeadError::TooLarge { .. })));
            }
        }
    }

    #[test]
    fn two_credentials_are_malformed_rather_than_chosen_between() {
        let head = format!(
            "CONNECT {UUID} HTTP/1.1\r\nProxy-Authorization: Bearer a\r\nproxy-authorization: Bearer a\r\n\r\n"
        );
        let detail = "the head has more than one Proxy-Authorization";
        assert_eq!(parse(&head), Err(HeadError::Malformed { version: HttpVersion::Http11, detail }));
    }

    #[test]
    fn another_method_is_an_error_at_the_request_line() {
        for method in ["GET", "POST", "connect", "CONNECTX", "OPTIONS"] {
            let head = format!("{method} / HTTP/1.0\r\n");
            assert_eq!(parse(&head), Err(HeadError::Method { version: HttpVersion::Http10 }), "{method}");
        }
        assert_eq!(parse("GET / HTT"), Ok(None));
    }

    #[test]
    fn other_protocols_are_malformed_at_their_first_bytes() {
        for bytes in
            [&b"\x16\x03\x01"[..], b"PRI * HTTP/2", b"SSH-2.0-OpenSSH_9.2p1\r", b"\x05\x01\x00", b"\x00"]
        {
            let error = parse_head(bytes, &suffixes()).unwrap_err();
            assert_eq!(
                (error.reply(), error.version()),
                (Reply::Malformed, HttpVersion::Http11),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn a_nul_or_a_non_ascii_byte_is_refused_where_it_may_not_stand() {
        let line = ["", "CONN", "CONNECT ab", "CONNECT ab HTTP/1", "\r\n\r\nCONNECT ab"];
        let name = ["CONNECT ab HTTP/1.1\r\n", "CONNECT ab HTTP/1.1\r\nX"];
        let value = ["CONNECT ab HTTP/1.1\r\nX: y"];
        let in_places = |places: &[&'static str], bad: &[u8]| {
            places.iter().flat_map(|place| bad.iter().map(move |bad| (*place, *bad))).collect::<Vec<_>>()
        };
        let refused = [
            in_places(&line, &[0, 0x80, 0xff]),
            in_places(&name, &[0, 0x80, 0xff]),
            in_places(&value, &[0, 0x7f]),
        ];
        for (place, bad) in refused.concat() {
            let mut head = place.as_bytes().to_vec();
            assert_eq!(parse_head(&head, &suffixes()), Ok(None), "{place}");
            head.push(bad);
            let error = parse_head(&head, &suffixes()).unwrap_err();
            assert_eq!(error.reply(), Reply::Malformed, "{bad} behind {place}");
        }
    }

    #[test]
    fn the_value_of_a_field_that_nobody_reads_may_hold_any_text() {
        for value in
            ["Mac OS/Версия (arm64)".as_bytes(), "São Paulo".as_bytes(), b"S\xe3o Paulo", b"\x80\xff\t"]
        {
            let start = format!("CONNECT {UUID}.balena:22 HTTP/1.1\r\nUser-Agent: ");
            let head = [start.as_bytes(), value, b"\r\nProxy-Authorization: Bearer token\r\n\r\n"].concat();
            let parsed = parse_head(&head, &suffixes()).unwrap().expect("it is complete");
            assert_eq!(parsed.token, Some(Token::new(b"token".to_vec())));
            assert_eq!(parsed.len, head.len());
        }
    }

    #[test]
    fn a_field_that_is_read_holds_ascii_alone() {
        for field in
            [&b"Proxy-Authorization: Bearer tok\xe9n"[..], b"Host: \xc3\xa9", b"Content-Length: \xb2"]
        {
            let head = [b"CONNECT ab HTTP/1.1\r\n", field, b"\r\n\r\n"].concat();
            let error = parse_head(&head, &suffixes()).unwrap_err();
            assert_eq!(error.reply(), Reply::Malformed, "{field:?}");
        }
    }

    #[test]
    fn a_head_whose_framing_contradicts_itself_is_malformed_at_its_end() {
        for field in ["Host: other", "Content-Length: abc", "Content-Length: 4\r\nContent-Length: 5"] {
            let head = format!("CONNECT {UUID} HTTP/1.0\r\nHost: {UUID}\r\n{field}\r\n");
            assert_eq!(parse(&head), Ok(None), "{field}");
            let error = parse(&format!("{head}\r\nBODY")).unwrap_err();
            assert_eq!((error.reply(), error.version()), (Reply::Malformed, HttpVersion::Http10), "{field}");
        }
    }

    #[test]
    fn a_head_may_fill_the_limit_and_not_pass_it() {
        let head_of = |len: usize| {
            let start = format!("CONNECT {UUID} HTTP/1.0\r\nX: ");
            let filler = "x".repeat(len - start.len() - 4);
            format!("{start}{filler}\r\n\r\n")
        };
        assert_eq!(complete(&head_of(HEAD_BYTES_MAX)).len, HEAD_BYTES_MAX);
        let too_large = Err(HeadError::TooLarge { version: HttpVersion::Http10 });
        assert_eq!(parse(&head_of(HEAD_BYTES_MAX + 1)), too_large);
        assert_eq!(parse(&head_of(HEAD_BYTES_MAX + 1)[..HEAD_BYTES_MAX]), too_large);
        assert_eq!(parse(&head_of(HEAD_BYTES_MAX + 1)[..HEAD_BYTES_MAX - 1]), Ok(None));
    }

    #[test]
    fn a_head_with_too_many_headers_is_too_large() {
        let head_of = |headers| format!("CONNECT {UUID} HTTP/1.0\r\n{}\r\n", "X: y\r\n".repeat(headers));
        assert!(complete(&head_of(HEADERS_MAX)).token.is_none());
        let too_large = Err(HeadError::TooLarge { version: HttpVersion::Http10 });
        assert_eq!(parse(&head_of(HEADERS_MAX + 1)), too_large);
    }

    #[test]
    fn a_token_is_never_shown() {
        let head = format!("CONNECT {UUID} HTTP/1.1\r\nProxy-Authorization: Bearer hunter2\r\n\r\n");
        assert!(!format!("{:?}", complete(&head)).contains("hunter2"));
    }
}
