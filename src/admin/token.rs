//! The admin token, which a request over TCP shows to see sessions or to run a command.
//!
//! Only its hash is kept, and compared in constant time. The right token is always let in. Of wrong tokens, a few
//! per minute get an answer that says so and an audit event; so guessing does not fill a log. A token has at least
//! [`TOKEN_CHARS_MIN`] characters, so it cannot be guessed.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::authz::KeyHash;
use crate::config::{SECRET_FILE_BYTES_MAX, read_bounded};

/// Compares tokens with the configured one, if there is one.
pub(super) struct TokenGate {
    key: Mutex<Option<KeyHash>>,
    wrong: Mutex<WrongTokens>,
}

/// An admin token that was read from its file; without one, no token is right.
pub struct NewToken(Option<KeyHash>);

/// Result of comparing a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TokenVerdict {
    Right,
    Wrong,
    /// Wrong, and one of many. It is not recorded.
    WrongAgain,
}

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("it cannot be read: {0}")]
    Unreadable(std::io::Error),
    #[error("every user can read it; run `chmod o= FILE`")]
    Exposed,
    #[error(
        "it has fewer than {TOKEN_CHARS_MIN} characters, or blanks between them; create one with `openssl rand \
         -hex 32`"
    )]
    Weak,
}

/// Count of wrong tokens in the current window.
struct WrongTokens {
    since: Instant,
    count: u32,
}

impl TokenGate {
    /// Reads the token from `file`. Without a file, no token is right.
    pub fn open(file: Option<&Path>) -> Result<Self, TokenError> {
        let key = Mutex::new(Self::read(file)?.0);
        Ok(Self { key, wrong: Mutex::new(WrongTokens { since: Instant::now(), count: 0 }) })
    }

    /// Reads the token from `file`, for [`replace`](Self::replace).
    pub fn read(file: Option<&Path>) -> Result<NewToken, TokenError> {
        file.map(read_key).transpose().map(NewToken)
    }

    /// Lets in who shows `token`, and nobody else.
    pub fn replace(&self, token: NewToken) {
        *self.key.lock() = token.0;
    }

    pub fn has_token(&self) -> bool {
        self.key.lock().is_some()
    }

    pub fn judge(&self, token: &[u8]) -> TokenVerdict {
        if self.key.lock().is_some_and(|key| key.matches(&KeyHash::of_token(token))) {
            return TokenVerdict::Right;
        }
        let mut wrong = self.wrong.lock();
        if wrong.since.elapsed() >= WRONG_WINDOW {
            *wrong = WrongTokens { since: Instant::now(), count: 0 };
        }
        wrong.count = wrong.count.saturating_add(1);
        if wrong.count <= WRONG_RECORDED_MAX { TokenVerdict::Wrong } else { TokenVerdict::WrongAgain }
    }
}

fn read_key(file: &Path) -> Result<KeyHash, TokenError> {
    let metadata = std::fs::metadata(file).map_err(TokenError::Unreadable)?;
    if metadata.permissions().mode() & 0o007 != 0 {
        return Err(TokenError::Exposed);
    }
    let text = read_bounded(file, SECRET_FILE_BYTES_MAX).map_err(TokenError::Unreadable)?;
    let token = text.trim_ascii();
    if token.len() < TOKEN_CHARS_MIN || !token.iter().all(u8::is_ascii_graphic) {
        return Err(TokenError::Weak);
    }
    Ok(KeyHash::of_token(token))
}

/// Length of 128 random bits in hex.
const TOKEN_CHARS_MIN: usize = 32;

/// Number of wrong tokens in one window that are answered and recorded.
pub(super) const WRONG_RECORDED_MAX: u32 = 10;

pub(super) const WRONG_WINDOW: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn opened(text: &str, mode: u32) -> Result<TokenGate, TokenError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        TokenGate::open(Some(&path))
    }

    #[test]
    fn the_token_of_the_file_is_right_and_no_other() {
        let gate = opened(&format!("{TOKEN}\n"), 0o600).unwrap();
        assert_eq!(gate.judge(TOKEN.as_bytes()), TokenVerdict::Right);
        for other in ["", &TOKEN[1..], &format!("{TOKEN}\n"), &TOKEN.to_uppercase()] {
            assert_eq!(gate.judge(other.as_bytes()), TokenVerdict::Wrong, "{other:?}");
        }
    }

    #[test]
    fn many_wrong_tokens_are_recorded_no_more_and_the_right_one_is_let_in_all_the_same() {
        let gate = opened(TOKEN, 0o640).unwrap();
        for _ in 0..WRONG_RECORDED_MAX {
            assert_eq!(gate.judge(b"wrong"), TokenVerdict::Wrong);
        }
        assert_eq!(gate.judge(b"wrong"), TokenVerdict::WrongAgain);
        assert_eq!(gate.judge(TOKEN.as_bytes()), TokenVerdict::Right);
    }

    #[test]
    fn a_file_that_everybody_reads_or_whose_token_is_short_is_refused() {
        assert!(matches!(opened(TOKEN, 0o644), Err(TokenError::Exposed)));
        for weak in ["", "\n", &TOKEN[1..], "0123456789abcdef 0123456789abcdef"] {
            assert!(matches!(opened(weak, 0o600), Err(TokenError::Weak)), "{weak:?}");
        }
        assert!(matches!(TokenGate::open(Some(Path::new("/nowhere/token"))), Err(TokenError::Unreadable(_))));
    }

    #[test]
    fn without_a_file_no_token_is_right() {
        let gate = TokenGate::open(None).unwrap();
        assert!(!gate.has_token());
        assert_eq!(gate.judge(b""), TokenVerdict::Wrong);
    }
}
