//! The admin token: what somebody who asks over TCP shows to see sessions and to change something.
//!
//! Kept as its hash, and compared in a time that tells nothing. A right token is always let in; wrong ones
//! are told so and written down a few times a minute, so that whoever tries them fills no log. They cannot
//! be guessed: a token has [`TOKEN_CHARS_MIN`] characters at least.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::authz::KeyHash;

/// Compares tokens with the one that is configured, if there is one.
pub(super) struct TokenGate {
    key: Option<KeyHash>,
    wrong: Mutex<WrongTokens>,
}

/// What a token is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TokenVerdict {
    Right,
    Wrong,
    /// Wrong, and one of many: not worth another word.
    WrongAgain,
}

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("it cannot be read: {0}")]
    Unreadable(std::io::Error),
    #[error("it can be read by everybody; `chmod o= FILE`")]
    Exposed,
    #[error(
        "it holds fewer than {TOKEN_CHARS_MIN} characters, or blanks between them; make one with `openssl rand \
         -hex 32`"
    )]
    Weak,
}

/// The wrong tokens of the running minute.
struct WrongTokens {
    since: Instant,
    count: u32,
}

impl TokenGate {
    /// The gate that opens to the token in `file`, or to none.
    pub fn open(file: Option<&Path>) -> Result<Self, TokenError> {
        let key = file.map(read_key).transpose()?;
        Ok(Self { key, wrong: Mutex::new(WrongTokens { since: Instant::now(), count: 0 }) })
    }

    pub fn has_token(&self) -> bool {
        self.key.is_some()
    }

    pub fn judge(&self, token: &[u8]) -> TokenVerdict {
        if self.key.is_some_and(|key| key.matches(&KeyHash::of_token(token))) {
            return TokenVerdict::Right;
        }
        let mut wrong = self.wrong.lock();
        if wrong.since.elapsed() >= WRONG_WINDOW {
            *wrong = WrongTokens { since: Instant::now(), count: 0 };
        }
        wrong.count = wrong.count.saturating_add(1);
        if wrong.count <= WRONG_TOLD_MAX { TokenVerdict::Wrong } else { TokenVerdict::WrongAgain }
    }
}

fn read_key(file: &Path) -> Result<KeyHash, TokenError> {
    let metadata = std::fs::metadata(file).map_err(TokenError::Unreadable)?;
    if metadata.permissions().mode() & 0o007 != 0 {
        return Err(TokenError::Exposed);
    }
    let text = std::fs::read(file).map_err(TokenError::Unreadable)?;
    let token = text.trim_ascii();
    if token.len() < TOKEN_CHARS_MIN || !token.iter().all(u8::is_ascii_graphic) {
        return Err(TokenError::Weak);
    }
    Ok(KeyHash::of_token(token))
}

/// What 128 random bits take in hex.
const TOKEN_CHARS_MIN: usize = 32;

/// Wrong tokens of one window that are answered as such, and written down.
pub(super) const WRONG_TOLD_MAX: u32 = 10;

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
    fn many_wrong_tokens_are_told_no_more_and_the_right_one_is_let_in_all_the_same() {
        let gate = opened(TOKEN, 0o640).unwrap();
        for _ in 0..WRONG_TOLD_MAX {
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
