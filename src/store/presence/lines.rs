//! What a source of addresses says, device by device; and a file of it: a `uuid address` on each line, and comments
//! from `#` on. A line `nobody` says that a file without addresses is meant so.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::authz::{DeviceUuid, UnixMillis};
use crate::store::Noted;

/// See the module.
#[derive(Default)]
pub(super) struct Lines {
    pub(super) addresses: HashMap<DeviceUuid, IpAddr>,
    /// Since when a device is there, where the source says so.
    pub(super) since: HashMap<DeviceUuid, UnixMillis>,
    pub(super) bad: BadLines,
    /// Where it names nobody, that is meant so.
    pub(super) may_be_empty: bool,
    /// Whose each address is by its first line.
    pub(super) holders: HashMap<IpAddr, DeviceUuid>,
}

/// Lines that give no address.
#[derive(Default)]
pub(super) struct BadLines {
    pub(super) noted: Noted,
    /// Devices that some of them are about.
    named: HashSet<DeviceUuid>,
    /// Of some it cannot be told which device they are about.
    is_any_nameless: bool,
    /// What several devices claim, or somebody who is none of them. No device is dialled there: it would be the
    /// wrong one.
    not_free: HashSet<IpAddr>,
}

/// Whom a bad line is about.
#[derive(Clone, Copy)]
pub(super) enum About {
    Device(DeviceUuid),
    /// It may be any device.
    Unreadable,
    /// Somebody who is no device for sure.
    Stranger,
}

impl Lines {
    /// `name` is what the file is called in the log line about a bad line.
    pub(super) fn parse(text: &str, name: &str) -> Self {
        let mut lines = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            let Some(first) = words.first() else { continue };
            if words == [NOBODY] {
                lines.may_be_empty = true;
                continue;
            }
            let uuid = DeviceUuid::parse(first);
            if let Err(reason) = lines.read(&words, uuid) {
                let about = uuid.map_or(About::Unreadable, About::Device);
                lines.refuse(about, || format!("{name}:{number}: {reason}"));
            }
        }
        lines
    }

    /// Says that `uuid` is at `address`, or why that cannot be.
    pub(super) fn put(&mut self, uuid: DeviceUuid, address: IpAddr) -> Result<(), String> {
        let address = address.to_canonical();
        if self.addresses.contains_key(&uuid) {
            return Err(format!("{uuid} is there twice; its first line counts"));
        }
        if let Some(holder) = self.holders.get(&address) {
            self.bad.not_free.insert(address);
            self.addresses.remove(holder);
            return Err(format!("{address} is {holder}'s too, so that it is neither's"));
        }
        self.addresses.insert(uuid, address);
        self.holders.insert(address, uuid);
        Ok(())
    }

    /// Has no device be kept at `address`, which is not where one is dialled.
    pub(super) fn occupy(&mut self, address: IpAddr) {
        self.bad.not_free.insert(address.to_canonical());
    }

    pub(super) fn refuse(&mut self, about: About, describe: impl FnOnce() -> String) {
        self.bad.noted.add(describe);
        match about {
            About::Device(uuid) => _ = self.bad.named.insert(uuid),
            About::Unreadable => self.bad.is_any_nameless = true,
            About::Stranger => {}
        }
    }

    fn read(&mut self, words: &[&str], uuid: Option<DeviceUuid>) -> Result<(), String> {
        let uuid = uuid.ok_or_else(|| format!("{} is no uuid of 32 or 62 hex digits", shown(words[0])))?;
        let [_, address] = words else {
            return Err(format!("{} words; write `uuid address`", words.len()));
        };
        let address: IpAddr = address.parse().map_err(|_| format!("{} is no IP address", shown(address)))?;
        self.put(uuid, address)
    }
}

impl BadLines {
    pub(super) const fn not_free(&self) -> &HashSet<IpAddr> {
        &self.not_free
    }

    /// Whether one of them may have been to say where `uuid` is.
    pub(super) fn may_name(&self, uuid: &DeviceUuid) -> bool {
        self.is_any_nameless || self.named.contains(uuid)
    }
}

/// At most [`SHOWN_CHARS_MAX`] characters, without those that would break a line.
pub(super) fn shown(word: &str) -> String {
    let shown: String = word.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    format!("`{shown}`")
}

/// The line of a file that is empty on purpose.
const NOBODY: &str = "nobody";

/// Of a bad word.
const SHOWN_CHARS_MAX: usize = 70;

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn address(lines: &Lines, uuid: &str) -> Option<String> {
        lines.addresses.get(&DeviceUuid::parse(uuid).unwrap()).map(ToString::to_string)
    }

    #[test]
    fn comments_empty_lines_and_any_blanks_are_fine() {
        let text = format!("# all\n\n  {A}\t10.8.0.2  # the first\r\n{B} ::ffff:10.8.0.3");
        let lines = Lines::parse(&text, "vpn");
        assert_eq!(lines.bad.noted, Noted::default());
        assert_eq!(address(&lines, A).as_deref(), Some("10.8.0.2"));
        assert_eq!(address(&lines, B).as_deref(), Some("10.8.0.3"), "as the kernel would dial it");
    }

    #[test]
    fn each_bad_line_is_told_with_its_number_and_the_others_count() {
        for (line, told) in [
            ("zz 10.8.0.9".to_owned(), "vpn:2: `zz` is no uuid of 32 or 62 hex digits"),
            (format!("{B} 10.8.0"), "vpn:2: `10.8.0` is no IP address"),
            (B.to_owned(), "vpn:2: 1 words; write `uuid address`"),
            (format!("{B} 10.8.0.3 up"), "vpn:2: 3 words; write `uuid address`"),
            (format!("{A} 10.8.0.3"), "vpn:2: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa is there twice"),
        ] {
            let lines = Lines::parse(&format!("{A} 10.8.0.2\n{line}\n"), "vpn");
            assert_eq!(lines.bad.noted.count, 1, "{line}");
            assert!(lines.bad.noted.examples[0].starts_with(told), "{:?}", lines.bad.noted.examples);
            assert_eq!(address(&lines, A).as_deref(), Some("10.8.0.2"), "{line}");
            assert_eq!(address(&lines, B), None, "{line}");
        }
    }

    #[test]
    fn an_address_that_two_devices_claim_is_neithers() {
        let lines = Lines::parse(&format!("{A} 10.8.0.2\n{B} ::ffff:10.8.0.2\n"), "vpn");
        assert_eq!((address(&lines, A), address(&lines, B)), (None, None));
        assert_eq!(
            lines.bad.noted.examples,
            [format!("vpn:2: 10.8.0.2 is {A}'s too, so that it is neither's")]
        );
    }
}
