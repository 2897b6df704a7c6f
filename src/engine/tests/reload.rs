//! A configuration that is read again while engine threads run.

use super::*;
use crate::config::KernelTls;

fn reconfigured(change: impl FnOnce(&mut Config)) -> (Engine, Config) {
    let before = Arc::new(config(Forwarding::Auto));
    let authority = authority();
    let engine = Engine::start(Arc::clone(&before), authority, AuditSender::disabled()).unwrap();
    let mut next = Config::clone(&before);
    change(&mut next);
    engine.reconfigure(Arc::new(next.clone()), TlsConfigs::default());
    (engine, next)
}

#[test]
fn every_thread_works_by_the_sections_that_were_read_again() {
    let (engine, next) = reconfigured(|config| {
        let second = Duration::from_secs(1);
        config.engine.kernel_tls = KernelTls::Off;
        (config.engine.pipes, config.engine.pipe_bytes) = (7, 8192);
        (config.timeouts.connect, config.timeouts.forward) = (second, second);
        config.timeouts.user_timeout = second;
        (config.forward.hops_max, config.forward.idle_connections) = (7, 7);
    });
    let in_force = engine.shared.config();
    assert_eq!(
        (&in_force.engine, &in_force.timeouts, &in_force.forward),
        (&next.engine, &next.timeouts, &next.forward)
    );
    assert_eq!((&in_force.limits, &in_force.vpn), (&next.limits, &next.vpn));
    assert_eq!(engine.shared.kernel_tls(), KernelTls::Off);
    // Each thread has said that it works by it.
    let versions: Vec<_> = engine.shared.threads.iter().map(ThreadShared::config_version).collect();
    assert!(!versions.is_empty() && versions.iter().all(|version| *version == 1), "{versions:?}");
    engine.stop();
}

#[test]
fn certificates_are_those_that_were_read_again() {
    let (engine, _) = reconfigured(|_| {});
    let verifier = engine.shared.verifier();
    engine.reconfigure(engine.shared.config(), TlsConfigs::default());
    assert!(!Arc::ptr_eq(&verifier, &engine.shared.verifier()), "keys of signers are read again, too");
    engine.stop();
}
