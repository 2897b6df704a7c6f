//! Reads the client's token from a file or from the environment, never from an argument.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::TunnelError;
use crate::config::{SECRET_FILE_BYTES_MAX, read_bounded};
use crate::wire::Token;

/// Reads the token from `file`, or from SLUICEGATE_TOKEN.
pub fn read(file: Option<&Path>) -> Result<Token, TunnelError> {
    let Some(path) = file else {
        let text = std::env::var_os(VARIABLE).ok_or(TunnelError::TokenMissing)?;
        return checked(text.as_encoded_bytes(), VARIABLE);
    };
    let unreadable = |source: io::Error| TunnelError::TokenFile { path: path.to_owned(), source };
    let mode = std::fs::metadata(path).map_err(unreadable)?.mode();
    if mode & OTHERS != 0 && !is_credential(path) {
        let path = path.display();
        eprintln!(
            "warning: {path} can be read or written by others; `chmod 600 {path}` keeps the token yours"
        );
    }
    checked(&read_bounded(path, SECRET_FILE_BYTES_MAX).map_err(unreadable)?, &path.display().to_string())
}

/// Tests whether systemd passed the file to this service. Systemd protects it by more than its mode.
fn is_credential(path: &Path) -> bool {
    std::env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|folder| path.starts_with(folder))
}

/// Checks that the text can stand in a header: nothing in it may end the line.
fn checked(text: &[u8], place: &str) -> Result<Token, TunnelError> {
    let text = text.trim_ascii();
    match text {
        [] => Err(TunnelError::TokenMissing),
        text if text.iter().all(u8::is_ascii_graphic) => Ok(Token::new(text.to_vec())),
        _ => Err(TunnelError::TokenUnusable(place.to_owned())),
    }
}

const VARIABLE: &str = "SLUICEGATE_TOKEN";

/// Mode bits of everyone but the owner.
const OTHERS: u32 = 0o077;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_files_line_is_no_part_of_the_token() {
        assert_eq!(checked(b"sg_abc\r\n", "a file").unwrap().as_bytes(), b"sg_abc");
    }

    #[test]
    fn an_empty_token_counts_as_none() {
        assert!(matches!(checked(b" \n", "a file"), Err(TunnelError::TokenMissing)));
    }

    #[test]
    fn a_token_cannot_add_a_header() {
        let refused = checked(b"sg_abc\r\nX-Other: 1", "a file");
        assert!(matches!(refused, Err(TunnelError::TokenUnusable(place)) if place == "a file"));
    }
}
