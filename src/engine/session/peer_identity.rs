//! Who hands a request over: the node that the directory knows by the name in its certificate.
//!
//! The CA alone says too little. It may have signed certificates for others than nodes, and whoever counts as a node
//! says who the client is.

use super::core::{RareParts, SessionCore};
use super::reject::Rejection;
use crate::engine::kernel::Kernel;
use crate::engine::tls::transport::Transport;
use crate::engine::turn::TurnCx;
use crate::telemetry::Cause;
use crate::wire::{Reply, certificate_name, node_name};

impl SessionCore {
    /// Finds the peer's name, for [`via`](SessionCore::via). While the directory was never read, the certificate's own
    /// name counts: a node must serve its peers while the store is away.
    pub fn identify_peer<K: Kernel>(&mut self, transport: &Transport, cx: &TurnCx<'_, K>) {
        let Transport::UserTls(stream) = transport else { return };
        let Some(certificate) = stream.peer_certificate() else { return };
        let directory = cx.shared.authority.directory().get();
        let via = match directory.was_read() {
            true => node_name(certificate, directory.nodes().map(|(name, _)| name)).map(Box::from),
            false => Some(certificate_name(certificate).into()),
        };
        let address = self.client_address.map(|address| address.ip());
        let via = via.filter(|via| address.is_none_or(|address| cx.config.forward.allows(via, address)));
        self.rare = via.map(|via| Box::new(RareParts { head: None, via: Some(via) }));
    }
}

impl Rejection {
    /// The rejection of a request from one whose certificate is good, and that is no node of the directory, or a node
    /// that is refused.
    pub fn no_node(transport: &Transport) -> Self {
        let name = match transport {
            Transport::UserTls(stream) => {
                stream.peer_certificate().map(|certificate| certificate_name(certificate))
            }
            Transport::Plain | Transport::KernelTls => None,
        };
        let detail = name.map(|name| {
            format!("the certificate is for {name}, which is no node of the directory, or is refused")
        });
        Self { reply: Reply::Undecided, cause: Cause::NodeStranger, detail }
    }
}
