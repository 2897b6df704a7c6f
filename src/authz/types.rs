//! The words that authorization is spoken in: identities, rights and times, as checked values.
//!
//! Everything here was decoded from a store row or a client's head and holds no reference to either.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize, de};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The SHA-256 of a token. Tokens themselves are never stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    pub const LOGIN_SECRET_PREFIX: &'static str = "jwt_secret:";

    pub fn of_token(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// Hashes a secret that a session token holds and by which the store knows a principal. No plain token has the same
    /// key, since tokens with this prefix are refused: the secret alone opens nothing.
    pub fn of_login_secret(secret: &str) -> Self {
        Self(Sha256::new().chain_update(Self::LOGIN_SECRET_PREFIX).chain_update(secret).finalize().into())
    }

    /// Stands for the secret of a user of openBalena who has none. No secret has the same key, since a text of
    /// PostgreSQL holds no zero byte.
    pub fn of_login_without_secret(user: u32) -> Self {
        Self::of_login_secret(&format!("\0{user}"))
    }

    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Compares without telling by its time how many bytes agree.
    pub fn matches(&self, other: &Self) -> bool {
        // All words come together before anything is asked of them: a comparison each takes longer.
        let words = self.words().into_iter().zip(other.words());
        words.fold(0, |difference, (ours, theirs)| difference | (ours ^ theirs)).ct_eq(&0).into()
    }

    fn words(&self) -> [u64; 4] {
        let (words, _) = self.0.as_chunks::<8>();
        std::array::from_fn(|index| u64::from_ne_bytes(words[index]))
    }

    /// The name of this credential in logs and listings: too short to look a token up by, long enough to
    /// distinguish a fleet's credentials.
    pub fn credential_id(&self) -> CredentialId {
        let mut head = [0; 8];
        head.copy_from_slice(&self.0[..8]);
        CredentialId(head)
    }
}

/// As bytes, for another process of this node. No text for people has a whole hash.
impl Serialize for KeyHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for KeyHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <[u8; 32]>::deserialize(deserializer).map(Self)
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({}…)", self.credential_id())
    }
}

/// The first eight bytes of a [`KeyHash`], shown as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CredentialId([u8; 8]);

impl CredentialId {
    /// Reads 16 hex digits; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 8];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    pub const fn to_bytes(self) -> [u8; 8] {
        self.0
    }
}

impl Hash for CredentialId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from_ne_bytes(self.0));
    }
}

impl fmt::Display for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for CredentialId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CredentialId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("a credential id has 16 hex digits"))
    }
}

/// A requester, which holds credentials and grants.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PrincipalId(pub i64);

/// The store's number for a device. Clients know a device by its [`DeviceUuid`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeviceId(pub i64);

/// A set of devices that grants can name as one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FleetId(pub i64);

/// The store's number for a grant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GrantId(pub i64);

impl GrantId {
    /// Stands for a right that a session token itself gives. No store numbers a grant so.
    pub const IN_TOKEN: Self = Self(i64::MIN);
}

/// A device's uuid: 32 or 62 hex digits, kept as bytes so that case does not matter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceUuid {
    bytes: [u8; LONG_UUID_BYTES],
    len: u8,
}

const SHORT_UUID_BYTES: usize = 16;
const LONG_UUID_BYTES: usize = 31;

impl DeviceUuid {
    /// `None` unless `text` is 32 or 62 hex digits, in either case.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; LONG_UUID_BYTES];
        let bytes = bytes.get_mut(..text.len() / 2)?;
        hex::decode_to_slice(text, bytes).ok()?;
        Self::from_bytes(bytes)
    }

    /// `None` unless there are 16 or 31 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes.len() {
            SHORT_UUID_BYTES => {
                let mut padded = [0; LONG_UUID_BYTES];
                padded[..SHORT_UUID_BYTES].copy_from_slice(bytes);
                Some(Self { bytes: padded, len: SHORT_UUID_BYTES as u8 })
            }
            LONG_UUID_BYTES => Some(Self { bytes: bytes.try_into().ok()?, len: LONG_UUID_BYTES as u8 }),
            _ => None,
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl Hash for DeviceUuid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Without the length of each part, which the derived way adds: that takes twice as long.
        state.write(self.as_bytes());
    }
}

impl fmt::Display for DeviceUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.as_bytes()))
    }
}

impl fmt::Debug for DeviceUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for DeviceUuid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DeviceUuid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("a device's uuid has 32 or 62 hex digits"))
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z, the resolution in which rights expire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub i64);

impl UnixMillis {
    /// Reads the wall clock. Engines read it once per turn and pass it on.
    pub fn now() -> Self {
        let since_epoch = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("the wall clock stands before 1970; set it");
        Self(since_epoch.as_millis() as i64)
    }
}

/// The ports of a device that a grant opens, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "(u16, u16)", into = "(u16, u16)")]
pub struct PortRange {
    min: u16,
    max: u16,
}

impl From<PortRange> for (u16, u16) {
    fn from(range: PortRange) -> Self {
        (range.min, range.max)
    }
}

impl TryFrom<(u16, u16)> for PortRange {
    type Error = &'static str;

    fn try_from((min, max): (u16, u16)) -> Result<Self, Self::Error> {
        Self::new(min, max).ok_or("a range of ports holds a port, and not 0")
    }
}

impl PortRange {
    pub const ANY: Self = Self { min: 1, max: u16::MAX };

    /// `None` for an empty range or one that holds port 0, which nobody can dial.
    pub const fn new(min: u16, max: u16) -> Option<Self> {
        if min == 0 || min > max { None } else { Some(Self { min, max }) }
    }

    pub const fn min(self) -> u16 {
        self.min
    }

    pub const fn max(self) -> u16 {
        self.max
    }

    pub const fn contains(self, port: u16) -> bool {
        self.min <= port && port <= self.max
    }
}

/// The devices that a grant is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Scope {
    Any,
    Fleet(FleetId),
    Device(DeviceId),
}

/// A row of the relation `credentials`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Credential {
    pub key: KeyHash,
    pub principal: PrincipalId,
    pub expires_at: Option<UnixMillis>,
    pub revoked: bool,
}

/// A row of the relation `grants`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Grant {
    pub id: GrantId,
    pub principal: PrincipalId,
    pub scope: Scope,
    pub ports: PortRange,
    pub expires_at: Option<UnixMillis>,
    pub revoked: bool,
}

impl Grant {
    /// Returns whether the row itself says that the grant has ended: it is revoked, or `now` is past its end.
    #[inline]
    pub fn has_ended(&self, now: UnixMillis) -> bool {
        self.revoked || self.expires_at.is_some_and(|end| end <= now)
    }
}

/// A row of the relation `devices`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Device {
    pub id: DeviceId,
    pub uuid: DeviceUuid,
    pub fleet: Option<FleetId>,
    /// Address on the VPN; `None` where the store does not know it.
    pub address: Option<IpAddr>,
    /// The node that holds its VPN connection; `None` means any node reaches it.
    pub node: Option<Box<str>>,
    pub online: bool,
    /// It cannot be told whose the address is. No new tunnel is dialled, by this node or by another one, until that is
    /// settled. The control thread works it out anew at each start: no store and no kept state has it.
    pub disputed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_only_where_every_byte_does() {
        let key = KeyHash::of_token(b"token");
        assert!(key.matches(&KeyHash::of_token(b"token")));
        for place in 0..32 {
            let mut bytes = *key.as_bytes();
            bytes[place] ^= 0x10;
            assert!(!key.matches(&KeyHash::from_bytes(bytes)), "byte {place}");
        }
    }

    #[test]
    fn a_uuid_has_32_or_62_hex_digits_in_any_case() {
        for digits in [32, 62] {
            let lower = DeviceUuid::parse(&"ab".repeat(digits / 2)).unwrap();
            assert_eq!(DeviceUuid::parse(&"aB".repeat(digits / 2)), Some(lower));
            assert_eq!(lower.to_string(), "ab".repeat(digits / 2));
        }
        for text in ["", "ab", &"a".repeat(31), &"a".repeat(33), &"a".repeat(64), &"g".repeat(32)] {
            assert_eq!(DeviceUuid::parse(text), None, "{text}");
        }
        assert_ne!(DeviceUuid::parse(&"00".repeat(16)), DeviceUuid::parse(&"00".repeat(31)));
    }

    #[test]
    fn a_port_range_holds_both_its_ends_and_never_port_0() {
        let range = PortRange::new(22, 80).unwrap();
        assert_eq!([21, 22, 80, 81].map(|port| range.contains(port)), [false, true, true, false]);
        assert_eq!((PortRange::new(0, 80), PortRange::new(81, 80)), (None, None));
        assert!(!PortRange::ANY.contains(0) && PortRange::ANY.contains(u16::MAX));
    }
}
