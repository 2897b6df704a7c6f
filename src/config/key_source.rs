//! The place that a signer's set of keys is read from, again and again.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::key_set::KeySet;
use super::token_key::TokenAlgorithm;

/// A set of keys that is read while the relay runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySource {
    pub place: KeyPlace,
    /// The CA that the server's certificate must lead to. `None`: those of this machine.
    pub ca: Option<PathBuf>,
    /// Time between two reads.
    pub refresh: Duration,
    /// The only algorithm whose keys count. `None`: each key's own.
    pub algorithm: Option<TokenAlgorithm>,
}

/// The place of a set of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// A file, with the set that was in it when the configuration was read.
    File {
        path: PathBuf,
        set: KeySet,
    },
    Url(HttpsUrl),
    /// The place that the issuer's description of itself names (OpenID Connect Discovery 1.0).
    Issuer(HttpsUrl),
}

/// The URL of a document that is fetched by https.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpsUrl(String);

impl HttpsUrl {
    /// Checks a URL. `None` where it is none that is fetched by https, or has a part that no request has: a user, or a
    /// fragment.
    pub fn parse(url: &str) -> Option<Self> {
        let parsed: ureq::http::Uri = url.parse().ok()?;
        let authority = parsed.authority()?;
        let is_https = parsed.scheme_str() == Some("https") && !parsed.host()?.is_empty();
        let has_other = authority.as_str().contains('@') || url.contains('#');
        (is_https && !has_other).then(|| Self(url.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Scheme, host and port: the server that is asked.
    pub fn origin(&self) -> String {
        let uri: Option<ureq::http::Uri> = self.0.parse().ok();
        let (host, port) = match &uri {
            Some(uri) => (uri.host().unwrap_or_default(), uri.port_u16()),
            None => ("", None),
        };
        format!("https://{}:{}", host.to_ascii_lowercase(), port.unwrap_or(443))
    }

    /// The document in which the issuer with this name describes itself.
    pub fn discovery(&self) -> Self {
        Self(format!("{}/.well-known/openid-configuration", self.0.trim_end_matches('/')))
    }
}

impl fmt::Debug for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for KeyPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, .. } => write!(f, "{}", path.display()),
            Self::Url(url) => f.write_str(url.as_str()),
            Self::Issuer(issuer) => write!(f, "the issuer {}", issuer.as_str()),
        }
    }
}

impl KeyPlace {
    /// True where both are the same place, whatever was read there.
    pub fn is_at(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File { path, .. }, Self::File { path: other, .. }) => path == other,
            _ => self == other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_urls_of_https_are_fetched() {
        for url in [
            "https://login.example",
            "https://login.example:8443/keys?a=b",
            "https://[::1]/k",
            "https://127.0.0.1:1",
        ] {
            assert_eq!(HttpsUrl::parse(url).unwrap().as_str(), url);
        }
        for url in [
            "",
            "http://a/",
            "file:///etc",
            "https://",
            "https:///a",
            "https://u:p@a/",
            "https://a/#b",
            "a b",
            "https://a b/",
        ] {
            assert!(HttpsUrl::parse(url).is_none(), "{url}");
        }
    }

    #[test]
    fn a_server_has_one_origin_however_its_urls_are_written() {
        let origin = |url: &str| HttpsUrl::parse(url).unwrap().origin();
        assert_eq!(origin("https://Login.example/a"), origin("https://login.example:443/b"));
        assert_ne!(origin("https://login.example/"), origin("https://login.example:444/"));
        let issuer = HttpsUrl::parse("https://login.example/realm/").unwrap();
        assert_eq!(
            issuer.discovery().as_str(),
            "https://login.example/realm/.well-known/openid-configuration"
        );
    }
}
