//! The token in a request's `Proxy-Authorization`, and the form in which it came.

use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

/// Bytes of a token at most. A longer one could not be handed to a peer: as Basic credentials it takes a third more, and
/// the request to the peer must fit into [`HEAD_BYTES_MAX`](super::HEAD_BYTES_MAX) with the names of all its hops.
pub const TOKEN_BYTES_MAX: usize = 4096;

/// A client's token. It is secret: nothing prints it, not even `Debug`, and its memory is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<Vec<u8>>);

/// The form of a request's credentials. The audit log has it where they are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialForm {
    /// There is no `Proxy-Authorization`.
    Absent,
    /// The scheme is another than Basic and Bearer.
    OtherScheme,
    /// Basic, with something that is not base64.
    NotBase64,
    /// Basic or Bearer, without a token.
    Empty,
    Bearer,
    /// Basic, with the token as the password of any user.
    Password,
    /// Basic, with the token as the name of a user without a password: `http://TOKEN@relay` as a proxy's URL.
    UserName,
    /// Basic, without the colon that separates a name from a password.
    NoColon,
}

/// The credentials of a head. The token is `None` where none came, or none that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ParsedCredentials {
    pub token: Option<Token>,
    pub form: CredentialForm,
}

impl Token {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The token as Basic credentials of a user without a name, which can carry any bytes.
    pub fn basic(&self) -> Zeroizing<Vec<u8>> {
        let user = Zeroizing::new([b":", self.0.as_slice()].concat());
        let encoded = Zeroizing::new(BASE64.encode(&*user));
        Zeroizing::new([b"Basic ", encoded.as_bytes()].concat())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl fmt::Display for CredentialForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "the request has no Proxy-Authorization",
            Self::OtherScheme => "the scheme of Proxy-Authorization is neither Basic nor Bearer",
            Self::NotBase64 => "the credentials behind Basic are not base64",
            Self::Empty => "Proxy-Authorization has no token",
            Self::Bearer => "the token came by Bearer",
            Self::Password => "the token came by Basic, as the password",
            Self::UserName => "the token came by Basic, as the user name",
            Self::NoColon => "the token came by Basic, without a colon",
        })
    }
}

impl ParsedCredentials {
    const fn none(form: CredentialForm) -> Self {
        Self { token: None, form }
    }

    fn with(token: &[u8], form: CredentialForm) -> Self {
        match token {
            [] => Self::none(CredentialForm::Empty),
            token => Self { token: Some(Token::new(token.to_vec())), form },
        }
    }
}

/// Parses the `Proxy-Authorization` of `headers`, of which there may be one.
pub(super) fn parse_credentials(headers: &[httparse::Header<'_>]) -> Result<ParsedCredentials, &'static str> {
    let mut credentials = headers.iter().filter(|h| h.name.eq_ignore_ascii_case("Proxy-Authorization"));
    let Some(first) = credentials.next() else { return Ok(ParsedCredentials::none(CredentialForm::Absent)) };
    if credentials.next().is_some() {
        return Err("the head has more than one Proxy-Authorization");
    }
    if !first.value.is_ascii() {
        return Err("the Proxy-Authorization holds a byte that is not ASCII");
    }
    Ok(parse_value(first.value))
}

fn parse_value(credentials: &[u8]) -> ParsedCredentials {
    let scheme_end = credentials.iter().position(|byte| matches!(byte, b' ' | b'\t'));
    let (scheme, secret) = credentials.split_at(scheme_end.unwrap_or(credentials.len()));
    let secret = secret.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"Bearer") {
        return ParsedCredentials::with(secret, CredentialForm::Bearer);
    }
    if !scheme.eq_ignore_ascii_case(b"Basic") {
        return ParsedCredentials::none(CredentialForm::OtherScheme);
    }
    let Ok(decoded) = BASE64.decode(secret) else {
        return ParsedCredentials::none(CredentialForm::NotBase64);
    };
    match decoded.iter().position(|&byte| byte == b':') {
        Some(colon) if colon + 1 < decoded.len() => {
            ParsedCredentials::with(&decoded[colon + 1..], CredentialForm::Password)
        }
        Some(colon) => ParsedCredentials::with(&decoded[..colon], CredentialForm::UserName),
        None => ParsedCredentials::with(&decoded, CredentialForm::NoColon),
    }
}

/// Base64 with or without padding: some clients leave it out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[cfg(test)]
mod tests {
    use super::*;

    /// Token and form of a `Proxy-Authorization` with this value.
    fn parse(value: &str) -> (Option<Vec<u8>>, CredentialForm) {
        let header = httparse::Header { name: "proxy-AUTHORIZATION", value: value.as_bytes() };
        let ParsedCredentials { token, form } = parse_credentials(&[header]).unwrap();
        (token.map(|token| token.as_bytes().to_vec()), form)
    }

    fn basic(text: &str) -> (Option<Vec<u8>>, CredentialForm) {
        parse(&format!("Basic {}", BASE64.encode(text)))
    }

    fn token(text: &str) -> Option<Vec<u8>> {
        Some(text.as_bytes().to_vec())
    }

    #[test]
    fn a_basic_token_is_what_follows_the_first_colon() {
        assert_eq!(basic("user:token"), (token("token"), CredentialForm::Password));
        assert_eq!(basic("user:to:ken"), (token("to:ken"), CredentialForm::Password));
        assert_eq!(basic(":token"), (token("token"), CredentialForm::Password));
        assert_eq!(basic("token"), (token("token"), CredentialForm::NoColon));
    }

    #[test]
    fn a_user_name_without_a_password_is_the_token() {
        assert_eq!(basic("token:"), (token("token"), CredentialForm::UserName));
        assert_eq!(basic(":"), (None, CredentialForm::Empty));
    }

    #[test]
    fn schemes_have_no_case() {
        assert_eq!(parse("bEARER  token "), (token("token"), CredentialForm::Bearer));
        assert_eq!(parse("BASIC dXNlcjp0b2tlbg"), (token("token"), CredentialForm::Password));
    }

    #[test]
    fn credentials_that_cannot_be_used_count_as_none_and_say_why() {
        for (value, form) in [
            ("", CredentialForm::OtherScheme),
            ("Digest x", CredentialForm::OtherScheme),
            ("sg_token", CredentialForm::OtherScheme),
            ("Basic", CredentialForm::Empty),
            ("Basic ", CredentialForm::Empty),
            ("Basic %%%%", CredentialForm::NotBase64),
            ("Bearer", CredentialForm::Empty),
            ("Bearer \t", CredentialForm::Empty),
        ] {
            assert_eq!(parse(value), (None, form), "{value}");
        }
        let other = httparse::Header { name: "Authorization", value: b"Bearer token" };
        assert_eq!(parse_credentials(&[other]), Ok(ParsedCredentials::none(CredentialForm::Absent)));
    }

    #[test]
    fn a_byte_that_is_not_ascii_is_no_part_of_credentials() {
        let header = httparse::Header { name: "Proxy-Authorization", value: b"Bearer \xff" };
        assert!(parse_credentials(&[header]).unwrap_err().contains("ASCII"));
    }
}
