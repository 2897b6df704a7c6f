//! The time in which a certificate that this node shows is accepted.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::explain::date_of;

/// A certificate that this node shows, with those that it shows along.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShownCertificate {
    /// The configuration key that names its file, such as `listen.0.tls.certificates.0`.
    pub key: String,
    pub file: PathBuf,
    /// Its first alternative name, or its subject.
    pub name: String,
    /// Time from which the whole chain is valid.
    pub valid_from: SystemTime,
    /// Time at which the first of the chain ends.
    pub valid_until: SystemTime,
    /// The first certificate of the chain that is not signed by the next one, from 1.
    pub gap: Option<usize>,
}

/// The state of a certificate at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateState {
    Valid,
    /// It ends within 14 days, or within a fifth of its life.
    EndsSoon,
    Expired,
    NotYetValid,
}

impl ShownCertificate {
    /// Reads the times of a chain. `None` where one of it is not understood, which is refused elsewhere.
    pub(super) fn of(key: &str, file: PathBuf, chain: &[CertificateDer<'_>]) -> Option<Self> {
        let chain: Vec<Certificate> =
            chain.iter().map(|each| Certificate::from_der(each).ok()).collect::<Option<_>>()?;
        let first = chain.first()?;
        let validities = || chain.iter().map(|each| each.tbs_certificate().validity());
        Some(Self {
            key: key.to_owned(),
            file,
            name: name_of(first),
            valid_from: validities().map(|validity| validity.not_before.to_system_time()).max()?,
            valid_until: validities().map(|validity| validity.not_after.to_system_time()).min()?,
            gap: chain.windows(2).position(|pair| !is_issued_by(&pair[0], &pair[1])).map(|place| place + 1),
        })
    }

    pub fn state(&self, now: SystemTime) -> CertificateState {
        if now < self.valid_from {
            return CertificateState::NotYetValid;
        }
        let Ok(left) = self.valid_until.duration_since(now) else { return CertificateState::Expired };
        if left < SOON.min(self.lifetime() / LIFE_PARTS) {
            CertificateState::EndsSoon
        } else {
            CertificateState::Valid
        }
    }

    /// Time from its begin to its end.
    pub fn lifetime(&self) -> Duration {
        self.valid_until.duration_since(self.valid_from).unwrap_or_default()
    }

    /// True while clients accept it.
    pub fn is_usable(&self, now: SystemTime) -> bool {
        matches!(self.state(now), CertificateState::Valid | CertificateState::EndsSoon)
    }

    /// Seconds until it ends; negative once it has.
    pub fn seconds_left(&self, now: SystemTime) -> f64 {
        match self.valid_until.duration_since(now) {
            Ok(left) => left.as_secs_f64(),
            Err(passed) => -passed.duration().as_secs_f64(),
        }
    }

    /// Seconds until it is valid; 0 once it is.
    pub fn seconds_to_begin(&self, now: SystemTime) -> f64 {
        self.valid_from.duration_since(now).unwrap_or_default().as_secs_f64()
    }

    /// The time at which it ends, for people.
    pub fn good_until(&self) -> String {
        date_of(self.valid_until)
    }

    /// What is wrong with its time, as the rest of a sentence that begins with the certificate. `None` where all is fine.
    pub fn problem(&self, now: SystemTime) -> Option<String> {
        match self.state(now) {
            CertificateState::Valid => None,
            CertificateState::EndsSoon => {
                let left = self.valid_until.duration_since(now).unwrap_or_default();
                Some(format!("ends in {}, on {}", in_days(left), date_of(self.valid_until)))
            }
            CertificateState::Expired => Some(format!("has expired on {}", date_of(self.valid_until))),
            CertificateState::NotYetValid => {
                Some(format!("is not valid before {}", date_of(self.valid_from)))
            }
        }
    }

    /// The problem with its time and what to do about it. `None` where all is fine.
    pub fn warning(&self, now: SystemTime) -> Option<String> {
        let remedy = match self.state(now) {
            CertificateState::NotYetValid => "set this machine's clock right, or use another certificate",
            _ => "renew it and run `systemctl reload sluicegate`",
        };
        self.problem(now).map(|problem| format!("{self} {problem}; {remedy}"))
    }

    /// Tells of a chain that is not in order. Clients that speak TLS 1.2 follow it as it stands.
    pub fn order_warning(&self) -> Option<String> {
        let place = self.gap?;
        Some(format!(
            "{self}: certificate {place} of the file is not signed by certificate {}; put the node's own first, and then \
             each one's signer",
            place + 1
        ))
    }
}

impl fmt::Display for ShownCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: the certificate of {} in {}", self.key, self.name, self.file.display())
    }
}

pub(super) fn name_of(certificate: &Certificate) -> String {
    let names = certificate.tbs_certificate().get_extension::<SubjectAltName>();
    let dns = |name: &GeneralName| match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        _ => None,
    };
    let first = names.ok().flatten().and_then(|(_, SubjectAltName(names))| names.iter().find_map(dns));
    first.unwrap_or_else(|| certificate.tbs_certificate().subject().to_string())
}

/// True where the second has the name that the first names as its issuer. The signature is the client's to check.
fn is_issued_by(one: &Certificate, next: &Certificate) -> bool {
    one.tbs_certificate().issuer() == next.tbs_certificate().subject()
}

fn in_days(left: Duration) -> String {
    match left.as_secs() / DAY_SECONDS {
        0 => format!("{} hours", left.as_secs() / 3600),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

/// Time before its end from which a certificate is warned of. Certificates of 90 days are renewed 30 days before, so
/// this one was not.
pub const SOON: Duration = Duration::from_secs(14 * DAY_SECONDS);

/// A certificate of a few days is warned of only in the last part of its life.
const LIFE_PARTS: u32 = 5;

const DAY_SECONDS: u64 = 24 * 60 * 60;

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    use super::*;

    fn shown(params: CertificateParams) -> ShownCertificate {
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone();
        ShownCertificate::of("listen.0.tls", "/etc/x.crt".into(), &[der]).unwrap()
    }

    /// A certificate of the days 0 to `days` of 2030.
    fn of_days(days: i64) -> (ShownCertificate, SystemTime) {
        let mut params = CertificateParams::new(["relay.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2030, 1, 1);
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(params.not_before.unix_timestamp() as u64);
        params.not_after = params.not_before + std::time::Duration::from_secs(days as u64 * DAY_SECONDS);
        (shown(params), begin)
    }

    #[test]
    fn each_age_has_its_state_and_its_words() {
        let (certificate, begin) = of_days(90);
        let day = |days: u64| begin + Duration::from_secs(days * DAY_SECONDS);
        for (now, state, words) in [
            (begin - Duration::from_secs(1), CertificateState::NotYetValid, "is not valid before 2030-01-01"),
            (day(80), CertificateState::EndsSoon, "ends in 10 days, on 2030-04-01"),
            (day(91), CertificateState::Expired, "has expired on 2030-04-01"),
        ] {
            assert_eq!(certificate.state(now), state);
            let warning = certificate.warning(now).unwrap();
            assert!(warning.contains(words) && warning.contains("relay.example in /etc/x.crt"), "{warning}");
        }
        assert_eq!(certificate.state(day(75)), CertificateState::Valid);
        assert_eq!(certificate.warning(day(75)), None);
        assert_eq!(certificate.seconds_left(day(91)), -(DAY_SECONDS as f64));
    }

    #[test]
    fn a_certificate_of_six_days_is_not_warned_of_all_its_life() {
        let (certificate, begin) = of_days(6);
        assert_eq!(certificate.state(begin), CertificateState::Valid);
        let day_5 = begin + Duration::from_secs(5 * DAY_SECONDS);
        assert_eq!(certificate.state(day_5), CertificateState::EndsSoon);
    }

    #[test]
    fn the_first_of_a_chain_that_ends_counts_and_the_order_is_checked() {
        let authority = |name: &str, year: i32| {
            let mut params = CertificateParams::new([]).unwrap();
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        let (signer, stranger) = (authority("signer", 2031), authority("stranger", 2060));
        let mut params = CertificateParams::new(["relay.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2050, 1, 1);
        let leaf = params.signed_by(&KeyPair::generate().unwrap(), &signer).unwrap().der().clone();
        let of = |chain: &[CertificateDer<'_>]| ShownCertificate::of("k", "f".into(), chain).unwrap();
        let whole = of(&[leaf.clone(), signer.der().clone()]);
        assert_eq!(date_of(whole.valid_until), "2031-01-01 00:00:00 UTC");
        assert_eq!((whole.gap, whole.order_warning()), (None, None));
        let mixed = of(&[leaf, stranger.der().clone(), signer.der().clone()]);
        assert_eq!(mixed.gap, Some(1));
        assert!(
            mixed
                .order_warning()
                .unwrap()
                .contains("certificate 1 of the file is not signed by certificate 2")
        );
    }
}
