//! The cause that each error and each refusal of the rooms below stands for.

use super::Cause;
use crate::authz::{Refusal, Undecided};
use crate::wire::{HeadError, ProxyHeaderError, SessionTokenError};

impl From<Refusal> for Cause {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::CredentialMissing => Self::CredentialMissing,
            Refusal::CredentialUnknown => Self::CredentialUnknown,
            Refusal::CredentialExpired => Self::CredentialExpired,
            Refusal::CredentialRevoked => Self::CredentialRevoked,
            Refusal::PrincipalMismatch => Self::PrincipalMismatch,
            Refusal::PrincipalRevoked => Self::PrincipalRevoked,
            Refusal::DeviceUnknown => Self::DeviceUnknown,
            Refusal::NoGrant => Self::NoGrant,
            Refusal::PortNotGranted => Self::PortNotGranted,
            Refusal::GrantExpired => Self::GrantExpired,
            Refusal::GrantRevoked => Self::GrantRevoked,
            Refusal::DeviceOffline => Self::DeviceOffline,
            Refusal::DeviceElsewhere => Self::DeviceElsewhere,
            Refusal::DeviceDisputed => Self::DeviceDisputed,
        }
    }
}

impl Cause {
    /// The cause of a tunnel's end where `refusal` is the new decision about a client that was allowed before.
    pub fn of_ended_right(refusal: Refusal) -> Self {
        match refusal {
            Refusal::CredentialUnknown => Self::CredentialRemoved,
            Refusal::DeviceUnknown => Self::DeviceRemoved,
            Refusal::NoGrant => Self::GrantRemoved,
            Refusal::PortNotGranted => Self::GrantNarrowed,
            _ => refusal.into(),
        }
    }
}

impl From<Undecided> for Cause {
    fn from(undecided: Undecided) -> Self {
        match undecided {
            Undecided::NoSnapshot => Self::NoSnapshot,
            Undecided::Stale => Self::SnapshotStale,
            Undecided::StoreUnreachable => Self::StoreUnreachable,
        }
    }
}

impl From<HeadError> for Cause {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::Malformed { .. } => Self::Malformed,
            HeadError::Method { .. } => Self::Method,
            HeadError::TooLarge { .. } => Self::HeadTooLarge,
        }
    }
}

impl From<&ProxyHeaderError> for Cause {
    fn from(error: &ProxyHeaderError) -> Self {
        match error {
            ProxyHeaderError::Missing => Self::ProxyHeaderMissing,
            ProxyHeaderError::TooLong | ProxyHeaderError::Malformed(_) => Self::ProxyHeaderMalformed,
        }
    }
}

impl From<SessionTokenError> for Cause {
    fn from(error: SessionTokenError) -> Self {
        match error {
            SessionTokenError::Malformed | SessionTokenError::Header => Self::TokenMalformed,
            SessionTokenError::Algorithm => Self::TokenAlgorithm,
            SessionTokenError::Key => Self::TokenKey,
            SessionTokenError::KeyAwaited | SessionTokenError::NoKeys => Self::TokenKeysMissing,
            SessionTokenError::Signature => Self::TokenSignature,
            SessionTokenError::Issuer => Self::TokenIssuer,
            SessionTokenError::Audience => Self::TokenAudience,
            SessionTokenError::NoExpiry => Self::TokenNoExpiry,
            SessionTokenError::Expired => Self::TokenExpired,
            SessionTokenError::NotYetValid => Self::TokenNotYetValid,
            SessionTokenError::Nobody => Self::TokenClaims,
        }
    }
}
