//! Removes the users of dead nodes, of this node's retired names, and of sessions that ended unseen.
//!
//! A session stays on its node's list, and the leaves stay beside its users, until the log has acknowledged them: if
//! the reaper dies, leaves are repeated but never lost.

use std::sync::Arc;
use std::time::Duration;

use redis::RedisError;
use tokio::time::{Instant, sleep};

use super::answers::{self, Applied};
use super::keys::{self, node_of};
use super::listing::{Known, Listing, Requested};
use super::presence_task::{MAX_PIPELINE, PresenceTask};
use super::session_index::Write;
use super::status_publisher::{self, ListEntry, Unacknowledged};
use super::store::{Deregistered, LONG, SHORT};
use crate::clock::Moment;
use crate::protocol::ids::SessionId;
use crate::session::Session;

/// The share of the time for shutting down that the log gets; the rest is for Redis.
const LOG_SHARE: f64 = 0.6;

impl PresenceTask {
    /// Reclaims some sessions of a node that is dead or was shut down, or of one of our retired names: a page of its
    /// list at a time, however long that is. Deregisters it when there are none left and its lease has ended: until
    /// then one of its pipelines may still be under way.
    pub(super) async fn reap(&mut self, node: Arc<str>) -> Result<(), RedisError> {
        if self.publisher.is_full() {
            return Ok(());
        }
        let from = self.reaping.get(&node).copied().unwrap_or_default();
        let page = self.store.sessions_of(&node, from).await?;
        if from == 0 && page.next == 0 && page.sessions.is_empty() {
            return self.deregister(&node).await;
        }
        let mut entries = Vec::new();
        for (id, number) in &page.sessions {
            match SessionId::parse(id) {
                Some(session_id) if session_id.as_str() == id => {
                    entries.push(((Arc::clone(&node), session_id), Some(*number)));
                }
                other => {
                    let mut pipeline = self.pipeline_with_heartbeat();
                    // A UUID in capital letters, as written by earlier versions: no client sees that session any more.
                    if other.is_some() {
                        self.store.add_apply(
                            &mut pipeline,
                            &node,
                            id,
                            Listing::NodeGone,
                            Requested::Nothing,
                            Known::default(),
                        );
                        pipeline.cmd("DEL").arg(keys::pending_leaves(id, &node));
                    }
                    self.store.add_acknowledge(&mut pipeline, &node, &[(id, None)]);
                    self.send_with_heartbeat(pipeline, SHORT).await?;
                }
            }
        }
        // Those that wait for the log stay on the list until it has acknowledged them.
        entries.retain(|(entry, _)| !self.publisher.is_tracked(entry));
        self.reclaim(entries).await?;
        // Not earlier: after a failure the page is read again.
        self.reaping.insert(node, page.next);
        if page.next != 0 {
            self.next_upkeep = Instant::now();
        }
        Ok(())
    }

    async fn deregister(&mut self, node: &Arc<str>) -> Result<(), RedisError> {
        self.reaping.remove(node);
        match self.store.deregister(node).await? {
            Deregistered::Not => {}
            _ if self.lease.is_retired(node) => self.lease.forget_retired(node),
            Deregistered::Dead => {
                tracing::warn!(%node, "a node has died: its users were removed");
                self.parts.metrics.nodes_reaped.inc();
            }
            Deregistered::ShutDown => {
                tracing::info!(%node, "a node was shut down, and its users did not come back: they were removed")
            }
        }
        Ok(())
    }

    /// After a loss of data, removes our users under retired names before anybody reads them. The leaves that this
    /// causes are kept in Redis until they can be published.
    pub(super) async fn release_retired_names(&mut self) -> Result<(), RedisError> {
        if !self.lease.state().is_recovering() {
            return Ok(());
        }
        for node in self.lease.retired_names().to_vec() {
            let mut from = 0;
            loop {
                let page = self.store.sessions_of(&node, from).await?;
                for sessions in page.sessions.chunks(MAX_PIPELINE) {
                    let mut pipeline = self.pipeline_with_heartbeat();
                    for (id, _) in sessions {
                        self.store.add_apply(
                            &mut pipeline,
                            &node,
                            id,
                            Listing::NodeGone,
                            Requested::Nothing,
                            Known::default(),
                        );
                    }
                    if self.send_with_heartbeat(pipeline, LONG).await?.is_none() {
                        return Ok(());
                    }
                }
                from = page.next;
                if from == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Removes our users from sessions that ended unseen: those on one page of our list. Returns the next page's
    /// cursor.
    pub(super) async fn reclaim_stale(&mut self, from: u64) -> Result<Option<u64>, RedisError> {
        let name = Arc::clone(self.lease.name());
        let page = self.store.sessions_of(&name, from).await?;
        let listed = page.sessions.iter().filter_map(|(id, _)| SessionId::parse(id));
        let registry = &self.parts.registry;
        let ended = listed.filter(|id| !registry.contains(id.as_str()));
        // Nobody else writes under this name, so the number does not matter.
        let mut entries: Vec<_> = ended.map(|id| ((Arc::clone(&name), id), None)).collect();
        entries.retain(|(entry, _)| !self.publisher.is_tracked(entry));
        self.reclaim(entries).await?;
        if page.next == 0 {
            return Ok(None);
        }
        self.next_upkeep = Instant::now();
        Ok(Some(page.next))
    }

    /// Removes all users of these nodes from these sessions, publishes and announces that.
    async fn reclaim(&mut self, entries: Vec<(ListEntry, Option<u64>)>) -> Result<(), RedisError> {
        for entries in entries.chunks(MAX_PIPELINE) {
            let mut pipeline = self.pipeline_with_heartbeat();
            for ((node, session_id), _) in entries {
                let id = session_id.as_str();
                self.store.add_apply(
                    &mut pipeline,
                    node,
                    id,
                    Listing::NodeGone,
                    Requested::Snapshot,
                    Known::default(),
                );
            }
            let Some(answers) = self.send_with_heartbeat(pipeline, LONG).await? else {
                return Ok(());
            };
            for ((entry, number), answer) in entries.iter().zip(answers) {
                match answer.and_then(|answer| answers::read_applied(answer, Requested::Snapshot)) {
                    Ok(applied) => self.reclaimed(entry, *number, applied).await,
                    Err(error) => {
                        self.refused(&entry.1, &error);
                        self.publisher.track_unpublished(entry.clone(), *number);
                    }
                }
            }
        }
        Ok(())
    }

    async fn reclaimed(&mut self, entry: &ListEntry, number: Option<u64>, applied: Applied) {
        let (node, session_id) = entry;
        self.index
            .note(session_id, &applied, Write::required(), Instant::now());
        let session = self.parts.registry.get(session_id.as_str());
        let leaves = applied
            .leaves
            .iter()
            .map(|(user_id, _)| user_id.clone())
            .collect();
        let is_retired = self.lease.is_retired(node);
        match &applied.snapshot {
            // The users who are here were written again, and published, under the current name.
            Some(_) if is_retired && session.is_some() && applied.leaves.is_empty() => {
                self.publisher.track_unpublished(entry.clone(), number);
            }
            Some(status) => {
                let events = status_publisher::leave_events(&applied.leaves);
                // What the log rejects of other names is found again on their lists.
                let is_own = node == self.lease.name();
                let receipt = match is_own {
                    true => self.publisher.publish(session_id, status, events),
                    false => self.publisher.publish_leaves(session_id, status, events),
                };
                let unacknowledged = Unacknowledged {
                    receipt,
                    leaves,
                    is_own,
                    number,
                };
                self.publisher.track(entry.clone(), unacknowledged);
            }
            None => {}
        }
        if let Some(session) = session {
            if self.note_damage(session_id, &applied) {
                let again = self.pend(session_id.clone());
                (again.is_check, again.must_publish) = (true, true);
            }
            self.notifier.notify(&session, Vec::new(), applied).await;
        }
    }

    /// Shuts down in order: publishes that nobody is left here, and hands the users who may still reconnect to another
    /// node, if there is one, with what is left of their grace.
    pub(super) async fn shut_down(&mut self) -> Result<(), RedisError> {
        self.claims_nodes = false;
        let deadline = Instant::now() + self.parts.dirty.stop_timeout().mul_f64(LOG_SHARE);
        self.await_acknowledgements(deadline).await?;
        let name = Arc::clone(self.lease.name());
        let grace = self.remaining_grace();
        let departure = self.store.depart(&name, node_of(&self.parts.node), grace).await?;
        if !departure.has_others {
            self.expire_everyone(departure.shut_down, deadline).await?;
        }
        for name in self.lease.retired_names() {
            self.store.expire(name).await?;
        }
        if departure.has_others && grace.is_some() {
            return Ok(());
        }
        // If anything is left, the others reap it at once.
        self.store.expire(&name).await?;
        let page = self.store.sessions_of(&name, 0).await?;
        if page.next == 0 && page.sessions.is_empty() {
            self.store.deregister(&name).await?;
        }
        Ok(())
    }

    /// What is left of our users' grace, if there are any.
    fn remaining_grace(&self) -> Option<Duration> {
        if self.timings.grace.is_zero() || self.parts.registry.is_empty() {
            return None;
        }
        let longest = self.grace.longest_remaining(Moment::now());
        // Connections that are still open close now.
        let is_open = |session: &Arc<Session>| !session.members().is_empty();
        let has_open = self.parts.registry.all().iter().any(is_open);
        Some(if has_open { self.timings.grace } else { longest })
    }

    /// There is no other node: the grace expires at once, also for users of nodes that were shut down before.
    async fn expire_everyone(&mut self, shut_down: Vec<String>, deadline: Instant) -> Result<(), RedisError> {
        while let Some(user) = self.grace.take_oldest() {
            self.end_grace(user, Moment::now());
        }
        self.round().await?;
        self.await_acknowledgements(deadline).await?;
        for node in shut_down.into_iter().map(Arc::<str>::from) {
            while Instant::now() < deadline {
                let page = self.store.sessions_of(&node, 0).await?;
                if page.next == 0 && page.sessions.is_empty() {
                    self.deregister(&node).await?;
                    break;
                }
                self.reap(Arc::clone(&node)).await?;
                self.await_acknowledgements(deadline).await?;
            }
        }
        Ok(())
    }

    /// Waits until the log has acknowledged what was published, and removes that from the lists.
    async fn await_acknowledgements(&mut self, deadline: Instant) -> Result<(), RedisError> {
        loop {
            self.write_sessions(Vec::new()).await?;
            let is_idle = self.publisher.is_idle() && !self.index.has_rows();
            if is_idle || Instant::now() >= deadline {
                return Ok(());
            }
            sleep(self.timings.window).await;
        }
    }
}
