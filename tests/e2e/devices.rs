//! The devices: what listens on each, and its VPN connection, which comes and goes.

use std::net::{Ipv4Addr, SocketAddr};

use crate::openvpn::Client;
use crate::pki::{Authority, Holder, Pair};
use crate::places::Place;
use crate::support::{Device as Service, Sshd, sshd};

pub const HTTP_PORT: u16 = 80;
pub const SSH_PORT: u16 = 22222;
pub const ECHO_PORT: u16 = 7;

/// The page that the HTTP server of every device serves.
pub const PAGE: &[u8] = b"<p>a page of the device</p>\n";

pub struct Device<'a> {
    pub uuid: &'static str,
    pub sshd: Sshd,
    place: &'a Place,
    pair: Pair,
    vpn: Option<Client>,
    _echo: Service,
    _http: Service,
}

impl<'a> Device<'a> {
    /// Starts the services of a device; its VPN connection comes later.
    pub fn new(uuid: &'static str, place: &'a Place, authority: &Authority) -> Self {
        let pair = authority.issue(uuid, &Holder::Client);
        let at = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let sshd = Sshd::start_by(place.command(sshd::PROGRAM), at(SSH_PORT));
        place.enter(|| Self {
            uuid,
            sshd,
            place,
            pair,
            vpn: None,
            _echo: Service::echo_at(at(ECHO_PORT)),
            _http: Service::http_at(at(HTTP_PORT), PAGE),
        })
    }

    pub fn connect(&mut self, node: &Place, authority: &Authority) {
        self.vpn = Some(Client::start(self.place, node, &self.pair, authority));
    }

    /// The VPN client ends, and says so to its server.
    pub fn disconnect(&mut self) {
        self.vpn.take().expect("it is connected").leave();
    }

    /// The VPN client is gone, and its server does not know.
    pub fn vanish(&mut self) {
        self.vpn = None;
    }
}
