//! Takes back what nodes held that hold it no more: dead ones, and this one under an earlier name or in sessions
//! that ended while Redis was away.
//!
//! A session stays on its node's list until the log has the news, and the leaves stay beside its users: a reaper's
//! own death repeats, never loses.

use std::sync::Arc;

use redis::RedisError;
use tokio::time::{Instant, sleep};

use super::keys;
use super::news::{self, Place};
use super::pipeline::{MAX_PIPELINE, Pipeline};
use super::store::{self, Listing};
use crate::protocol::ids::SessionId;

/// Names of our own that we still take back ourselves; of more, the other nodes do, as of any dead one.
const MAX_FORMER: usize = 4;
/// The part of the time for an orderly end in which the log may answer; the rest is for Redis.
const LOG_SHARE: f64 = 0.6;

impl Pipeline {
    /// Takes back some sessions of a dead node, or forgets it when there are none left.
    pub(super) async fn reap(&mut self, node: Arc<str>) -> Result<(), RedisError> {
        let listed = self.store.sessions_of(&node, Some(MAX_PIPELINE)).await?;
        if listed.is_empty() {
            if self.former.contains(&node) {
                self.store.expire(&node).await?;
                self.former.retain(|former| *former != node);
            } else {
                tracing::warn!(%node, "a node has died: its users have left");
                self.parts.metrics.nodes_reaped.inc();
            }
            return self.store.bury(&node).await;
        }
        let mut foreign = redis::pipe();
        let mut places = Vec::new();
        for id in &listed {
            match SessionId::parse(id) {
                Some(session_id) => places.push((Arc::clone(&node), session_id)),
                None => drop(foreign.cmd("SREM").arg(keys::sessions(&node)).arg(id)),
            }
        }
        if !foreign.is_empty() {
            self.store.send(&mut foreign).await?;
        }
        places.retain(|place| !self.news.is_unsettled(place));
        if !places.is_empty() {
            // There may be more: the log's answer wakes us.
            self.take_back(places).await?;
        }
        let surplus = self.former.len().saturating_sub(MAX_FORMER);
        self.former.drain(..surplus);
        Ok(())
    }

    /// Takes our own users out of sessions that ended unseen.
    pub(super) async fn take_back_stale(&mut self) -> Result<(), RedisError> {
        while !self.stale.is_empty() {
            let rest = self.stale.split_off(self.stale.len().min(MAX_PIPELINE));
            let ended = std::mem::replace(&mut self.stale, rest);
            let registry = &self.parts.registry;
            let ended = ended.into_iter().filter(|id| !registry.contains(id.as_str()));
            let places = ended.map(|id| (Arc::clone(&self.node), id)).collect();
            self.take_back(places).await?;
        }
        Ok(())
    }

    /// Takes all users of these nodes out of these sessions and tells everyone.
    async fn take_back(&mut self, places: Vec<Place>) -> Result<(), RedisError> {
        let mut pipeline = redis::pipe();
        for (node, session_id) in &places {
            self.store
                .add_apply(&mut pipeline, node, session_id.as_str(), Listing::Left, true);
        }
        let answers = self.store.send(&mut pipeline).await?;
        for (place, answer) in places.into_iter().zip(answers) {
            let applied = match answer.and_then(|answer| store::read_applied(answer, true)) {
                Ok(applied) => applied,
                Err(error) => {
                    tracing::warn!(session_id = %place.1, code = error.code(), "Redis refuses a session's presence");
                    self.news.settle_without(place);
                    continue;
                }
            };
            let left = applied.left.iter().map(|(user_id, _)| user_id.clone()).collect();
            let events = news::leaves(&applied.left);
            if let Some(status) = &applied.snapshot {
                let receipt = self.news.publish_left(&place.1, status, events);
                self.news.settle_with(place.clone(), receipt, left);
            }
            if let Some(session) = self.parts.registry.get(place.1.as_str())
                && !self.is_holding()
            {
                self.audience.show(&session, Vec::new(), applied).await;
            }
        }
        Ok(())
    }

    /// The orderly end: nobody is left here, and the others know.
    pub(super) async fn leave(&mut self) -> Result<(), RedisError> {
        let deadline = Instant::now() + self.parts.inbox.patience().mul_f64(LOG_SHARE);
        loop {
            // It takes what is settled off our list, too.
            self.write(Vec::new()).await?;
            if self.news.is_settled() || Instant::now() >= deadline {
                break;
            }
            sleep(self.times.window).await;
        }
        // What is left, if anything, is for the others, at once.
        self.store.expire(&self.node).await?;
        if self.store.sessions_of(&self.node, Some(1)).await?.is_empty() {
            self.store.bury(&self.node).await?;
        }
        Ok(())
    }
}
