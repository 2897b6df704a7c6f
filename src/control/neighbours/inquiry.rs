//! Asks the peers that the store's list of nodes names, on a thread, so that nothing waits for them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{self, Receiver};
use rustls::ClientConfig;

use super::PeerSummaries;
use super::client::{PeerAddress, ask_peers};
use crate::config::Config;
use crate::store::{self, NodeList, NodeRow, StoreError};

/// The way to the peers.
pub(in crate::control) struct Inquiry {
    /// Name of this node, which is not asked.
    name: String,
    config: Arc<Config>,
    tls: Arc<ClientConfig>,
}

/// The peers' answers, or the reason why the list of nodes cannot be read.
pub(in crate::control) type InquiryAnswer = Result<PeerSummaries, StoreError>;

impl Inquiry {
    /// `None` where the node stands alone.
    pub(in crate::control) fn new(config: &Config, tls: Option<Arc<ClientConfig>>) -> Option<Self> {
        config.forward.listen?;
        Some(Self { name: config.vpn.node.clone()?, config: Arc::new(config.clone()), tls: tls? })
    }

    /// Starts a thread that asks all peers. It ends by itself, whether anybody waits for the answer or not.
    pub(in crate::control) fn begin(&self) -> io::Result<Receiver<InquiryAnswer>> {
        let (sender, answer) = channel::bounded(1);
        let (name, config, tls) = (self.name.clone(), Arc::clone(&self.config), Arc::clone(&self.tls));
        std::thread::Builder::new().name("ask-peers".to_owned()).spawn(move || {
            // Nobody may be waiting any more.
            drop(sender.send(ask(&name, &config, &tls)));
        })?;
        Ok(answer)
    }
}

fn ask(name: &str, config: &Config, tls: &Arc<ClientConfig>) -> InquiryAnswer {
    let NodeList { nodes, .. } = store::node_table(config).read()?;
    let may_be_asked =
        |node: &NodeRow| *node.name != *name && config.forward.allows(&node.name, node.forward.ip());
    let others = nodes.into_iter().filter(may_be_asked);
    let (stale, alive): (Vec<_>, Vec<_>) = others.partition(|node| node.is_stale(config.forward.max_age));
    let peers: Vec<PeerAddress> =
        alive.into_iter().map(|node| PeerAddress { name: node.name, address: node.forward }).collect();
    let mut said = ask_peers(&peers, tls, PEERS_TIME);
    said.silent.extend(stale.into_iter().map(|node| {
        let age = Duration::from_secs(u64::try_from(node.age_ms / 1000).unwrap_or_default());
        (node.name, format!("its last heartbeat was {} ago", humantime::format_duration(age)))
    }));
    Ok(said)
}

/// Time that the peers have to answer.
const PEERS_TIME: Duration = Duration::from_secs(2);
