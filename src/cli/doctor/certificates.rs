//! The certificates that this configuration shows to clients and to other nodes.

use std::time::SystemTime;

use super::finding::{FindingVerdict, MachineFinding};
use crate::wire::{CertificateState, ShownCertificate};

pub(super) fn findings(shown: &[ShownCertificate], now: SystemTime) -> Vec<MachineFinding> {
    shown.iter().map(|each| finding(each, now)).collect()
}

fn finding(shown: &ShownCertificate, now: SystemTime) -> MachineFinding {
    let verdict = match shown.state(now) {
        CertificateState::Valid => FindingVerdict::Fine,
        CertificateState::EndsSoon => FindingVerdict::Advice,
        CertificateState::Expired | CertificateState::NotYetValid => FindingVerdict::Limit,
    };
    let found = shown.problem(now).unwrap_or_else(|| format!("good until {}", shown.good_until()));
    MachineFinding {
        item: format!("certificate of {} ({})", shown.name, shown.key),
        verdict,
        found,
        wanted: "a valid one that does not end soon".to_owned(),
        why: "clients and other nodes refuse a certificate outside its time".to_owned(),
        how: format!("renew {} and run `systemctl reload sluicegate`", shown.file.display()),
    }
}
