//! Where devices are, by what is not the store: whose an address is, and what the network and the peers say of devices
//! that the store has lost sight of.

mod network_answer;
mod peers;
mod probe;
mod whose_address;

pub(super) use network_answer::NetworkAnswer;
pub(super) use peers::{DisplacedDevices, PeerPolls, PeerWord};
pub(super) use probe::{ASKED_MAX, ProbeTarget, Prober, ask_each};
pub(super) use whose_address::{AddressOwners, PlaceMove};
