//! The self-probe: the node regularly acts as a client of its own listener.
//!
//! With `probe.device` it opens a real tunnel to that device, with a token from the operator. This tests the
//! listener, the head parser, the decision, the dial and the reply. Without a device it shows a token that nobody
//! holds, which the decision must refuse. This tests everything up to the dial, and needs no grant in the store.
//! Then it sends a request through each of the other nodes, with the same made-up token, which that node must
//! refuse. This tests the connection between the nodes, certificates included.
//!
//! One thread runs one probe at a time. Engines know only the made-up token: they neither count nor audit its
//! refusals.

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
use crate::config::{Config, Listen, ListenTls, SelfProbeConfig};
use crate::engine::EngineHandle;
use crate::sys::service_thread::ServiceThread;
use prober::SelfProber;

pub(super) use metrics::encode;

/// The thread that probes. Dropping it stops the thread.
pub struct SelfProbeThread {
    thread: ServiceThread,
    status: ProbeHandle,
    /// `None` while it does not probe because another process has the listeners.
    settings: Option<ProbeSettings>,
}

/// The part of a configuration that probes are made by.
#[derive(PartialEq, Eq)]
struct ProbeSettings {
    probe: SelfProbeConfig,
    listen: Vec<Listen>,
}

impl ProbeSettings {
    fn of(config: &Config) -> Self {
        Self { probe: config.probe.clone(), listen: config.listen.clone() }
    }
}

/// Access to the results of the probes, from any thread. Cheap to clone.
#[derive(Clone, Default, Debug)]
pub struct ProbeHandle(Arc<Mutex<ProbeStatus>>);

impl SelfProbeThread {
    /// Starts to probe the first listener that does not require a client certificate, where `config` enables
    /// probes. `addresses` are those of the listeners, in their order.
    pub fn start(config: &Config, addresses: &[SocketAddr], engine: &EngineHandle) -> io::Result<Self> {
        Self::start_with(ProbeHandle::default(), config, addresses, engine)
    }

    /// Probes by `config` from now on. The results so far stay. Waits for the end of a probe that is under way, some
    /// seconds at most.
    pub fn restart(
        &mut self,
        config: &Config,
        addresses: &[SocketAddr],
        engine: &EngineHandle,
    ) -> io::Result<()> {
        let settings = ProbeSettings::of(config);
        if self.settings.as_ref() == Some(&settings) {
            return Ok(());
        }
        self.thread = ServiceThread::default();
        *self = Self::start_with(self.status.clone(), config, addresses, engine)?;
        Ok(())
    }

    /// Does not probe until [`restart`](Self::restart).
    pub fn pause(&mut self) {
        (self.thread, self.settings) = (ServiceThread::default(), None);
    }

    fn start_with(
        status: ProbeHandle,
        config: &Config,
        addresses: &[SocketAddr],
        engine: &EngineHandle,
    ) -> io::Result<Self> {
        let settings = ProbeSettings::of(config);
        let mut this = Self { thread: ServiceThread::default(), status, settings: Some(settings) };
        if config.probe.interval.is_zero() {
            return Ok(this);
        }
        let open = |listen: &Listen| !listen.tls.as_ref().is_some_and(ListenTls::wants_client_certificate);
        let listeners = config.listen.iter().zip(addresses);
        let Some((listen, &address)) = listeners.into_iter().find(|(listen, _)| open(listen)) else {
            tracing::warn!(
                "no self-probe runs: every listener requires a client certificate, and the probe has none"
            );
            return Ok(this);
        };
        let prober = SelfProber::new(&config.probe, listen, address, engine);
        let results = this.status.clone();
        this.thread = ServiceThread::start("probe", move |stop| prober.run(&stop, &results))?;
        Ok(this)
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
