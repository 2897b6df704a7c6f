//! The subject of a request, read from the token in its head: an opaque token, or a session token.

mod openbalena;

use crate::authz::{KeyHash, PrincipalId, Subject, UnixMillis};
use crate::telemetry::Cause;
use crate::wire::{Claims, SessionTokenError, TokenSubject, Verifier};

/// The token that a client presented, read without the snapshot.
pub(super) struct Presented {
    /// The subject to decide for. For an unusable token it is the hash of the token, by which logs name it.
    pub subject: Subject,
    /// Subjects whose rights the token has as well.
    pub others: Vec<Subject>,
    pub unusable: Option<Unusable>,
}

/// The reason why a token cannot be used, whatever the snapshot.
#[derive(Clone, Copy)]
pub(super) enum Unusable {
    /// The token has the prefix of login secrets, which only a session token may name.
    Reserved,
    Session(SessionTokenError),
}

impl Presented {
    pub fn read(token: &[u8], verifier: &Verifier, now: UnixMillis) -> Self {
        let key = KeyHash::of_token(token);
        let opaque = Subject::Key(key);
        if token.starts_with(KeyHash::LOGIN_SECRET_PREFIX.as_bytes()) {
            return Self { subject: opaque, others: Vec::new(), unusable: Some(Unusable::Reserved) };
        }
        match verifier.verify(token, now.0) {
            None => Self { subject: opaque, others: Vec::new(), unusable: None },
            Some(Ok(claims)) => Self::proven(key, &claims),
            Some(Err(error)) => {
                Self { subject: opaque, others: Vec::new(), unusable: Some(Unusable::Session(error)) }
            }
        }
    }

    /// The subjects of a genuine token.
    fn proven(token: KeyHash, claims: &Claims) -> Self {
        let until = UnixMillis(claims.expires_at_ms);
        let (subject, others) = match &claims.who {
            TokenSubject::Principal(id) => {
                (Subject::Principal { id: PrincipalId(*id), token, until }, Vec::new())
            }
            TokenSubject::Secret { secret, principal } => {
                let (key, principal) = (KeyHash::of_login_secret(secret), principal.map(PrincipalId));
                (Subject::Secret { key, principal, until }, Vec::new())
            }
            TokenSubject::OpenBalena(login) => openbalena::subjects(login, token, until),
        };
        Self { subject, others, unusable: None }
    }

    /// Returns the first subject that `permits` accepts; where none does, the one whose refusal is to be shown.
    pub fn choose(&self, permits: impl Fn(Subject) -> bool) -> Subject {
        let mut others = self.others.iter().copied();
        if self.others.is_empty() || permits(self.subject) {
            return self.subject;
        }
        others.find(|other| permits(*other)).unwrap_or(self.subject)
    }
}

impl From<Unusable> for Cause {
    fn from(unusable: Unusable) -> Self {
        match unusable {
            Unusable::Reserved => Self::TokenReserved,
            Unusable::Session(error) => error.into(),
        }
    }
}

impl Unusable {
    /// True where anybody could have made the token.
    pub const fn is_unproven(self) -> bool {
        match self {
            Self::Reserved => true,
            Self::Session(error) => error.is_unproven(),
        }
    }

    /// True where the token may be good, and nobody can tell now.
    pub const fn is_undecided(self) -> bool {
        matches!(self, Self::Session(error) if error.is_undecided())
    }

    /// True where clients are turned away until somebody acts, and not just until a moment later.
    pub const fn lasts(self) -> bool {
        matches!(self, Self::Session(SessionTokenError::NoKeys))
    }

    pub fn detail(self) -> String {
        match self {
            Self::Reserved => format!("no token may begin with `{}`", KeyHash::LOGIN_SECRET_PREFIX),
            Self::Session(error) => error.to_string(),
        }
    }
}
