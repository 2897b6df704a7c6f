//! From the decision to a connected device.

use std::io;
use std::net::SocketAddr;

use super::{Dial, Session, Stage, Turn};
use crate::authz::{Decision, Route};
use crate::engine::kernel::{Kernel, SocketOperation};
use crate::engine::session::reject::Rejection;
use crate::engine::user_data::Purpose;
use crate::telemetry::Cause;
use crate::wire::Reply;

impl<K: Kernel> Session<K> {
    pub(super) fn dial(&mut self, route: &Route, dial: Dial, turn: &mut Turn<'_, K>) {
        let address = SocketAddr::new(route.address.to_canonical(), route.port);
        if !turn.shared.config.vpn.allows(address.ip()) {
            let no = Rejection {
                reply: Reply::DeviceAddress,
                cause: Cause::DeviceAddressNotAllowed,
                detail: Some(format!("{} is outside vpn.allow", address.ip())),
            };
            return self.refuse(dial.version, no, turn);
        }
        match turn.shared.limits.permit(route.principal, route.device) {
            Ok(permit) => self.permit = Some(permit),
            Err(hit) => {
                let no = Rejection { reply: Reply::Limit, cause: hit.into(), detail: None };
                return self.refuse(dial.version, no, turn);
            }
        }
        let device = match turn.kernel.open_device_socket(address) {
            Ok(device) => device,
            Err(error) => return self.refuse(dial.version, no_socket(&error), turn),
        };
        let device = self.device.insert(device);
        self.in_flight.begin(Purpose::Connect);
        let token =
            crate::engine::user_data::UserData::Session { slot: self.slot, purpose: Purpose::Connect };
        turn.kernel.submit(token, SocketOperation::Connect(device, address));
        turn.counters.accept_to_dial.record_us(turn.now.us_since(self.accepted_at_us));
        self.deadline = Some(turn.now.after(turn.shared.config.timeouts.connect));
        self.stage = Stage::Dial(Box::new(Dial {
            expires_at: route.expires_at,
            began_us: turn.now.monotonic_us,
            ..dial
        }));
    }

    pub(super) fn on_connected(&mut self, result: i32, turn: &mut Turn<'_, K>) {
        let Stage::Dial(dial) = std::mem::replace(&mut self.stage, Stage::Ended(None)) else { return };
        turn.counters.dial.record_us(turn.now.us_since(dial.began_us));
        if result == 0 {
            return self.open_tunnel(*dial, &[], turn);
        }
        let no = unreachable(&io::Error::from_raw_os_error(-result));
        self.refuse(dial.version, no, turn);
    }

    /// `timeouts.connect` has passed.
    pub(super) fn refuse_silent_device(&mut self, turn: &mut Turn<'_, K>) {
        let Stage::Dial(dial) = &self.stage else { return };
        turn.counters.dial.record_us(turn.now.us_since(dial.began_us));
        let version = dial.version;
        self.refuse(
            version,
            Rejection { reply: Reply::DeviceTimeout, cause: Cause::DeviceTimeout, detail: None },
            turn,
        );
    }

    /// The view has changed while the device is being dialled.
    pub(super) fn recheck_dial(&mut self, decision: Decision, turn: &mut Turn<'_, K>) {
        let Stage::Dial(dial) = &mut self.stage else { return };
        match decision {
            Decision::Allow(route) => dial.expires_at = route.expires_at,
            Decision::Refuse(refusal) => {
                let version = dial.version;
                self.is_regression(refusal, turn);
                self.refuse(version, Rejection::refused(refusal), turn);
            }
            // The client was allowed a moment ago, and nobody has said otherwise.
            Decision::Undecided(_) => {}
        }
    }
}

/// The node could not even open a socket.
fn no_socket(error: &io::Error) -> Rejection {
    let (reply, cause) = match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => (Reply::Limit, Cause::Descriptors),
        Some(libc::ENOBUFS | libc::ENOMEM) => (Reply::Limit, Cause::Memory),
        Some(libc::ENODEV) => (Reply::DeviceUnreachable, Cause::VpnInterfaceMissing),
        _ => (Reply::DeviceUnreachable, Cause::DeviceSocket),
    };
    Rejection { reply, cause, detail: Some(error.to_string()) }
}

/// The connect failed.
fn unreachable(error: &io::Error) -> Rejection {
    let (reply, cause) = match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => (Reply::DevicePortClosed, Cause::DevicePortClosed),
        Some(libc::ETIMEDOUT) => (Reply::DeviceTimeout, Cause::DeviceTimeout),
        Some(libc::EADDRNOTAVAIL) => (Reply::Limit, Cause::LocalPorts),
        _ => (Reply::DeviceUnreachable, Cause::DeviceUnreachable),
    };
    Rejection { reply, cause, detail: Some(error.to_string()) }
}
