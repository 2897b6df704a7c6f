//! Fetches a set of keys once: from a file or by https, with bounds on time, bytes and redirects.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use ureq::Agent;
use ureq::http::{StatusCode, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::config::{HttpsUrl, KEY_SET_BYTES_MAX, KeyPlace, KeySet, KeySetError, KeySource, read_bounded};
use crate::wire::{PemFileError, explain, explain_io, read_certificates};

#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("{0}")]
    File(std::io::Error),
    #[error(transparent)]
    Set(#[from] KeySetError),
    #[error(transparent)]
    Ca(#[from] PemFileError),
    #[error(
        "this machine has no CA certificates (package ca-certificates); name a file of them in `keys_ca`"
    )]
    NoCa,
    #[error("{url}: {why}")]
    Failed { url: String, why: String },
    #[error("{url} answers {status}, and 200 is needed")]
    Status { url: String, status: u16 },
    #[error("{url} answers with more than {} KiB", KEY_SET_BYTES_MAX / 1024)]
    TooLarge { url: String },
    #[error("{url} has not answered within {} s", FETCH_TIME.as_secs())]
    TooSlow { url: String },
    #[error("{url} leads to more than {REDIRECTS_MAX} other places one after the other")]
    RedirectLoop { url: String },
    #[error(
        "{url} leads to another server ({to}), which is not followed; name the place itself in `keys_url`"
    )]
    OtherServer { url: String, to: String },
    #[error("{url} is not the description of an issuer: an object with `issuer` and `jwks_uri`")]
    NoIssuer { url: String },
    #[error("{url} describes another issuer; `issuer` must be written as there")]
    OtherIssuer { url: String },
    #[error("{url} names no place for its keys that is fetched by https (`jwks_uri`)")]
    KeysPlace { url: String },
}

/// The part of an issuer's description that is read (OpenID Connect Discovery 1.0, section 3).
#[derive(Deserialize)]
struct Description {
    issuer: String,
    jwks_uri: String,
}

/// Reads the set, and returns its text too. It takes at most [`FETCH_TIME`], beside the system's resolver.
pub(super) fn fetch(source: &KeySource) -> Result<(Vec<u8>, KeySet), FetchError> {
    let text = match &source.place {
        KeyPlace::File { path, .. } => read_bounded(path, KEY_SET_BYTES_MAX).map_err(FetchError::File)?,
        KeyPlace::Url(url) => Fetcher::new(source.ca.as_deref())?.get(url)?,
        KeyPlace::Issuer(issuer) => {
            let fetcher = Fetcher::new(source.ca.as_deref())?;
            let url = fetcher.place_of_keys(issuer)?;
            fetcher.get(&url)?
        }
    };
    let set = KeySet::parse(&text)?;
    Ok((text, set))
}

/// A client for one set, which trusts the CAs as they are on disk now.
struct Fetcher {
    agent: Agent,
    give_up_at: Instant,
}

impl Fetcher {
    fn new(ca: Option<&Path>) -> Result<Self, FetchError> {
        let trusted = match ca {
            Some(file) => read_certificates(file)?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        if trusted.is_empty() {
            return Err(FetchError::NoCa);
        }
        let trusted: Vec<_> = trusted.iter().map(|each| Certificate::from_der(each).to_owned()).collect();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&trusted))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            // They are followed here, and not to other servers.
            .max_redirects(0)
            .http_status_as_error(false)
            // Of the environment: a relay asks the server itself.
            .proxy(None)
            .max_response_header_size(HEADER_BYTES_MAX)
            .user_agent(concat!("sluicegate/", env!("CARGO_PKG_VERSION")))
            .accept("application/json")
            .build()
            .into();
        Ok(Self { agent, give_up_at: Instant::now() + FETCH_TIME })
    }

    /// The place that the issuer names for its keys. The description must be of this very issuer, so that nobody's keys
    /// count for somebody else's tokens.
    fn place_of_keys(&self, issuer: &HttpsUrl) -> Result<HttpsUrl, FetchError> {
        let at = issuer.discovery();
        let url = || at.as_str().to_owned();
        let described: Description =
            serde_json::from_slice(&self.get(&at)?).map_err(|_| FetchError::NoIssuer { url: url() })?;
        if described.issuer != issuer.as_str() {
            return Err(FetchError::OtherIssuer { url: url() });
        }
        HttpsUrl::parse(&described.jwks_uri).ok_or_else(|| FetchError::KeysPlace { url: url() })
    }

    /// The body at `url`, or where the same server says that it is.
    fn get(&self, url: &HttpsUrl) -> Result<Vec<u8>, FetchError> {
        let mut at = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            match self.get_once(&at)? {
                FetchAnswer::Body(body) => return Ok(body),
                FetchAnswer::Elsewhere(location) => {
                    let absolute = match location.strip_prefix('/') {
                        Some(rest) if !rest.starts_with('/') => format!("{}/{rest}", at.origin()),
                        _ => location,
                    };
                    let to = HttpsUrl::parse(&absolute).filter(|to| to.origin() == at.origin());
                    at = to.ok_or_else(|| FetchError::OtherServer {
                        url: at.as_str().to_owned(),
                        to: shortened(&absolute),
                    })?;
                }
            }
        }
        Err(FetchError::RedirectLoop { url: url.as_str().to_owned() })
    }

    fn get_once(&self, url: &HttpsUrl) -> Result<FetchAnswer, FetchError> {
        let at = || url.as_str().to_owned();
        let left = self.give_up_at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(FetchError::TooSlow { url: at() });
        }
        let failed = |error| failure(at(), error);
        let request = self.agent.get(url.as_str()).config().timeout_global(Some(left)).build();
        let mut answer = request.call().map_err(failed)?;
        if answer.status().is_redirection()
            && let Some(location) = answer.headers().get(header::LOCATION)
        {
            return Ok(FetchAnswer::Elsewhere(String::from_utf8_lossy(location.as_bytes()).into_owned()));
        }
        if answer.status() != StatusCode::OK {
            return Err(FetchError::Status { url: at(), status: answer.status().as_u16() });
        }
        let body = answer.body_mut().with_config().limit(KEY_SET_BYTES_MAX).read_to_vec();
        Ok(FetchAnswer::Body(body.map_err(failed)?))
    }
}

enum FetchAnswer {
    Body(Vec<u8>),
    Elsewhere(String),
}

/// Says in plain words why a request failed.
fn failure(url: String, error: ureq::Error) -> FetchError {
    let why = match error {
        ureq::Error::BodyExceedsLimit(_) => return FetchError::TooLarge { url },
        ureq::Error::Timeout(_) => return FetchError::TooSlow { url },
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            return FetchError::TooSlow { url };
        }
        ureq::Error::Io(error) => explain_io(&error),
        ureq::Error::Rustls(error) => explain(&error),
        ureq::Error::HostNotFound => "there is no such host".to_owned(),
        other => other.to_string(),
    };
    FetchError::Failed { url, why: shortened(&why) }
}

/// The beginning of a text from outside, for a log.
fn shortened(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).map(|each| if each.is_control() { '?' } else { each }).collect()
}

/// Time for a set, with the issuer's description and all redirects.
const FETCH_TIME: Duration = Duration::from_secs(10);

/// Redirects that are followed for one document.
const REDIRECTS_MAX: usize = 3;

/// Bytes of an answer's head.
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// Characters of a server's words that are logged.
const TEXT_CHARS_MAX: usize = 200;
