//! From the decision to a connected device.

use std::io;
use std::net::SocketAddr;

use super::State;
use super::core::SessionCore;
use super::reject::Rejection;
use super::request::ClientRequest;
use super::tunnel::TunnelParts;
use crate::authz::{Decision, Route, UnixMillis};
use crate::engine::kernel::io::errno;
use crate::engine::kernel::{Kernel, SocketOperation};
use crate::engine::limits::TunnelPermit;
use crate::engine::tls::transport::Endpoint;
use crate::engine::turn::TurnCx;
use crate::engine::user_data::Purpose;
use crate::telemetry::Cause;
use crate::wire::Reply;

/// The connection to the device is under way.
pub(super) struct Connecting<K: Kernel> {
    pub request: ClientRequest<K>,
    pub device: K::Socket,
    permit: TunnelPermit,
    expires_at: Option<UnixMillis>,
    /// Time of the connect, by the thread's clock.
    began_us: u64,
}

impl<K: Kernel> Connecting<K> {
    pub fn start(
        request: ClientRequest<K>,
        route: &Route,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        let address = SocketAddr::new(route.address.to_canonical(), route.port);
        if !cx.config.vpn.allows(address.ip()) {
            let rejection = Rejection {
                reply: Reply::DeviceAddress,
                cause: Cause::DeviceAddressNotAllowed,
                detail: Some(format!("{} is outside vpn.allow", address.ip())),
            };
            return request.reject(rejection, core, cx);
        }
        let permit = match cx.shared.limits.permit(route.principal, route.device) {
            Ok(permit) => permit,
            Err(hit) => {
                let rejection = Rejection { reply: Reply::Limit, cause: hit.into(), detail: None };
                return request.reject(rejection, core, cx);
            }
        };
        let device = match cx.kernel.open_device_socket(address) {
            Ok(device) => device,
            Err(error) => {
                drop(permit);
                return request.reject(no_socket(&error), core, cx);
            }
        };
        core.io(cx).submit(Purpose::Connect, SocketOperation::Connect(&device, address));
        cx.counters.accept_to_dial.record_us(cx.now.us_since(core.accepted_at_us));
        core.deadline = Some(cx.now.after(cx.config.timeouts.connect));
        let (expires_at, began_us) = (route.expires_at, cx.now.monotonic_us);
        State::Connect(Box::new(Self { request, device, permit, expires_at, began_us }))
    }

    /// Takes the result of the connect: the tunnel opens, or the client gets the reason.
    pub fn on_connected(self, result: i32, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        cx.counters.dial.record_us(cx.now.us_since(self.began_us));
        if result != 0 {
            return self.reject(unreachable(&errno(result)), core, cx);
        }
        let Self { request, device, permit, expires_at, .. } = self;
        let device = Endpoint::plain(device);
        let parts = TunnelParts { request, device, permit: Some(permit), expires_at, early_down: Vec::new() };
        State::open_tunnel(parts, core, cx)
    }

    /// `timeouts.connect` has passed.
    pub fn on_deadline(self, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        cx.counters.dial.record_us(cx.now.us_since(self.began_us));
        let rejection = Rejection { reply: Reply::DeviceTimeout, cause: Cause::DeviceTimeout, detail: None };
        self.reject(rejection, core, cx)
    }

    /// The view has changed meanwhile.
    pub fn recheck(
        mut self: Box<Self>,
        decision: Decision,
        core: &mut SessionCore,
        cx: &mut TurnCx<'_, K>,
    ) -> State<K> {
        match decision {
            Decision::Allow(route) => self.expires_at = route.expires_at,
            Decision::Refuse(refusal) => {
                core.note_regression(refusal, cx);
                return self.reject(Rejection::refused(refusal), core, cx);
            }
            // The client was allowed a moment ago, and nothing says otherwise.
            Decision::Undecided(_) => {}
        }
        State::Connect(self)
    }

    pub fn reject(self, rejection: Rejection, core: &mut SessionCore, cx: &mut TurnCx<'_, K>) -> State<K> {
        let Self { request, device, permit, .. } = self;
        // Before the reply, since a client that reads it may ask again at once.
        drop(permit);
        State::reject_with(request, device, rejection, core, cx)
    }
}

/// The rejection where the node could not open a socket.
fn no_socket(error: &io::Error) -> Rejection {
    let (reply, cause) = match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => (Reply::Limit, Cause::Descriptors),
        Some(libc::ENOBUFS | libc::ENOMEM) => (Reply::Limit, Cause::Memory),
        Some(libc::ENODEV) => (Reply::DeviceUnreachable, Cause::VpnInterfaceMissing),
        _ => (Reply::DeviceUnreachable, Cause::DeviceSocket),
    };
    Rejection { reply, cause, detail: Some(error.to_string()) }
}

/// The rejection where the connect failed.
fn unreachable(error: &io::Error) -> Rejection {
    let (reply, cause) = match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => (Reply::DevicePortClosed, Cause::DevicePortClosed),
        Some(libc::ETIMEDOUT) => (Reply::DeviceTimeout, Cause::DeviceTimeout),
        Some(libc::EADDRNOTAVAIL) => (Reply::Limit, Cause::LocalPorts),
        _ => (Reply::DeviceUnreachable, Cause::DeviceUnreachable),
    };
    Rejection { reply, cause, detail: Some(error.to_string()) }
}
