//! Parses `postgres://…` as libpq does. The password is never shown.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use tokio_postgres::config::Host;

use super::{ConfigError, libpq};

/// The address of a PostgreSQL store and its connection options.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    /// All hosts, the database, user and password, and the options that the driver knows itself.
    driver: tokio_postgres::Config,
    pub tls: PostgresTls,
    pub target: TargetSession,
}

/// The TLS options of the URL, with libpq's meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PostgresTls {
    pub mode: TlsMode,
    pub root: RootCertificates,
    /// `sslcert` and `sslkey`: this node's own certificate.
    pub client: Option<ClientCertificate>,
}

/// `sslmode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    Disable,
    /// TLS where the server has it. The server's certificate is not checked.
    #[default]
    Prefer,
    /// TLS or no connection. The server's certificate is checked only where `sslrootcert` is given.
    Require,
    /// The server's certificate must lead to a root.
    VerifyCa,
    /// The server's certificate must lead to a root and be for the host that was dialled.
    VerifyFull,
}

/// `sslrootcert`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RootCertificates {
    /// The roots that the machine trusts, also by `sslrootcert=system`.
    #[default]
    System,
    File(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// `target_session_attrs`: the kind of host that is acceptable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetSession {
    #[default]
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    /// A standby where there is one.
    PreferStandby,
}

impl PostgresUrl {
    pub(super) fn parse(url: &str) -> Result<Self, ConfigError> {
        let wrong = |detail: String| ConfigError::StorePostgresUrl { detail };
        let (base, own, others) = split(url).map_err(wrong)?;
        let driver: tokio_postgres::Config =
            format!("{base}{others}").parse().map_err(|error: tokio_postgres::Error| {
                // The driver's message names the option, never its value.
                wrong(error.source().map_or(error.to_string(), ToString::to_string))
            })?;
        if driver.get_hosts().is_empty() && driver.get_hostaddrs().is_empty() {
            return Err(wrong("it names no host".to_owned()));
        }
        if driver.get_user().is_none() {
            return Err(wrong("it names no user".to_owned()));
        }
        let (mut tls, mut target) = (PostgresTls::default(), TargetSession::default());
        let (mut certificate, mut key) = (None, None);
        for (name, value) in own {
            match name {
                "sslmode" => tls.mode = one_of(name, &value, &TLS_MODES)?,
                "target_session_attrs" => target = one_of(name, &value, &TARGETS)?,
                "sslrootcert" if value == "system" => tls.root = RootCertificates::System,
                "sslrootcert" => tls.root = RootCertificates::File(value.into()),
                "sslcert" => certificate = Some(PathBuf::from(value)),
                _ => key = Some(PathBuf::from(value)),
            }
        }
        tls.client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
            (None, None) => None,
            _ => return Err(wrong("sslcert and sslkey go together".to_owned())),
        };
        Ok(Self { driver, tls, target })
    }

    /// The driver's configuration. It lacks `tls`, `target` and our timeouts, so do not connect with it as it is.
    pub fn driver(&self) -> &tokio_postgres::Config {
        &self.driver
    }
}

/// Shows the URL without its password and parameters.
impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let driver = &self.driver;
        write!(f, "postgres://{}@", driver.get_user().unwrap_or_default())?;
        let ports = driver.get_ports();
        let port = |place: usize| ports.get(place).or(ports.last()).copied().unwrap_or(POSTGRES_PORT);
        let comma = |place| if place > 0 { "," } else { "" };
        for (place, host) in driver.get_hosts().iter().enumerate() {
            match host {
                Host::Tcp(name) => write!(f, "{}{name}:{}", comma(place), port(place))?,
                Host::Unix(path) => write!(f, "{}{}:{}", comma(place), path.display(), port(place))?,
            }
        }
        if driver.get_hosts().is_empty() {
            for (place, address) in driver.get_hostaddrs().iter().enumerate() {
                write!(f, "{}{address}:{}", comma(place), port(place))?;
            }
        }
        write!(f, "/{}", driver.get_dbname().or(driver.get_user()).unwrap_or_default())
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresUrl({self}, {:?}, {:?})", self.tls, self.target)
    }
}

/// Splits a URL into the part before its parameters, the parameters that are read here (decoded), and those for the
/// driver (unchanged). Fails for one that nobody would follow.
fn split(url: &str) -> Result<(&str, OwnParameters<'_>, String), String> {
    // A password may hold a `?`, which begins the parameters elsewhere.
    let credentials_end = url.find('@').unwrap_or(0);
    let Some(begin) = url[credentials_end..].find('?').map(|begin| credentials_end + begin) else {
        return Ok((url, Vec::new(), String::new()));
    };
    let (mut own, mut others) = (Vec::new(), String::new());
    for parameter in url[begin + 1..].split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = percent_decode_str(value).decode_utf8_lossy();
        if OWN_PARAMETERS.contains(&name) {
            own.push((name, value.into_owned()));
        } else if let Some(checked) = libpq::check(name, &value) {
            checked?;
        } else {
            others.push(if others.is_empty() { '?' } else { '&' });
            others.push_str(parameter);
        }
    }
    Ok((&url[..begin], own, others))
}

/// Names and decoded values of [`OWN_PARAMETERS`].
type OwnParameters<'a> = Vec<(&'a str, String)>;

fn one_of<T: Copy>(name: &str, value: &str, known: &[(&str, T)]) -> Result<T, ConfigError> {
    known.iter().find(|(each, _)| *each == value).map(|(_, meaning)| *meaning).ok_or_else(|| {
        let known: Vec<_> = known.iter().map(|(each, _)| *each).collect();
        let value = value.escape_debug();
        ConfigError::StorePostgresUrl { detail: format!("{name} `{value}` is none of {}", known.join(", ")) }
    })
}

/// Parameters that the driver does not know or reads differently from libpq.
const OWN_PARAMETERS: [&str; 5] = ["sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs"];

const TLS_MODES: [(&str, TlsMode); 5] = [
    ("disable", TlsMode::Disable),
    ("prefer", TlsMode::Prefer),
    ("require", TlsMode::Require),
    ("verify-ca", TlsMode::VerifyCa),
    ("verify-full", TlsMode::VerifyFull),
];

const TARGETS: [(&str, TargetSession); 6] = [
    ("any", TargetSession::Any),
    ("read-write", TargetSession::ReadWrite),
    ("read-only", TargetSession::ReadOnly),
    ("primary", TargetSession::Primary),
    ("standby", TargetSession::Standby),
    ("prefer-standby", TargetSession::PreferStandby),
];

/// The port of a URL that names none.
pub const POSTGRES_PORT: u16 = 5432;

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> PostgresUrl {
        PostgresUrl::parse(url).unwrap()
    }

    fn refusal(url: &str) -> String {
        PostgresUrl::parse(url).unwrap_err().to_string()
    }

    #[test]
    fn all_hosts_are_kept_and_the_password_is_not_shown() {
        let url = parsed("postgres://relay:se?cret@db1,db2:6000/rights?connect_timeout=3");
        assert_eq!(url.driver().get_password(), Some(&b"se?cret"[..]));
        assert_eq!(url.to_string(), "postgres://relay@db1:5432,db2:6000/rights");
        assert!(!format!("{url:?}").contains("cret"), "{url:?}");
    }

    #[test]
    fn parameters_of_libpq_that_ask_for_what_is_done_anyway_are_taken() {
        let url = parsed(
            "postgres://relay@db/rights?client_encoding=utf8&gssencmode=prefer&keepalives=1&sslsni=1\
             &load_balance_hosts=disable&connect_timeout=7&channel_binding=require",
        );
        assert_eq!(url.to_string(), "postgres://relay@db:5432/rights");
        assert_eq!(url.driver().get_connect_timeout(), Some(&std::time::Duration::from_secs(7)));
    }

    #[test]
    fn a_folder_of_sockets_is_a_host() {
        let url = parsed("postgresql://relay@%2Fvar%2Frun%2Fpostgresql/rights");
        assert_eq!(url.to_string(), "postgres://relay@/var/run/postgresql:5432/rights");
    }

    #[test]
    fn options_that_libpq_knows_and_the_driver_does_not_are_read() {
        let url = parsed(
            "postgres://relay@db/rights?sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem&sslcert=a&sslkey=b\
             &target_session_attrs=prefer-standby&application_name=relay-1",
        );
        assert_eq!(url.tls.mode, TlsMode::VerifyFull);
        assert_eq!(url.tls.root, RootCertificates::File("/etc/ca.pem".into()));
        assert_eq!(url.tls.client, Some(ClientCertificate { certificate: "a".into(), key: "b".into() }));
        assert_eq!(url.target, TargetSession::PreferStandby);
        assert_eq!(url.driver().get_application_name(), Some("relay-1"));
    }

    #[test]
    fn each_mistake_is_reported_without_the_password() {
        for (url, reason) in [
            ("postgres://a:secret@h/d?sslmode=never", "sslmode `never` is none of disable, prefer, require"),
            ("postgres://a:secret@h/d?target_session_attrs=x", "`x` is none of any, read-write"),
            ("postgres://a:secret@h/d?sslcert=x", "sslcert and sslkey go together"),
            ("postgres://a:secret@h/d?nonsense=1", "unknown option `nonsense`"),
            (
                "postgres://a:secret@h/d?client_encoding=LATIN1",
                "client_encoding other than `UTF8` cannot be used here",
            ),
            ("postgres://a:secret@h/d?gssencmode=require", "this program has no GSSAPI: encrypt by sslmode"),
            ("postgres://a:secret@h/d?passfile=%2Fx", "alone by `store.password_file`"),
            ("postgres://a:secret@h/d?service=rights", "write the host, user and database of the service"),
            ("postgres://a:secret@h/d?keepalives_idle=9", "the relay sets keepalives itself"),
            ("postgres://a:secret@h:port/d", "invalid value for option `port`"),
            ("postgres://a:secret@/d", "it names no host"),
            ("postgres://h/d", "it names no user"),
        ] {
            let refusal = refusal(url);
            assert!(refusal.contains(reason) && !refusal.contains("secret"), "{url}: {refusal}");
        }
    }
}
