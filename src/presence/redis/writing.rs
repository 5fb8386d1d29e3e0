//! One pipeline: the lease, what the log has acknowledged, and a batch of sessions. Then the handling of its answers.

use std::sync::Arc;

use redis::RedisError;
use tokio::time::Instant;

use super::answers::{self, Applied};
use super::keys;
use super::listing::{Known, Listing, Requested};
use super::pending::Pending;
use super::presence_task::PresenceTask;
use super::session_index;
use super::status_publisher::{self, Acknowledged, MAX_ACKNOWLEDGED, Unacknowledged};
use super::store::{LONG, SHORT};
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::status::StatusEvent;
use crate::session::Session;

/// How long the old server's readers see somebody type.
const TYPING_SECONDS: u32 = 30;

/// A session as it was written.
struct Written {
    session_id: SessionId,
    requested: Requested,
    /// The session had users here when it was written, so it stays on our list.
    was_here: bool,
    /// The users whose values must be stored now.
    listed: Vec<UserId>,
    replaced: bool,
}

impl PresenceTask {
    /// Renews the lease, removes what is acknowledged from the lists, and writes a batch. Returns whether that is
    /// stored: false if Redis has lost us.
    pub(super) async fn write_sessions(&mut self, batch: Vec<SessionId>) -> Result<bool, RedisError> {
        let now = Instant::now();
        self.number += 1;
        let mut pipeline = self.pipeline_with_heartbeat();
        // Before anything is taken off a list.
        let indexed = self.add_index(&mut pipeline);
        let acknowledged = self.add_acknowledged(&mut pipeline);
        let registry = &self.parts.registry;
        // Asked only once: every session written by this pipeline is on our list by this pipeline.
        let sessions: Vec<_> = batch.iter().map(|id| registry.get(id.as_str())).collect();
        let here = sessions.iter().flatten();
        let here: Vec<&str> = here.map(|session| session.id.as_str()).collect();
        let listing_at = pipeline.len();
        if !here.is_empty() {
            // After the removals: a session that is in use again stays on the list.
            let command = pipeline.cmd("ZADD").arg(keys::sessions(self.lease.name()));
            for session_id in &here {
                command.arg(self.number).arg(*session_id);
            }
        }
        self.add_typing(&mut pipeline);
        let reads = self.reads.add_to(&mut pipeline, &self.store);
        let before = pipeline.len();
        let mut written = Vec::with_capacity(batch.len());
        let nothing = Pending::default();
        for (session_id, session) in batch.iter().zip(&sessions) {
            let pending = self.pending.get(session_id).unwrap_or(&nothing);
            let writes = pending.user_writes(session.as_deref());
            let listing = match pending.writes_all {
                true => Listing::All(&writes),
                false => Listing::Some(&writes),
            };
            let can_notify =
                !self.lease.state().is_recovering() && self.notifier.wants_snapshot(session_id, now);
            let requested = pending.requested(can_notify);
            let known = if session.is_some() {
                self.notifier.known(session_id)
            } else {
                Known::default()
            };
            let name = self.lease.name();
            self.store.add_apply(
                &mut pipeline,
                name,
                session_id.as_str(),
                listing,
                requested,
                known,
            );
            let there = writes.into_iter().filter(|user| user.connections.is_some());
            written.push(Written {
                session_id: session_id.clone(),
                requested,
                was_here: session.is_some(),
                listed: there.map(|user| user.user_id).collect(),
                replaced: pending.replaces,
            });
        }
        let has_list = !here.is_empty();
        let patience = if batch.len() > 1 { LONG } else { SHORT };
        let Some(answers) = self.send_with_heartbeat(pipeline, patience).await? else {
            return Ok(false);
        };
        let answers = self.indexed(indexed, answers);
        self.typing.clear();
        self.reads.answered(reads, &answers);
        self.publisher.forget(&acknowledged);
        if acknowledged.len() == MAX_ACKNOWLEDGED || !self.reads.is_empty() {
            // There are more.
            self.next_heartbeat = now;
        }
        // The heartbeat's answer was removed.
        if has_list && answers.get(listing_at - 1).is_some_and(Result::is_err) {
            self.recreate_list().await?;
        }
        for (written, answer) in written.into_iter().zip(answers.into_iter().skip(before - 1)) {
            let pending = self.pending.remove(&written.session_id).unwrap_or_default();
            match answer.and_then(|answer| answers::read_applied(answer, written.requested)) {
                Ok(applied) => self.applied(written, pending, applied).await,
                Err(error) => self.refused(&written.session_id, &error),
            }
        }
        Ok(true)
    }

    /// Adds the removal of what the log has acknowledged by now.
    fn add_acknowledged(&mut self, pipeline: &mut redis::Pipeline) -> Vec<Acknowledged> {
        let registry = &self.parts.registry;
        let is_here = |id: &SessionId| registry.contains(id.as_str());
        let is_pending = |id: &SessionId| self.pending.contains_key(id);
        let acknowledged = self
            .publisher
            .acknowledged(self.lease.name(), is_here, is_pending);
        for Acknowledged {
            entry,
            leaves,
            removes,
            number,
        } in &acknowledged
        {
            let (node, session_id) = (&entry.0, entry.1.as_str());
            if !leaves.is_empty() {
                let leaves: Vec<&str> = leaves.iter().map(UserId::as_str).collect();
                let key = keys::pending_leaves(session_id, node);
                pipeline.cmd("HDEL").arg(key).arg(leaves);
            }
            if *removes {
                self.store
                    .add_acknowledge(pipeline, node, &[(session_id, *number)]);
            }
        }
        acknowledged
    }

    fn add_typing(&self, pipeline: &mut redis::Pipeline) {
        for ((session_id, user_id), &is_typing) in &self.typing {
            let key = keys::typing(session_id, user_id);
            match is_typing {
                true => pipeline
                    .cmd("SET")
                    .arg(key)
                    .arg("true")
                    .arg("EX")
                    .arg(TYPING_SECONDS),
                false => pipeline.cmd("DEL").arg(key),
            };
        }
    }

    /// Our list of sessions has another type, so it is not ours. It is needed: without it nobody could reap us.
    async fn recreate_list(&mut self) -> Result<(), RedisError> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("DEL").arg(keys::sessions(self.lease.name()));
        self.store.execute(&mut pipeline, SHORT).await?;
        self.start_resync();
        Ok(())
    }

    /// A session has a value that the script can't handle: it has no presence, the others do.
    pub(super) fn refused(&mut self, session_id: &SessionId, error: &RedisError) {
        self.parts.metrics.redis_refusals.inc();
        if self.refusal_log.allows() {
            tracing::warn!(%session_id, code = error.code(), "Redis refuses to store a session's presence");
        }
        if !self.parts.registry.contains(session_id.as_str()) {
            self.notifier.forget(session_id);
        }
    }

    /// A session was written: notifies clients here and publishes to other nodes. If it had no users here when it was
    /// written, it is removed from our list; if it has ended since, it is marked again.
    async fn applied(&mut self, written: Written, mut pending: Pending, applied: Applied) {
        let Written {
            session_id,
            requested,
            was_here,
            ..
        } = &written;
        let write = session_index::Write {
            must_write: !was_here || pending.lists_all() || pending.must_index,
            is_rebuilding: pending.writes_all || self.lease.state().is_recovering(),
        };
        self.index.note(session_id, &applied, write, Instant::now());
        let mut events = status_publisher::change_events(&applied);
        pending.must_publish |= !events.is_empty() || applied.is_retyped;
        // After a loss of data everyone who is here seems to join, but no other node believes they had left.
        if pending.writes_all && self.lease.state().is_rebuilding() {
            events.clear();
            pending.must_publish = !pending.events.is_empty();
        }
        // The same after damage to one session's keys, except that other nodes have to read the repaired ones. Users
        // who have only just joined and are not marked yet are no damage.
        let mut has_missing = false;
        if pending.is_check && !pending.writes_all {
            events.retain(|StatusEvent { event_user_id, .. }| {
                let is_marked = pending.change.users.contains_key(event_user_id);
                let is_news = is_marked || !self.notifier.has_announced(session_id, event_user_id);
                has_missing |= !is_news;
                is_news
            });
        }
        pending.events.extend(events);
        if self.lease.state().is_recovering() {
            (pending.writes_all, pending.is_check, pending.change.users) = Default::default();
            let deferred = self.deferred.entry(session_id.clone());
            deferred.or_default().merge(pending);
            return;
        }
        let session = self.parts.registry.get(session_id.as_str());
        self.repair(&written, session.as_deref(), &applied, has_missing);
        if let Some(deferred) = self.notifier.take_deferred(session_id) {
            pending.must_publish = true;
            pending.events.splice(0..0, deferred);
        }
        let entry = (Arc::clone(self.lease.name()), session_id.clone());
        match (&applied.snapshot, pending.must_publish) {
            (Some(status), true) => {
                let receipt = self.publisher.publish(session_id, status, pending.events);
                if !was_here {
                    self.publisher.track(entry, Unacknowledged::own(receipt));
                }
            }
            (None, true) => {
                let events = match session {
                    Some(_) => self.notifier.defer(session_id, pending.events),
                    // It has ended meanwhile, and is marked for that: the snapshot comes with the next write.
                    None => Err(pending.events),
                };
                if let Err(events) = events {
                    let again = self.pend(session_id.clone());
                    again.must_publish = true;
                    again.events.extend(events);
                }
            }
            (_, false) if !was_here => self.publisher.track_unpublished(entry, None),
            (_, false) => {}
        }
        match session {
            // A mere check: nobody is to be notified.
            Some(_) if *requested == Requested::Listed && !pending.must_notify => {
                self.notifier.note_keys(session_id, applied);
            }
            Some(session) => {
                let joiners = pending.change.joiners;
                self.notifier.notify(&session, joiners, applied).await;
            }
            None => self.notifier.forget(session_id),
        }
    }

    /// After damage to the session's keys: writes everything again that is held here, and makes other nodes do the
    /// same. `has_missing`: a user who had been written was not stored any more.
    fn repair(&mut self, written: &Written, session: Option<&Session>, applied: &Applied, has_missing: bool) {
        let Some(session) = session else {
            return;
        };
        let is_there = |id: &UserId| match (&applied.readable, &applied.snapshot) {
            (Some(readable), _) => readable.contains(id),
            (None, Some(status)) => status.users.contains_key(id),
            (None, None) => true,
        };
        // A user who was just written and is still missing is hidden by an unreadable value. (If it was just replaced,
        // that would go on forever.)
        let is_hidden = !written.replaced && !written.listed.iter().all(is_there);
        let is_missing = is_hidden || has_missing && applied.damage.is_none();
        let hides_others =
            applied.snapshot.is_some() && self.notifier.note_unreadable(&session.id, applied.has_unreadable);
        if !self.note_damage(&session.id, applied) && !is_missing && !hides_others {
            if applied.snapshot.is_some() {
                let held = session.with_users(|users| users.ids_before(self.took_changes));
                // Missing, or only just joined and not marked yet: a check will tell.
                if !held.iter().all(|id| is_there(id) || written.listed.contains(id)) {
                    self.pend(session.id.clone()).is_check = true;
                }
            }
            return;
        }
        self.parts.metrics.presence_repairs.inc();
        if self.repair_log.allows() {
            tracing::warn!(session_id = %session.id, "a session's keys in Redis were deleted or changed by others: writing them again");
        }
        let again = self.pend(session.id.clone());
        (again.is_check, again.must_publish) = (true, true);
        again.replaces |= is_missing;
    }

    /// Records damage to a session's keys. Returns whether it is new.
    pub(super) fn note_damage(&mut self, session_id: &SessionId, applied: &Applied) -> bool {
        applied
            .damage
            .is_some_and(|damage| self.notifier.note_damage(session_id, damage))
    }
}

#[cfg(test)]
#[path = "writing_tests.rs"]
mod tests;
