//! What readers, tables and clients report, put to the guard.

use std::collections::HashSet;

use super::ControlThread;
use super::answers::Heard;
use crate::authz::UnixMillis;
use crate::config::OnRegression;
use crate::control::api::HoldStatus;
use crate::control::guard::{AnyRow, Judged, WholeAnswer, row_of};
use crate::control::readers::{ReadContext, ReadError, ReadResult};
use crate::store::{
    Position, Quarantined, Relation, RelationAnswer, RelationRows, RowKey, Standing, Words, WordsAnswer,
};

impl ControlThread {
    pub(super) fn take_in(&mut self, result: ReadResult) {
        let now = self.now();
        match result {
            ReadResult::Words { result: Ok(answer), context } => self.take_words(answer, &context, now),
            ReadResult::Relation { relation, result: Ok(answer), context } => {
                self.take_relation(relation, answer, context, now);
            }
            ReadResult::Words { result: Err(error), .. } => self.fail(None, &error, now),
            ReadResult::Relation { relation, result: Err(error), .. } => {
                self.fail(Some(relation), &error, now)
            }
        }
    }

    fn fail(&mut self, relation: Option<Relation>, error: &ReadError, now: UnixMillis) {
        if relation.is_none() {
            self.read_after_words();
        }
        self.store.fail_read(relation, error, now);
        if !self.store.is_reachable() {
            self.authority.lost_store();
        }
        self.publish(Judged::default(), None);
    }

    /// The relations are read once the first words were, or could not be.
    fn read_after_words(&mut self) {
        if !std::mem::replace(&mut self.has_begun, true) {
            Relation::ALL.into_iter().for_each(|relation| self.readers.read_soon(relation));
        }
    }

    fn take_words(&mut self, answer: WordsAnswer, context: &ReadContext, now: UnixMillis) {
        let WordsAnswer { words, position, durable, standing, readable_since } = answer;
        let lag_ms = i64::try_from(context.lag.as_millis()).unwrap_or(i64::MAX);
        self.store.succeed(None, context, UnixMillis(now.0.saturating_sub(lag_ms)));
        self.read_after_words();
        if !self.believe(None, standing, durable, now) {
            return self.publish(Judged::default(), None);
        }
        let judged = match words {
            Words::Nothing => Judged::default(),
            Words::Behind => {
                if self.guard.in_force().is_some() {
                    tracing::info!("the outbox of {} does not reach back; reading all", self.store.name());
                }
                self.guard.lose_words(position);
                Relation::ALL.into_iter().for_each(|relation| self.readers.read_soon(relation));
                Judged::default()
            }
            Words::Some { mut words, quarantined } => {
                self.layer.lay_words(&mut words, &quarantined);
                let is_known = |row: &Quarantined| self.guard.bad_keys(row.key.relation()).contains(&row.key);
                self.report.quarantined(quarantined.iter().filter(|row| !is_known(row)));
                self.guard.words(words, quarantined, position, now)
            }
        };
        self.store.set_bookmark(context.bookmark.clone());
        self.publish(judged, readable_since);
        self.confirm();
    }

    fn take_relation(
        &mut self,
        relation: Relation,
        answer: RelationAnswer,
        context: ReadContext,
        now: UnixMillis,
    ) {
        let RelationAnswer { mut rows, mut quarantined, ended, position, durable, standing } = answer;
        if !self.believe(Some(relation), standing, durable, now) || self.guard.is_too_old(position) {
            self.store.succeed(Some(relation), &context, now);
            self.readers.read_afresh(relation);
            return self.publish(Judged::default(), None);
        }
        self.end_undecodable(&mut rows, &mut quarantined, &ended);
        if let RelationRows::Devices(devices) = &mut rows {
            self.layer.poll();
            self.layer.lay_relation(devices);
        }
        self.log_quarantined(relation, &quarantined);
        let answer = WholeAnswer { relation, rows, quarantined, position };
        self.compare_answer(answer, Heard { at: now, context });
    }

    /// Rows that say that they are revoked end, although they do not decode otherwise.
    fn end_undecodable(&self, rows: &mut RelationRows, bad: &mut Vec<Quarantined>, ended: &[RowKey]) {
        let Some(in_force) = self.guard.in_force().filter(|_| !ended.is_empty()) else { return };
        let ended: HashSet<&RowKey> = ended.iter().collect();
        bad.retain(|row| {
            let revoked = ended.contains(&row.key).then(|| row_of(in_force, &row.key)).flatten();
            match (revoked.and_then(AnyRow::revoked), &mut *rows) {
                (Some(AnyRow::Credential(row)), RelationRows::Credentials(rows)) => rows.push(row),
                (Some(AnyRow::Grant(row)), RelationRows::Grants(rows)) => rows.push(row),
                _ => return true,
            }
            false
        });
    }

    /// Returns whether an answer is to be believed; one that is moves the known position on.
    fn believe(
        &mut self,
        relation: Option<Relation>,
        standing: Standing,
        position: Position,
        now: UnixMillis,
    ) -> bool {
        let is_believed = self.store.check(relation, standing, position, now);
        if is_believed {
            self.known.advance(position);
        } else if !self.store.is_reachable() {
            self.authority.lost_store();
        }
        is_believed
    }

    /// Tells the engines how current their rights are.
    pub(super) fn confirm(&mut self) {
        if let Some(confirmed_at) = self.store.confirmed_at().filter(|_| self.store.is_reachable()) {
            self.publisher.confirm(confirmed_at);
        }
    }

    fn log_quarantined(&mut self, relation: Relation, bad: &[Quarantined]) {
        let known = self.guard.bad_keys(relation);
        self.report.quarantined(bad.iter().filter(|row| !known.contains(&row.key)));
    }

    /// Devices that have moved in the node's own VPN.
    pub(super) fn poll_tables(&mut self, now: UnixMillis) {
        self.layer.poll();
        self.guard.change_holders(&self.layer.drain_holders());
        let in_force = self.guard.in_force().cloned();
        let moves = self.layer.drain_moves(|uuid| in_force.as_ref()?.device_named(*uuid));
        let mut judged = self.guard.own_moves(moves.settled, now);
        judged.published |= self.guard.left_tables(moves.left, now).published;
        if judged.published || self.guard.has_new_disputes() {
            judged.published = true;
            self.publish(judged, None);
        }
    }

    /// Acts on what clients were refused.
    pub(super) fn check_for_regressions(&mut self, now: UnixMillis) {
        let losses = self.guard.losses(false);
        let Some(in_force) = self.guard.in_force().cloned() else { return };
        let Some(evidence) = self.probation.poll(&self.authority, &in_force, losses, now) else { return };
        if self.probation.on_regression() == OnRegression::Rollback
            && let Some(undone) = self.guard.undo_losses(evidence.is_of_locations, now)
        {
            self.report.rolled_back_by_guard(&evidence.figures, &evidence.examples, undone);
            self.publish(Judged { published: true, ended: false }, None);
        } else {
            self.report.may_be_wrong(&evidence.figures, &evidence.examples, self.guard.generation());
        }
        self.probation.begin_anew();
    }

    /// Everything that is held, by the guard or for want of an answer.
    pub(super) fn all_holds(&self) -> Vec<HoldStatus> {
        let mut holds: Vec<HoldStatus> = self.store.position_hold().into_iter().collect();
        if self.guard.is_enabled() {
            holds.extend(self.store.contract_holds());
        }
        holds.extend(self.guard.status().holds);
        holds
    }
}
