//! Probes through other nodes: which node is next, and which nodes fail.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::outcome::ProbeOutcome;
use crate::admin::api::{ProbePathStatus, ProbeResult};
use crate::authz::UnixMillis;
use crate::sys::service_thread::StopSignal;

/// Turn and failures of the other nodes.
#[derive(Default)]
pub(super) struct PeerProbes {
    failing: BTreeMap<Arc<str>, String>,
    /// The node that was probed last.
    last: Option<Arc<str>>,
}

/// Results of probing some of the nodes.
pub(super) struct PeerRound {
    succeeded: u64,
    failed: u64,
    longest: Duration,
    /// Failures of all nodes, in this round or before.
    failure: Option<String>,
}

impl PeerProbes {
    /// Probes the next of `nodes`, which are sorted. Returns `None` where there is no other node.
    pub fn probe_next(
        &mut self,
        nodes: &[Arc<str>],
        probe: impl Fn(&Arc<str>) -> ProbeOutcome,
        stop: &StopSignal,
    ) -> Option<PeerRound> {
        self.failing.retain(|name, _| nodes.contains(name));
        let after = self.last.take();
        let first = nodes.partition_point(|name| Some(name) <= after.as_ref());
        let mut round = PeerRound { succeeded: 0, failed: 0, longest: Duration::ZERO, failure: None };
        for node in nodes[first..].iter().chain(&nodes[..first]).take(NODES_PER_ROUND_MAX) {
            if stop.is_stopped() {
                break;
            }
            let ProbeOutcome { took, result } = probe(node);
            round.succeeded += u64::from(result.is_ok());
            round.failed += u64::from(result.is_err());
            round.longest = round.longest.max(took);
            self.record_peer(node, result.err().map(|error| error.to_string()));
            self.last = Some(Arc::clone(node));
        }
        round.failure = self.failure();
        (!nodes.is_empty()).then_some(round)
    }

    fn record_peer(&mut self, node: &Arc<str>, failure: Option<String>) {
        match failure {
            Some(why) => {
                if !self.failing.contains_key(node) {
                    tracing::warn!("the probe by {node} fails: {why}");
                }
                self.failing.insert(Arc::clone(node), why);
            }
            None if self.failing.remove(node).is_some() => {
                tracing::info!("the probe by {node} succeeds again")
            }
            None => {}
        }
    }

    fn failure(&self) -> Option<String> {
        let shown: Vec<String> = self
            .failing
            .iter()
            .take(FAILURES_SHOWN_MAX)
            .map(|(node, why)| format!("by {node}, {why}"))
            .collect();
        let more = match self.failing.len().saturating_sub(FAILURES_SHOWN_MAX) {
            0 => String::new(),
            more => format!("; and by {more} more"),
        };
        (!shown.is_empty()).then(|| format!("{}{more}", shown.join("; ")))
    }
}

/// Records the result of a probe of the node itself, and logs when it changes.
pub(super) fn record(status: &mut ProbePathStatus, ProbeOutcome { took, result }: ProbeOutcome) {
    let failure = result.err().map(|error| error.to_string());
    let was_failing = status.last.as_ref().is_some_and(|last| last.failure.is_some());
    match &failure {
        Some(why) if !was_failing => tracing::warn!("the probe fails: {why}"),
        None if was_failing => tracing::info!("the probe succeeds again"),
        _ => {}
    }
    status.failed += u64::from(failure.is_some());
    status.succeeded += u64::from(failure.is_none());
    status.last = Some(ProbeResult { at: UnixMillis::now(), took_us: took.as_micros() as u64, failure });
}

/// Records the results of one round of probes through other nodes.
pub(super) fn record_round(status: &mut ProbePathStatus, round: PeerRound) {
    status.failed += round.failed;
    status.succeeded += round.succeeded;
    let took_us = round.longest.as_micros() as u64;
    status.last = Some(ProbeResult { at: UnixMillis::now(), took_us, failure: round.failure });
}

/// Nodes that one round probes. So a hundred nodes probe each other a few times in a minute, not all each time.
const NODES_PER_ROUND_MAX: usize = 16;

/// Number of failures that the text names.
const FAILURES_SHOWN_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::admin::self_probe::outcome::ProbeError;

    fn names(count: usize) -> Vec<Arc<str>> {
        (0..count).map(|number| format!("node-{number:03}").into()).collect()
    }

    fn probe_next(
        peers: &mut PeerProbes,
        nodes: &[Arc<str>],
        broken: &[&str],
    ) -> (Option<PeerRound>, Vec<String>) {
        let asked = RefCell::new(Vec::new());
        let ask = |node: &Arc<str>| {
            asked.borrow_mut().push(node.to_string());
            let refused =
                || ProbeError::Refused { found: "503".to_owned(), why: String::new(), wanted: "407" };
            let result = if broken.contains(&&**node) { Err(refused()) } else { Ok(()) };
            ProbeOutcome { took: Duration::from_millis(1), result }
        };
        let round = peers.probe_next(nodes, ask, &StopSignal::never());
        (round, asked.into_inner())
    }

    #[test]
    fn a_node_alone_asks_nobody() {
        assert!(probe_next(&mut PeerProbes::default(), &[], &[]).0.is_none());
    }

    #[test]
    fn of_many_nodes_each_has_its_turn() {
        let (mut peers, nodes) = (PeerProbes::default(), names(NODES_PER_ROUND_MAX + 4));
        let (_, first) = probe_next(&mut peers, &nodes, &[]);
        let (_, second) = probe_next(&mut peers, &nodes, &[]);
        assert_eq!((first.len(), second.len()), (NODES_PER_ROUND_MAX, NODES_PER_ROUND_MAX));
        assert_eq!(second[..4], ["node-016", "node-017", "node-018", "node-019"]);
        assert_eq!(second[4], "node-000");
        // Some nodes have left meanwhile.
        let (_, third) = probe_next(&mut peers, &nodes[..2], &[]);
        assert_eq!(third, ["node-000", "node-001"]);
    }

    #[test]
    fn a_node_that_fails_is_named_until_it_answers_or_is_gone() {
        let (mut peers, nodes) = (PeerProbes::default(), names(NODES_PER_ROUND_MAX * 2));
        let failure = |peers: &mut PeerProbes, nodes: &[Arc<str>], broken: &[&str]| {
            probe_next(peers, nodes, broken).0.unwrap().failure
        };
        let failures = failure(&mut peers, &nodes, &["node-003"]);
        assert_eq!(failures.as_deref(), Some("by node-003, the reply was `503`, and should be 407"));
        assert_eq!(failure(&mut peers, &nodes, &[]), failures, "it was not its turn");
        assert_eq!(failure(&mut peers, &nodes, &[]), None);

        let broken = ["node-001", "node-002", "node-003", "node-004", "node-005"];
        probe_next(&mut peers, &nodes, &[]);
        let failures = failure(&mut peers, &nodes, &broken).unwrap();
        assert!(failures.ends_with("; and by 2 more") && failures.contains("by node-003, "), "{failures}");
        assert_eq!(failure(&mut peers, &nodes[..1], &[]), None);
    }
}
