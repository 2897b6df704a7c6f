//! The probe: from time to time the node is its own client, by its own listener, as a person would come.
//!
//! With `probe.device` it opens a real tunnel to that device, with a token of the operator's: listener, head,
//! decision, dial and reply are all seen to work. Without one it comes with a token that nobody holds, which
//! the decision has to refuse: that proves everything up to the dial, and takes no right that the store
//! would have to give. Then it asks by each of the other nodes with that same token, which is theirs to refuse:
//! that proves the way between the nodes, certificates included.
//!
//! One thread, one probe at a time; engines know nothing of it but the made-up token, whose refusals they neither
//! count nor audit.

mod metrics;
mod outcome;
mod peers;
mod prober;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::admin::api::ProbeStatus;
use crate::config::{Config, Listen, ListenTls};
use crate::engine::EngineHandle;
use crate::sys::service_thread::ServiceThread;
use prober::SelfProber;

pub(super) use metrics::encode;

/// The thread that probes; dropping it ends the thread.
pub struct SelfProbe {
    _thread: ServiceThread,
    status: ProbeHandle,
}

/// A way to what came of the probes, from any thread. Cheap to clone.
#[derive(Clone, Default, Debug)]
pub struct ProbeHandle(Arc<Mutex<ProbeStatus>>);

impl SelfProbe {
    /// Begins to probe, where `config` wants it, the first listener that lets clients in without a certificate.
    /// Listeners are at `addresses`, in their order.
    pub fn start(config: &Config, addresses: &[SocketAddr], engine: &EngineHandle) -> io::Result<Self> {
        let status = ProbeHandle::default();
        let none = Self { _thread: ServiceThread::default(), status: status.clone() };
        if config.probe.interval.is_zero() {
            return Ok(none);
        }
        let open = |listen: &Listen| !listen.tls.as_ref().is_some_and(ListenTls::wants_client_certificate);
        let listeners = config.listen.iter().zip(addresses);
        let Some((listen, &address)) = listeners.into_iter().find(|(listen, _)| open(listen)) else {
            tracing::warn!("no probe: every listener wants a certificate of its clients, and it has none");
            return Ok(none);
        };
        let prober = SelfProber::new(&config.probe, listen, address, engine);
        let results = status.clone();
        let thread = ServiceThread::start("probe", move |stop| prober.run(&stop, &results))?;
        Ok(Self { _thread: thread, status })
    }

    pub fn status(&self) -> ProbeHandle {
        self.status.clone()
    }
}

impl ProbeHandle {
    pub fn get(&self) -> ProbeStatus {
        self.0.lock().clone()
    }
}
