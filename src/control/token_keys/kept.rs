//! The set of keys that was read last, on disk beside the kept state: a node that starts while the login service is away
//! accepts its tokens all the same.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::authz::UnixMillis;
use crate::config::{KEY_SET_BYTES_MAX, KeyPlace, KeySet, read_bounded};

/// The file of one set, and what it was given last.
pub(super) struct KeptKeys {
    folder: PathBuf,
    path: PathBuf,
    place: String,
    written: Option<(Vec<u8>, Instant)>,
}

#[derive(Serialize, Deserialize)]
struct KeptKeySet {
    /// The place that the set is from.
    place: String,
    read_at_ms: i64,
    set: String,
}

impl KeptKeys {
    /// The file in the folder of the kept state; `None` for a set that is a file itself.
    pub(super) fn of(folder: &Path, place: &KeyPlace) -> Option<Self> {
        let path = folder.join(file_name(place)?);
        Some(Self { folder: folder.to_owned(), path, place: place.to_string(), written: None })
    }

    /// Reads what an earlier process kept, and when that was read; `None` where there is nothing that can be used. Keys
    /// give rights, so nobody else may have written them.
    pub(super) fn load(&mut self) -> Option<(KeySet, UnixMillis)> {
        let unused = |why: &dyn std::fmt::Display| {
            tracing::warn!("{} is not used: {why}; remove it", self.path.display());
        };
        for path in [&self.folder, &self.path] {
            let mode = fs::metadata(path).ok()?.permissions().mode();
            if mode & WRITABLE_BY_OTHERS != 0 {
                unused(&format_args!("others than its owner may write to {}", path.display()));
                return None;
            }
        }
        let text = read_bounded(&self.path, FILE_BYTES_MAX).inspect_err(|error| unused(error)).ok()?;
        let kept: KeptKeySet = serde_json::from_slice(&text).inspect_err(|error| unused(error)).ok()?;
        if kept.place != self.place {
            unused(&"it is of another place");
            return None;
        }
        let set = KeySet::parse(kept.set.as_bytes()).inspect_err(|error| unused(error)).ok()?;
        Some((set, UnixMillis(kept.read_at_ms)))
    }

    /// Writes the text of a set if it is new, and from time to time for the time of the read.
    pub(super) fn keep(&mut self, text: &[u8], now: UnixMillis) {
        let is_written = |(written, at): &(Vec<u8>, Instant)| written == text && at.elapsed() < REWRITE_AFTER;
        if self.written.as_ref().is_some_and(is_written) {
            return;
        }
        if let Err(error) = self.write(text, now) {
            tracing::warn!("{} cannot be written: {error}", self.path.display());
        }
        self.written = Some((text.to_owned(), Instant::now()));
    }

    fn write(&self, text: &[u8], now: UnixMillis) -> io::Result<()> {
        let set = String::from_utf8_lossy(text).into_owned();
        let kept = KeptKeySet { place: self.place.clone(), read_at_ms: now.0, set };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        // Another process of this node may write as well, in a hand-over.
        let new = self.path.with_extension(format!("new.{}", std::process::id()));
        let mut file = File::options().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(&kept)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)
    }
}

/// Removes the files of all other places, and what a crash has left of one.
pub(super) fn remove_others<'a>(folder: &Path, places: impl Iterator<Item = &'a KeyPlace>) {
    let used: Vec<String> = places.filter_map(file_name).collect();
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let is_other = |name: &&str| name.starts_with(PREFIX) && !used.iter().any(|used| used == name);
        let Some(name) = name.to_str().filter(is_other) else { continue };
        // Another process may be writing it now.
        if name.ends_with(SUFFIX) || is_left(&entry) {
            let _it_stays = fs::remove_file(entry.path());
        }
    }
}

/// True where nobody has written a file for longer than a write takes.
fn is_left(entry: &fs::DirEntry) -> bool {
    let written = entry.metadata().and_then(|metadata| metadata.modified());
    written.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > WRITE_TIME_MAX))
}

fn file_name(place: &KeyPlace) -> Option<String> {
    if let KeyPlace::File { .. } = place {
        return None;
    }
    let digest = Sha256::digest(place.to_string());
    Some(format!("{PREFIX}{}{SUFFIX}", hex::encode(&digest[..8])))
}

const PREFIX: &str = "token-keys-";
const SUFFIX: &str = ".json";

/// Bytes of the longest file that is read: JSON in JSON takes up to six bytes for one.
const FILE_BYTES_MAX: u64 = 6 * KEY_SET_BYTES_MAX + 4096;

/// Time after which the file is written anew though the set is the same.
const REWRITE_AFTER: Duration = Duration::from_secs(3600);

/// Age from which a file that is half written was left by a crash.
const WRITE_TIME_MAX: Duration = Duration::from_secs(60);

/// Permission of the group or of all others to write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HttpsUrl;

    const SET: &[u8] =
        br#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    fn place(url: &str) -> KeyPlace {
        KeyPlace::Url(HttpsUrl::parse(url).unwrap())
    }

    #[test]
    fn what_was_kept_is_read_again_and_of_its_place_alone() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let (one, other) = (place("https://a.example/"), place("https://b.example/"));
        let mut kept = KeptKeys::of(&state, &one).unwrap();
        assert_eq!(kept.load(), None);
        kept.keep(SET, UnixMillis(7));
        assert_eq!(kept.load(), Some((KeySet::parse(SET).unwrap(), UnixMillis(7))));
        let mut of_other = KeptKeys::of(&state, &other).unwrap();
        fs::copy(&kept.path, &of_other.path).unwrap();
        assert_eq!(of_other.load(), None, "another place");

        let half_written = |name: &str, age: u64| {
            let path = state.join(name);
            let at = std::time::SystemTime::now() - Duration::from_secs(age);
            File::create(&path).unwrap().set_modified(at).unwrap();
            path
        };
        let (left, new) = (half_written("token-keys-0.new.7", 90), half_written("token-keys-0.new.8", 0));
        remove_others(&state, [&one].into_iter());
        assert!(!left.exists() && new.exists());
        assert!(kept.path.exists() && !of_other.path.exists());
        fs::write(&kept.path, "no json").unwrap();
        assert_eq!(kept.load(), None);
    }

    #[test]
    fn keys_that_others_could_have_written_are_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = KeptKeys::of(folder.path(), &place("https://a.example/")).unwrap();
        kept.keep(SET, UnixMillis(7));
        for (path, bad, good) in [(kept.path.clone(), 0o620, 0o600), (folder.path().to_owned(), 0o702, 0o700)]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(bad)).unwrap();
            assert_eq!(kept.load(), None, "{bad:o}");
            fs::set_permissions(&path, fs::Permissions::from_mode(good)).unwrap();
            assert!(kept.load().is_some(), "{good:o}");
        }
    }
}
