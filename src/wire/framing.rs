//! Checks the fields of a head by which other HTTP software would find the request's target or its end.
//!
//! The relay uses none of them: a CONNECT has no content, and its target is in the request line. But if a proxy in front
//! reads them differently, the two disagree about whose bytes are whose. So a head that contradicts itself is refused
//! (RFC 9112, sections 3.2 and 6.3).

/// Checks `headers`; the error says what is wrong.
pub(super) fn check_framing(headers: &[httparse::Header<'_>]) -> Result<(), &'static str> {
    let mut host = None;
    let mut content_length = None;
    for header in headers {
        if header.name.eq_ignore_ascii_case("Host") {
            if host.replace(header.value).is_some() {
                return Err("the head has more than one Host");
            }
            if !is_host(header.value) {
                return Err("the Host is not a host and a port");
            }
        } else if header.name.eq_ignore_ascii_case("Transfer-Encoding") {
            return Err("the head has a Transfer-Encoding, and a CONNECT has no content");
        } else if header.name.eq_ignore_ascii_case("Content-Length") {
            // Equal values may be written several times, in one field or in several (RFC 9110, section 8.6).
            for value in header.value.split(|byte| *byte == b',') {
                let digits = value.trim_ascii();
                if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
                    return Err("the Content-Length is not a number");
                }
                let number =
                    digits.iter().position(|digit| *digit != b'0').map_or(&digits[..0], |at| &digits[at..]);
                if content_length.replace(number).is_some_and(|before| before != number) {
                    return Err("the head has two Content-Length that differ");
                }
            }
        }
    }
    Ok(())
}

/// True for the characters of `uri-host [":" port]` (RFC 9110, section 7.2). It may be empty.
fn is_host(value: &[u8]) -> bool {
    value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(fields: &[(&str, &str)]) -> Result<(), &'static str> {
        let headers: Vec<_> =
            fields.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
        check_framing(&headers)
    }

    #[test]
    fn a_head_that_contradicts_itself_is_refused() {
        for (fields, wrong) in [
            (&[("Host", "a"), ("HOST", "a")][..], "more than one Host"),
            (&[("Host", "a b")], "not a host"),
            (&[("Host", "a/b")], "not a host"),
            (&[("Host", "user@a")], "not a host"),
            (&[("Host", "\u{e9}.balena")], "not a host"),
            (&[("Transfer-Encoding", "chunked")], "Transfer-Encoding"),
            (&[("transfer-encoding", "identity")], "Transfer-Encoding"),
            (&[("Content-Length", "abc")], "not a number"),
            (&[("Content-Length", "")], "not a number"),
            (&[("Content-Length", "-1")], "not a number"),
            (&[("Content-Length", "+4")], "not a number"),
            (&[("Content-Length", "0x4")], "not a number"),
            (&[("Content-Length", "4,")], "not a number"),
            (&[("Content-Length", "4"), ("content-length", "5")], "differ"),
            (&[("Content-Length", "4, 5")], "differ"),
            (&[("Content-Length", "18446744073709551616"), ("Content-Length", "0")], "differ"),
        ] {
            let error = check(fields).unwrap_err();
            assert!(error.contains(wrong), "{fields:?}: {error}");
        }
    }

    #[test]
    fn a_head_that_agrees_with_itself_is_fine() {
        for fields in [
            &[][..],
            &[("Host", "")],
            &[("Host", "0123456789abcdef.balena:22222")],
            &[("Host", "[2001:db8::1]:3128")],
            &[("Content-Length", "0")],
            &[("Content-Length", "4"), ("Content-Length", "4")],
            &[("Content-Length", "4, 04")],
            &[("Content-Length", "99999999999999999999999999")],
            &[("X-Host", "a b"), ("X-Content-Length", "abc")],
        ] {
            assert_eq!(check(fields), Ok(()), "{fields:?}");
        }
    }
}
