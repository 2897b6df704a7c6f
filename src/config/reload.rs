//! The keys that a running node applies when its configuration is reloaded.

use super::{Authz, Config, GuardConfig, Log, Profile};

impl Config {
    /// The sections and keys in which `next` differs and that need a restart.
    pub fn needs_restart(&self, next: &Self) -> Vec<&'static str> {
        let taken = self.with_reloaded(next);
        let Authz { max_stale, max_replica_lag, reread, state, guard, .. } = &taken.authz;
        let GuardConfig { probation, max_regressions, enabled, .. } = guard;
        let other = &next.authz;
        let differs = [
            ("store", taken.store != next.store),
            ("listen", taken.listen != next.listen),
            ("engine", taken.engine != next.engine),
            ("limits", taken.limits != next.limits),
            ("timeouts", taken.timeouts != next.timeouts),
            ("vpn", taken.vpn != next.vpn),
            ("forward", taken.forward != next.forward),
            ("authz.max_stale", *max_stale != other.max_stale),
            ("authz.max_replica_lag", *max_replica_lag != other.max_replica_lag),
            ("authz.reread", *reread != other.reread),
            // Logins need other queries, which are composed at start.
            ("authz.tokens", self.reads_logins() != next.reads_logins()),
            ("authz.state", *state != other.state),
            ("authz.guard.enabled", *enabled != other.guard.enabled),
            ("authz.guard.probation", *probation != other.guard.probation),
            ("authz.guard.max_regressions", *max_regressions != other.guard.max_regressions),
            ("admin", taken.admin != next.admin),
            ("probe", taken.probe != next.probe),
            ("audit", taken.audit != next.audit),
            ("log", taken.log != next.log),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }

    fn reads_logins(&self) -> bool {
        self.store.profile == Profile::OpenBalena && self.authz.takes_login_secrets()
    }

    /// This configuration with the keys of `next` that a running node applies: `authz.tokens`, `authz.queries`,
    /// `authz.refresh`, `authz.reconcile`, most of `authz.guard`, and `log.level`.
    fn with_reloaded(&self, next: &Self) -> Self {
        let guard = GuardConfig {
            enabled: self.authz.guard.enabled,
            probation: self.authz.guard.probation,
            max_regressions: self.authz.guard.max_regressions,
            ..next.authz.guard.clone()
        };
        let authz = Authz {
            tokens: next.authz.tokens.clone(),
            queries: next.authz.queries.clone(),
            refresh: next.authz.refresh,
            reconcile: next.authz.reconcile,
            guard,
            ..self.authz.clone()
        };
        let log = Log { level: next.log.level, ..self.log.clone() };
        Self { authz, log, ..self.clone() }
    }
}
