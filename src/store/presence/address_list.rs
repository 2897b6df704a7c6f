//! The addresses that a source gives, and the format of a file of them.
//!
//! Each line is `uuid address`; a comment begins with `#`. A file that is meant to have no addresses has a line `nobody`.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::authz::{DeviceUuid, UnixMillis};
use crate::store::Examples;

/// Addresses of devices, and the lines that give none.
#[derive(Default)]
pub(super) struct AddressList {
    pub(super) addresses: HashMap<DeviceUuid, IpAddr>,
    /// Time when each device came to its address, if the source gives it.
    pub(super) since: HashMap<DeviceUuid, UnixMillis>,
    pub(super) bad: BadLines,
    /// True if a list without devices is meant so.
    pub(super) may_be_empty: bool,
    /// The first device that each address was given for.
    pub(super) holders: HashMap<IpAddr, DeviceUuid>,
}

/// Lines that give no address.
#[derive(Default)]
pub(super) struct BadLines {
    pub(super) examples: Examples,
    /// Devices that some of them are about.
    named: HashSet<DeviceUuid>,
    /// True if some of them may be about any device.
    is_any_nameless: bool,
    /// Addresses of several devices, or of a peer that is no device. No device keeps one of them from an earlier list:
    /// the wrong device would be dialled.
    occupied: HashSet<IpAddr>,
}

/// The device that a bad line is about.
#[derive(Clone, Copy)]
pub(super) enum BadLineSubject {
    Device(DeviceUuid),
    /// The line may be about any device.
    Unreadable,
    /// The line is about a peer that is certainly no device.
    Stranger,
}

impl AddressList {
    /// Parses a file. `name` names it in the log line about a bad line.
    pub(super) fn parse(text: &str, name: &str) -> Self {
        let mut list = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            let Some(first) = words.first() else { continue };
            if words == [NOBODY] {
                list.may_be_empty = true;
                continue;
            }
            let uuid = DeviceUuid::parse(first);
            if let Err(reason) = list.read(&words, uuid) {
                let about = uuid.map_or(BadLineSubject::Unreadable, BadLineSubject::Device);
                list.refuse(about, || format!("{name}:{number}: {reason}"));
            }
        }
        list
    }

    /// Gives `address` to `uuid`. The error says why that cannot be.
    pub(super) fn put(&mut self, uuid: DeviceUuid, address: IpAddr) -> Result<(), String> {
        let address = address.to_canonical();
        if self.addresses.contains_key(&uuid) {
            return Err(format!("{uuid} is there twice; its first line counts"));
        }
        if let Some(holder) = self.holders.get(&address) {
            self.bad.occupied.insert(address);
            self.addresses.remove(holder);
            return Err(format!("{address} is {holder}'s too, so that it is neither's"));
        }
        self.addresses.insert(uuid, address);
        self.holders.insert(address, uuid);
        Ok(())
    }

    /// Marks the address of another peer. No device keeps it from an earlier list.
    pub(super) fn occupy(&mut self, address: IpAddr) {
        self.bad.occupied.insert(address.to_canonical());
    }

    /// Records a line that gives no address.
    pub(super) fn refuse(&mut self, about: BadLineSubject, describe: impl FnOnce() -> String) {
        self.bad.examples.add(describe);
        match about {
            BadLineSubject::Device(uuid) => _ = self.bad.named.insert(uuid),
            BadLineSubject::Unreadable => self.bad.is_any_nameless = true,
            BadLineSubject::Stranger => {}
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
    pub(super) const fn occupied(&self) -> &HashSet<IpAddr> {
        &self.occupied
    }

    /// True if one of the lines may have had the address of `uuid`.
    pub(super) fn may_name(&self, uuid: &DeviceUuid) -> bool {
        self.is_any_nameless || self.named.contains(uuid)
    }
}

/// Quotes a word, cut to [`SHOWN_CHARS_MAX`] characters, with those escaped that would break a line.
pub(super) fn shown(word: &str) -> String {
    let shown: String = word.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    format!("`{shown}`")
}

/// The line of a file that is empty on purpose.
const NOBODY: &str = "nobody";

/// Characters of a bad word that are shown.
const SHOWN_CHARS_MAX: usize = 70;

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn address(list: &AddressList, uuid: &str) -> Option<String> {
        list.addresses.get(&DeviceUuid::parse(uuid).unwrap()).map(ToString::to_string)
    }

    #[test]
    fn comments_empty_lines_and_any_blanks_are_fine() {
        let text = format!("# all\n\n  {A}\t10.8.0.2  # the first\r\n{B} ::ffff:10.8.0.3");
        let list = AddressList::parse(&text, "vpn");
        assert_eq!(list.bad.examples, Examples::default());
        assert_eq!(address(&list, A).as_deref(), Some("10.8.0.2"));
        assert_eq!(address(&list, B).as_deref(), Some("10.8.0.3"), "as the kernel would dial it");
    }

    #[test]
    fn each_bad_line_is_shown_with_its_number_and_the_others_count() {
        for (line, expected) in [
            ("zz 10.8.0.9".to_owned(), "vpn:2: `zz` is no uuid of 32 or 62 hex digits"),
            (format!("{B} 10.8.0"), "vpn:2: `10.8.0` is no IP address"),
            (B.to_owned(), "vpn:2: 1 words; write `uuid address`"),
            (format!("{B} 10.8.0.3 up"), "vpn:2: 3 words; write `uuid address`"),
            (format!("{A} 10.8.0.3"), "vpn:2: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa is there twice"),
        ] {
            let list = AddressList::parse(&format!("{A} 10.8.0.2\n{line}\n"), "vpn");
            assert_eq!(list.bad.examples.count, 1, "{line}");
            assert!(list.bad.examples.examples[0].starts_with(expected), "{:?}", list.bad.examples.examples);
            assert_eq!(address(&list, A).as_deref(), Some("10.8.0.2"), "{line}");
            assert_eq!(address(&list, B), None, "{line}");
        }
    }

    #[test]
    fn an_address_that_two_devices_claim_is_neithers() {
        let list = AddressList::parse(&format!("{A} 10.8.0.2\n{B} ::ffff:10.8.0.2\n"), "vpn");
        assert_eq!((address(&list, A), address(&list, B)), (None, None));
        assert_eq!(
            list.bad.examples.examples,
            [format!("vpn:2: 10.8.0.2 is {A}'s too, so that it is neither's")]
        );
    }
}
