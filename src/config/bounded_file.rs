//! Reads small files that an operator names, and no more of them than such a file can have.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Reads a whole file of at most `bytes_max` bytes. A path that leads to more, such as /dev/zero, is an error and takes
/// no memory.
pub fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::other(format!("it is larger than {bytes_max} bytes; name another file")));
    }
    Ok(bytes)
}

/// Reads a whole text as [`read_bounded`] does.
pub fn read_bounded_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    String::from_utf8(read_bounded(path, bytes_max)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8"))
}

/// Bytes of a file with a token, a password or a key.
pub const SECRET_FILE_BYTES_MAX: u64 = 64 * 1024;

/// Bytes of a file with a configuration or a query.
pub const TEXT_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_bound_and_not_beyond() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; 100]).unwrap();
        assert_eq!(read_bounded(file.path(), 100).unwrap(), [7; 100]);
        let refused = read_bounded(file.path(), 99).unwrap_err().to_string();
        assert!(refused.contains("larger than 99 bytes"), "{refused}");
        assert!(read_bounded(Path::new("/dev/zero"), 10).is_err());
    }
}
