//! Takes back what nodes held that hold it no more: dead ones, and this one under an earlier name or in sessions
//! that ended unseen.
//!
//! A session stays on its node's list until the log has the news, and the leaves stay beside its users: a reaper's
//! own death repeats, never loses.

use std::sync::Arc;

use redis::RedisError;
use tokio::time::{Instant, sleep};

use super::keys;
use super::news::{self, Place};
use super::pipeline::{MAX_PIPELINE, Pipeline};
use super::store::{self, LONG, Listing, SHORT};
use crate::protocol::ids::SessionId;

/// Names of our own that we still take back ourselves; of more, the other nodes do, as of any dead one.
const MAX_FORMER: usize = 4;
/// The part of the time for an orderly end in which the log may answer; the rest is for Redis.
const LOG_SHARE: f64 = 0.6;

impl Pipeline {
    /// Takes back some sessions of a dead node, or all of an earlier name of our own; forgets it when there are none
    /// left.
    pub(super) async fn reap(&mut self, node: Arc<str>) -> Result<(), RedisError> {
        if self.news.is_full() {
            return Ok(());
        }
        let is_own = self.standing.former.contains(&node);
        let some = (!is_own).then_some(MAX_PIPELINE);
        let listed = self.store.sessions_of(&node, some).await?;
        if listed.is_empty() {
            if is_own {
                self.store.expire(&node).await?;
                self.standing.former.retain(|former| *former != node);
            } else {
                tracing::warn!(%node, "a node has died: its users have left");
                self.parts.metrics.nodes_reaped.inc();
            }
            return self.store.bury(&node).await;
        }
        let mut foreign = self.begin();
        let nothing = foreign.len();
        let mut places = Vec::new();
        for id in &listed {
            match SessionId::parse(id) {
                Some(session_id) => places.push((Arc::clone(&node), session_id)),
                None => drop(foreign.cmd("SREM").arg(keys::sessions(&node)).arg(id)),
            }
        }
        if foreign.len() > nothing && self.send(foreign, SHORT).await?.is_none() {
            return Ok(());
        }
        places.retain(|place| !self.news.is_unsettled(place));
        self.take_back(places).await?;
        let surplus = self.standing.former.len().saturating_sub(MAX_FORMER);
        self.standing.former.drain(..surplus);
        Ok(())
    }

    /// Takes our own users out of sessions that ended unseen.
    pub(super) async fn take_back_stale(&mut self) -> Result<(), RedisError> {
        let name = Arc::clone(&self.standing.name);
        let listed = self.store.sessions_of(&name, None).await?;
        let listed = listed.iter().filter_map(|id| SessionId::parse(id));
        let registry = &self.parts.registry;
        let ended = listed.filter(|id| !registry.contains(id.as_str()));
        let mut places: Vec<Place> = ended.map(|id| (Arc::clone(&name), id)).collect();
        places.retain(|place| !self.news.is_unsettled(place));
        self.take_back(places).await
    }

    /// Takes all users of these nodes out of these sessions and tells everyone.
    async fn take_back(&mut self, places: Vec<Place>) -> Result<(), RedisError> {
        for places in places.chunks(MAX_PIPELINE) {
            let mut pipeline = self.begin();
            for (node, session_id) in places {
                self.store
                    .add_apply(&mut pipeline, node, session_id.as_str(), Listing::Left, true);
            }
            let Some(answers) = self.send(pipeline, LONG).await? else {
                return Ok(());
            };
            for (place, answer) in places.iter().zip(answers) {
                match answer.and_then(|answer| store::read_applied(answer, true)) {
                    Ok(applied) => self.taken_back(place, applied).await,
                    Err(error) => {
                        self.refused(&place.1, &error);
                        self.news.settle_without(place.clone());
                    }
                }
            }
        }
        Ok(())
    }

    async fn taken_back(&mut self, place: &Place, applied: store::Applied) {
        let (node, session_id) = place;
        let session = self.parts.registry.get(session_id.as_str());
        let left = applied.left.iter().map(|(user_id, _)| user_id.clone()).collect();
        let is_former = self.standing.former.contains(node);
        match &applied.snapshot {
            // What is here was written again, and told, under the name of now.
            Some(_) if is_former && session.is_some() && applied.left.is_empty() => {
                self.news.settle_without(place.clone());
            }
            Some(status) => {
                let events = news::leaves(&applied.left);
                // On a list that is looked at again, what the log refuses is found again.
                let is_own = *node == self.standing.name;
                let receipt = match is_own {
                    true => self.news.publish(session_id, status, events),
                    false => self.news.publish_left(session_id, status, events),
                };
                self.news.settle_with(place.clone(), receipt, left, is_own);
            }
            None => {}
        }
        if let Some(session) = session
            && !self.standing.is_holding()
        {
            self.audience.show(&session, Vec::new(), applied).await;
        }
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
        let name = Arc::clone(&self.standing.name);
        self.store.expire(&name).await?;
        if self.store.sessions_of(&name, Some(1)).await?.is_empty() {
            self.store.bury(&name).await?;
        }
        Ok(())
    }
}
