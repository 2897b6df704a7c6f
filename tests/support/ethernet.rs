//! An Ethernet between namespaces.

use super::Namespace;

/// A bridge without an address, in a namespace of its own.
pub struct Switch(Namespace);

impl Switch {
    pub fn new() -> Self {
        let namespace = Namespace::new();
        namespace.ip("link add bridge type bridge");
        namespace.ip("link set bridge up");
        Self(namespace)
    }

    /// A new namespace with a cable to here: its `eth0` has `address` in a network of 256, and this end has `name`.
    pub fn plug(&self, name: &str, address: &str) -> Namespace {
        let namespace = Namespace::new();
        self.0.ip(&format!("link add {name} type veth peer name eth0 netns {}", namespace.id()));
        self.0.ip(&format!("link set {name} master bridge up"));
        namespace.ip(&format!("address add {address}/24 dev eth0"));
        namespace.ip("link set eth0 up");
        namespace
    }

    /// Sets the link up or down, as if somebody plugged the cable in or out.
    pub fn set_link(&self, name: &str, state: &str) {
        self.0.ip(&format!("link set {name} {state}"));
    }
}
