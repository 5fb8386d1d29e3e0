//! Takes back what nodes held that hold it no more: dead ones, and this one under an earlier name or in sessions
//! that ended unseen.
//!
//! A session stays on its node's list until the log has the news, and the leaves stay beside its users: a reaper's
//! own death repeats, never loses.

use std::sync::Arc;

use redis::RedisError;
use tokio::time::{Instant, sleep};

use super::news::{self, Place, Unsettled};
use super::pipeline::{MAX_PIPELINE, Pipeline};
use super::store::{self, LONG, Listing, SHORT};
use crate::protocol::ids::SessionId;

/// The part of the time for an orderly end in which the log may answer; the rest is for Redis.
const LOG_SHARE: f64 = 0.6;

impl Pipeline {
    /// Takes back some sessions of a dead node, or of an earlier name of our own; forgets it when there are none left
    /// and its lease has ended: until then something of it may still be under way.
    pub(super) async fn reap(&mut self, node: Arc<str>) -> Result<(), RedisError> {
        if self.news.is_full() {
            return Ok(());
        }
        // Those that wait for the log are first on the list.
        let most = MAX_PIPELINE + self.news.len();
        let listed = self.store.sessions_of(&node, most).await?;
        if listed.is_empty() {
            let is_gone = self.store.bury(&node).await?;
            if is_gone && self.standing.former.contains(&node) {
                self.standing.former.retain(|former| *former != node);
            } else if is_gone {
                tracing::warn!(%node, "a node has died: its users have left");
                self.parts.metrics.nodes_reaped.inc();
            }
            return Ok(());
        }
        let mut places = Vec::new();
        for (id, number) in &listed {
            match SessionId::parse(id) {
                Some(session_id) => places.push(((Arc::clone(&node), session_id), Some(*number))),
                None => {
                    let mut pipeline = self.begin();
                    self.store.add_settle(&mut pipeline, &node, &[(id, None)]);
                    self.send(pipeline, SHORT).await?;
                }
            }
        }
        places.retain(|(place, _)| !self.news.is_unsettled(place));
        self.take_back(places).await
    }

    /// Takes our users out under earlier names, before anybody looks at what Redis says after a loss. Who left by that
    /// is told when that can be: it is kept in Redis until then.
    pub(super) async fn release_former(&mut self) -> Result<(), RedisError> {
        if !self.standing.is_holding() {
            return Ok(());
        }
        for node in self.standing.former.clone() {
            let listed = self.store.sessions_of(&node, usize::MAX >> 1).await?;
            for sessions in listed.chunks(MAX_PIPELINE) {
                let mut pipeline = self.begin();
                for (id, _) in sessions {
                    self.store
                        .add_apply(&mut pipeline, &node, id, Listing::Left, false);
                }
                if self.send(pipeline, LONG).await?.is_none() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Takes our own users out of sessions that ended unseen.
    pub(super) async fn take_back_stale(&mut self) -> Result<(), RedisError> {
        let name = Arc::clone(&self.standing.name);
        let listed = self.store.sessions_of(&name, usize::MAX >> 1).await?;
        let listed = listed.iter().filter_map(|(id, _)| SessionId::parse(id));
        let registry = &self.parts.registry;
        let ended = listed.filter(|id| !registry.contains(id.as_str()));
        // Nobody else writes under this name: whatever the number is, it is ours.
        let mut places: Vec<_> = ended.map(|id| ((Arc::clone(&name), id), None)).collect();
        places.retain(|(place, _)| !self.news.is_unsettled(place));
        self.take_back(places).await
    }

    /// Takes all users of these nodes out of these sessions and tells everyone.
    async fn take_back(&mut self, places: Vec<(Place, Option<u64>)>) -> Result<(), RedisError> {
        for places in places.chunks(MAX_PIPELINE) {
            let mut pipeline = self.begin();
            for ((node, session_id), _) in places {
                self.store
                    .add_apply(&mut pipeline, node, session_id.as_str(), Listing::Left, true);
            }
            let Some(answers) = self.send(pipeline, LONG).await? else {
                return Ok(());
            };
            for ((place, number), answer) in places.iter().zip(answers) {
                match answer.and_then(|answer| store::read_applied(answer, true)) {
                    Ok(applied) => self.taken_back(place, *number, applied).await,
                    Err(error) => {
                        self.refused(&place.1, &error);
                        self.news.settle_without(place.clone(), *number);
                    }
                }
            }
        }
        Ok(())
    }

    async fn taken_back(&mut self, place: &Place, number: Option<u64>, applied: store::Applied) {
        let (node, session_id) = place;
        let session = self.parts.registry.get(session_id.as_str());
        let left = applied.left.iter().map(|(user_id, _)| user_id.clone()).collect();
        let is_former = self.standing.former.contains(node);
        match &applied.snapshot {
            // What is here was written again, and told, under the name of now.
            Some(_) if is_former && session.is_some() && applied.left.is_empty() => {
                self.news.settle_without(place.clone(), number);
            }
            Some(status) => {
                let events = news::leaves(&applied.left);
                // On a list that is looked at again, what the log refuses is found again.
                let is_own = *node == self.standing.name;
                let receipt = match is_own {
                    true => self.news.publish(session_id, status, events),
                    false => self.news.publish_left(session_id, status, events),
                };
                let unsettled = Unsettled {
                    receipt,
                    left,
                    is_own,
                    number,
                };
                self.news.settle_with(place.clone(), unsettled);
            }
            None => {}
        }
        if let Some(session) = session {
            self.audience.show(&session, Vec::new(), applied).await;
        }
    }

    /// The orderly end: nobody is left here, and the others know.
    pub(super) async fn leave(&mut self) -> Result<(), RedisError> {
        self.wants_dead = false;
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
        for name in self.standing.former.iter().chain([&name]) {
            self.store.expire(name).await?;
        }
        if self.store.sessions_of(&name, 1).await?.is_empty() {
            self.store.bury(&name).await?;
        }
        Ok(())
    }
}
