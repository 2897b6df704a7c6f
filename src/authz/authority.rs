//! The snapshot in force and how far it can be trusted: written by the control thread, read by engines.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::latest_time::LatestTime;
use super::{
    Decision, DecisionContext, DecisionLog, DeviceRight, DirectoryCell, PeerRoute, Permitted, Query, Refusal,
    Revocations, Snapshot, Undecided, UnixMillis,
};
use crate::sys::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use crate::sys::epoch_cell::{EpochCell, Pin};

/// The state that decides: a snapshot, and the revocations on top of it.
pub struct View {
    pub snapshot: Arc<Snapshot>,
    pub revocations: Arc<Revocations>,
    /// The view that decided before; present while the snapshot is on probation.
    pub previous: Option<Arc<Snapshot>>,
}

/// Shared by the control thread, which publishes, and the engines, which decide.
pub struct Authority {
    root: EpochCell<View>,
    /// Time when the store last confirmed that the view is current.
    confirmed_at: AtomicI64,
    store_reachable: AtomicBool,
    /// Relations of which rows may be missing, as bits.
    doubted: AtomicU64,
    /// Time when the newest end could first be read in the store, in µs after `began`.
    ended_at_us: AtomicU64,
    began: Instant,
    max_stale_ms: AtomicI64,
    latest_time: LatestTime,
    /// This node's name, where it has one.
    node: Option<Box<str>>,
    /// Another process has this node's name.
    stand_by: AtomicBool,
    /// The other nodes.
    directory: DirectoryCell,
    /// Counts and checksums of what is in force, for peers that start without memory; as the control thread encodes them.
    summary: RwLock<Option<Arc<[u8]>>>,
    /// One per engine thread; locked only where a thread starts and where the control thread looks.
    decision_logs: Mutex<Vec<Arc<DecisionLog>>>,
}

/// The view in force, held for one turn of an engine.
pub struct PinnedView<'a> {
    view: Pin<'a, View>,
    authority: &'a Authority,
}

impl Authority {
    pub fn new(max_stale: Duration, node: Option<&str>) -> Self {
        Self {
            root: EpochCell::empty(),
            confirmed_at: AtomicI64::new(i64::MIN),
            store_reachable: AtomicBool::new(false),
            doubted: AtomicU64::new(0),
            ended_at_us: AtomicU64::new(0),
            began: Instant::now(),
            max_stale_ms: AtomicI64::new(millis(max_stale)),
            latest_time: LatestTime::new(),
            node: node.map(Into::into),
            stand_by: AtomicBool::new(false),
            directory: DirectoryCell::default(),
            summary: RwLock::default(),
            decision_logs: Mutex::default(),
        }
    }

    /// Lets a view decide for `max_stale` after the store has confirmed it, from now on.
    pub fn set_max_stale(&self, max_stale: Duration) {
        self.max_stale_ms.store(millis(max_stale), Ordering::Relaxed);
    }

    /// Puts `view` in force. Control thread only. The caller keeps an `Arc` of its own until it is the last one, so that a
    /// large snapshot is never freed on an engine thread.
    pub fn publish(&self, view: Arc<View>) {
        self.root.publish(view);
    }

    /// Records that the store confirmed the view in force at `at`, by [`Authority::time`].
    pub fn confirm(&self, at: UnixMillis) {
        self.confirmed_at.store(at.0, Ordering::Relaxed);
        self.store_reachable.store(true, Ordering::Relaxed);
    }

    /// Sets whether another process has this node's name, so that this one serves nobody.
    pub fn set_stand_by(&self, is_stand_by: bool) {
        self.stand_by.store(is_stand_by, Ordering::Relaxed);
    }

    /// Returns whether this process waits for another one that has this node's name.
    pub fn is_stand_by(&self) -> bool {
        self.stand_by.load(Ordering::Relaxed)
    }

    /// Replaces the summary that peers may ask for.
    pub fn set_summary(&self, summary: Arc<[u8]>) {
        *self.summary.write() = Some(summary);
    }

    /// The summary that peers may ask for; `None` before there is one.
    pub fn summary(&self) -> Option<Arc<[u8]>> {
        self.summary.read().clone()
    }

    /// Returns whether the last read of the store succeeded.
    pub fn is_store_reachable(&self) -> bool {
        self.store_reachable.load(Ordering::Relaxed)
    }

    /// Sets whether rows of credentials, grants and devices may be missing in the view: peers have others. Control thread
    /// only.
    pub fn set_doubted(&self, [credentials, grants, devices]: [bool; 3]) {
        let bits = u64::from(credentials) | u64::from(grants) << 1 | u64::from(devices) << 2;
        self.doubted.store(bits, Ordering::Relaxed);
    }

    /// Records that the store could not be read.
    pub fn lost_store(&self) {
        self.store_reachable.store(false, Ordering::Relaxed);
    }

    /// Records that the next view has what ended at `at`. Control thread only, before it publishes.
    pub fn record_ends(&self, at: Instant) {
        let since_began = at.saturating_duration_since(self.began);
        self.ended_at_us.store(since_began.as_micros() as u64, Ordering::Relaxed);
    }

    /// Time of the newest end, for [`Authority::us_since`].
    pub fn ended_at_us(&self) -> u64 {
        self.ended_at_us.load(Ordering::Relaxed)
    }

    /// Returns the time since `ended_at_us`, in µs.
    pub fn us_since(&self, ended_at_us: u64) -> u64 {
        (self.began.elapsed().as_micros() as u64).saturating_sub(ended_at_us)
    }

    /// The time by which rights expire while the wall clock shows `now`: the latest that this node has seen, so that a
    /// clock that is set back revives nothing. Costs an atomic load; callers of [`PinnedView`] pass it on as `now`.
    #[inline]
    pub fn time(&self, now: UnixMillis) -> UnixMillis {
        self.latest_time.at(now)
    }

    /// The latest time that this node has seen, for the next process; `None` while it may still be a mistake.
    pub fn latest_time(&self) -> Option<UnixMillis> {
        self.latest_time.to_keep()
    }

    /// Goes on from the time that an earlier process has kept. To be called before anything is decided.
    pub fn restore_latest_time(&self, kept: UnixMillis) {
        self.latest_time.restore(kept);
    }

    /// Returns why nothing can be decided at `now`; `None` where decisions can be made.
    pub fn trouble(&self, now: UnixMillis) -> Option<Undecided> {
        if self.root.pin().get().is_none() {
            Some(Undecided::NoSnapshot)
        } else {
            self.is_stale(self.time(now)).then_some(Undecided::Stale)
        }
    }

    /// The time until which the view decides where the store stays silent. `None` where there is no view.
    pub fn decides_until(&self) -> Option<UnixMillis> {
        self.root.pin().get()?;
        Some(UnixMillis(
            self.confirmed_at
                .load(Ordering::Relaxed)
                .saturating_add(self.max_stale_ms.load(Ordering::Relaxed)),
        ))
    }

    /// The nodes that requests can be handed to.
    pub fn directory(&self) -> &DirectoryCell {
        &self.directory
    }

    /// Creates the decision log of an engine thread.
    pub fn decision_log(&self) -> Arc<DecisionLog> {
        let decision_log = Arc::new(DecisionLog::new());
        self.decision_logs.lock().push(Arc::clone(&decision_log));
        decision_log
    }

    /// The decision logs of all threads.
    pub fn decision_logs(&self) -> Vec<Arc<DecisionLog>> {
        self.decision_logs.lock().clone()
    }

    /// Pins the view; once per turn of an event loop, never across a blocking wait.
    pub fn pin(&self) -> PinnedView<'_> {
        PinnedView { view: self.root.pin(), authority: self }
    }

    /// The store has not confirmed the view for longer than it may.
    fn is_stale(&self, now: UnixMillis) -> bool {
        now.0.saturating_sub(self.confirmed_at.load(Ordering::Relaxed))
            > self.max_stale_ms.load(Ordering::Relaxed)
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl PinnedView<'_> {
    pub fn decide(&self, query: &Query, now: UnixMillis) -> Decision {
        match self.usable(now) {
            Ok(view) => self.trusted(view.snapshot.decide(query, self.context(view, now))),
            Err(undecided) => Decision::Undecided(undecided),
        }
    }

    /// Returns the peer to hand `query` to, where the decision was that the device is elsewhere.
    pub fn elsewhere<'b>(&'b self, query: &'b Query, now: UnixMillis) -> Option<PeerRoute<'b>> {
        let view = self.usable(now).ok()?;
        view.snapshot.decide_elsewhere(query, self.context(view, now)).ok()
    }

    /// Returns the right that `query` rests on, wherever the device is; `None` where there is none.
    pub fn right(&self, query: &Query, now: UnixMillis) -> Option<DeviceRight> {
        let view = self.usable(now).ok()?;
        view.snapshot.decide_right(query, self.context(view, now)).ok()
    }

    /// Shows the decision on each of `queries` to `each`, in their order. Faster than one by one.
    pub fn decide_all(&self, queries: &[Query], now: UnixMillis, mut each: impl FnMut(Decision)) {
        match self.usable(now) {
            Ok(view) => {
                let context = self.context(view, now);
                view.snapshot.decide_all(queries, context, |decision| each(self.trusted(decision)));
            }
            Err(undecided) => queries.iter().for_each(|_| each(Decision::Undecided(undecided))),
        }
    }

    fn usable(&self, now: UnixMillis) -> Result<&View, Undecided> {
        let view = self.view.get().ok_or(Undecided::NoSnapshot)?;
        if self.authority.is_stale(now) { Err(Undecided::Stale) } else { Ok(view) }
    }

    fn context<'b>(&'b self, view: &'b View, now: UnixMillis) -> DecisionContext<'b> {
        DecisionContext { revocations: &view.revocations, node: self.authority.node.as_deref(), now }
    }

    /// A credential may be unknown only because the store cannot be read, and whatever is missing may be so only because
    /// the first answer of the store was wrong.
    fn trusted(&self, decision: Decision) -> Decision {
        let Decision::Refuse(refusal) = decision else { return decision };
        if refusal == Refusal::CredentialUnknown && !self.authority.store_reachable.load(Ordering::Relaxed) {
            return Decision::Undecided(Undecided::StoreUnreachable);
        }
        let relation = match refusal {
            Refusal::CredentialUnknown => 1,
            Refusal::NoGrant | Refusal::PortNotGranted => 1 << 1,
            Refusal::DeviceUnknown => 1 << 2,
            _ => return decision,
        };
        match self.authority.doubted.load(Ordering::Relaxed) & relation {
            0 => decision,
            _ => Decision::Undecided(Undecided::NoSnapshot),
        }
    }

    pub fn get(&self) -> Option<&View> {
        self.view.get()
    }

    /// Returns what the generation before would allow; `None` also where there is none to compare with.
    /// Revocations and expiries count for both.
    pub fn allowed_before(&self, query: &Query, now: UnixMillis) -> Option<Permitted> {
        let view = self.view.get()?;
        view.previous.as_ref()?.permitted(query, self.context(view, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Change, Credential, Generation, KeyHash, PrincipalId};

    const MAX_STALE: Duration = Duration::from_millis(500);
    const CONFIRMED: UnixMillis = UnixMillis(1_000_000);

    fn view(revoked: &[Change]) -> Arc<View> {
        let known = Credential {
            key: KeyHash::of_token(b"known"),
            principal: PrincipalId(1),
            expires_at: None,
            revoked: false,
        };
        Arc::new(View {
            snapshot: Arc::new(Snapshot::build(Generation(1), vec![known], vec![], vec![])),
            revocations: Arc::new(Revocations::default().with(revoked).unwrap_or_default()),
            previous: None,
        })
    }

    fn confirmed_authority() -> Authority {
        let authority = Authority::new(MAX_STALE, None);
        authority.publish(view(&[]));
        authority.confirm(CONFIRMED);
        authority
    }

    fn ask(authority: &Authority, token: &[u8], after_ms: i64) -> Decision {
        let query = Query { subject: Some(KeyHash::of_token(token).into()), device: None, port: 22 };
        authority.pin().decide(&query, UnixMillis(CONFIRMED.0 + after_ms))
    }

    #[test]
    fn nothing_is_decided_before_there_is_a_snapshot() {
        let authority = Authority::new(MAX_STALE, None);
        assert_eq!(ask(&authority, b"known", 0), Decision::Undecided(Undecided::NoSnapshot));
        authority.confirm(CONFIRMED);
        assert_eq!(ask(&authority, b"known", 0), Decision::Undecided(Undecided::NoSnapshot));
    }

    #[test]
    fn a_snapshot_that_no_store_confirmed_decides_nothing() {
        let authority = Authority::new(MAX_STALE, None);
        authority.publish(view(&[]));
        assert_eq!(ask(&authority, b"known", 0), Decision::Undecided(Undecided::Stale));
    }

    #[test]
    fn a_snapshot_decides_until_it_is_stale_and_again_once_it_is_confirmed() {
        let authority = confirmed_authority();
        let refused = Decision::Refuse(Refusal::DeviceUnknown);
        assert_eq!(ask(&authority, b"known", 500), refused);
        assert_eq!(ask(&authority, b"known", 501), Decision::Undecided(Undecided::Stale));
        authority.confirm(UnixMillis(CONFIRMED.0 + 501));
        assert_eq!(ask(&authority, b"known", 501), refused);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_nothing_stale() {
        assert_eq!(
            ask(&confirmed_authority(), b"known", -3_600_000),
            Decision::Refuse(Refusal::DeviceUnknown)
        );
    }

    #[test]
    fn an_unknown_credential_is_refused_only_while_the_store_can_be_asked() {
        let authority = confirmed_authority();
        assert_eq!(ask(&authority, b"new", 0), Decision::Refuse(Refusal::CredentialUnknown));
        authority.lost_store();
        assert_eq!(ask(&authority, b"new", 0), Decision::Undecided(Undecided::StoreUnreachable));
        assert_eq!(ask(&authority, b"known", 0), Decision::Refuse(Refusal::DeviceUnknown));
        authority.confirm(CONFIRMED);
        assert_eq!(ask(&authority, b"new", 0), Decision::Refuse(Refusal::CredentialUnknown));
    }

    #[test]
    fn a_revocation_holds_while_the_store_is_unreachable() {
        let authority = confirmed_authority();
        authority.publish(view(&[Change::CredentialGone(KeyHash::of_token(b"known"))]));
        authority.lost_store();
        assert_eq!(ask(&authority, b"known", 0), Decision::Refuse(Refusal::CredentialRevoked));
    }
}
