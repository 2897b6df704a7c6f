//! The rights of a simulated installation: a model of a few lines, beside the snapshots that the relay gets.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::tape::Tape;
use crate::authz::{
    Credential, Device, DeviceId, DeviceUuid, Generation, Grant, GrantId, KeyHash, PortRange, PrincipalId,
    Scope, Snapshot, UnixMillis, View,
};

/// What is true at one time. The place in each list is the token's, the principal's or the device's number.
#[derive(Clone, PartialEq)]
pub struct Rights {
    pub credentials: [bool; TOKENS],
    /// The grant of each principal, and the time of its end.
    pub grants: [Option<Option<UnixMillis>>; PRINCIPALS],
    pub devices: [Option<DeviceModel>; DEVICES],
}

#[derive(Clone, Copy, PartialEq)]
pub struct DeviceModel {
    pub address: Ipv4Addr,
    pub is_online: bool,
}

/// The model's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Allowed(Ipv4Addr),
    /// 407.
    Credentials,
    /// 403.
    NotPermitted,
    /// 503.
    Offline,
}

pub const TOKENS: usize = 4;
pub const PRINCIPALS: usize = 2;
pub const DEVICES: usize = 3;

impl Rights {
    /// All that there is, is allowed.
    pub fn all() -> Self {
        let device =
            |number: u8| Some(DeviceModel { address: Ipv4Addr::new(127, 0, 1, number + 1), is_online: true });
        Self {
            credentials: [true; TOKENS],
            grants: [Some(None); PRINCIPALS],
            devices: [device(0), device(1), device(2)],
        }
    }

    /// Changes one thing.
    pub fn change(&mut self, tape: &mut Tape, now: UnixMillis) {
        match tape.roll(6) {
            0 => {
                let grant = &mut self.grants[tape.roll(PRINCIPALS)];
                *grant = if grant.is_some() { None } else { Some(None) };
            }
            1 => {
                let credential = &mut self.credentials[tape.roll(TOKENS)];
                *credential = !*credential;
            }
            2 => {
                let ms = 1 + tape.roll(5_000) as i64;
                self.grants[tape.roll(PRINCIPALS)] = Some(Some(UnixMillis(now.0 + ms)));
            }
            3 => {
                if let Some(device) = &mut self.devices[tape.roll(DEVICES)] {
                    device.address =
                        Ipv4Addr::new(127, 0, 1 + tape.roll(3) as u8, device.address.octets()[3]);
                }
            }
            4 => {
                if let Some(device) = &mut self.devices[tape.roll(DEVICES)] {
                    device.is_online = !device.is_online;
                }
            }
            _ => *self = Self::all(),
        }
    }

    /// The answer to a client at `now`.
    pub fn answer(&self, token: usize, device: usize, now: UnixMillis) -> Answer {
        if !self.credentials.get(token).is_some_and(|is_there| *is_there) {
            return Answer::Credentials;
        }
        match (self.has_right(token, device, now), self.devices.get(device).copied().flatten()) {
            (true, Some(device)) if device.is_online => Answer::Allowed(device.address),
            (true, Some(_)) => Answer::Offline,
            _ => Answer::NotPermitted,
        }
    }

    /// The client may reach the device, wherever that is.
    pub fn has_right(&self, token: usize, device: usize, now: UnixMillis) -> bool {
        self.credentials.get(token).is_some_and(|is_there| *is_there)
            && self.devices.get(device).is_some_and(|device| device.is_some())
            && self.grants[token % PRINCIPALS].is_some_and(|end| end.is_none_or(|end| now < end))
    }

    /// The view that says the same.
    pub fn view(&self, generation: u64) -> Arc<View> {
        let credentials = (0..TOKENS).filter(|token| self.credentials[*token]).map(|token| Credential {
            key: KeyHash::of_token(self::token(token).as_bytes()),
            principal: principal(token),
            expires_at: None,
            revoked: false,
        });
        let grants = (0..PRINCIPALS).filter_map(|number| {
            Some(Grant {
                id: GrantId(number as i64 + 1),
                principal: principal(number),
                scope: Scope::Any,
                ports: PortRange::ANY,
                expires_at: self.grants[number]?,
                revoked: false,
            })
        });
        let devices = (0..DEVICES).filter_map(|number| {
            let DeviceModel { address, is_online } = self.devices[number]?;
            Some(Device {
                id: DeviceId(number as i64 + 1),
                uuid: DeviceUuid::parse(&uuid(number))?,
                fleet: None,
                address: Some(IpAddr::V4(address)),
                node: None,
                online: is_online,
                disputed: false,
            })
        });
        Arc::new(View {
            snapshot: Arc::new(Snapshot::build(
                Generation(generation),
                credentials.collect(),
                grants.collect(),
                devices.collect(),
            )),
            revocations: Arc::default(),
            previous: None,
        })
    }
}

pub fn token(number: usize) -> String {
    format!("token-{number}")
}

pub fn uuid(device: usize) -> String {
    format!("{device:032x}")
}

fn principal(token: usize) -> PrincipalId {
    PrincipalId((token % PRINCIPALS) as i64 + 1)
}
