//! Takes back what nodes held that hold it no more: dead ones, and this one under an earlier name or in sessions
//! that ended unseen.
//!
//! A session stays on its node's list until the log has the news, and the leaves stay beside its users: a reaper's
//! own death repeats, never loses.

use std::sync::Arc;
use std::time::Duration;

use redis::RedisError;
use tokio::time::{Instant, sleep};

use super::answers::{self, Applied};
use super::keys;
use super::listing::{Listing, Wants};
use super::news::{self, Place, Unsettled};
use super::pipeline::{MAX_PIPELINE, Pipeline};
use super::standing::base;
use super::store::{Buried, LONG, SHORT};
use crate::clock::Moment;
use crate::protocol::ids::SessionId;
use crate::session::Session;

/// The part of the time for an orderly end in which the log may answer; the rest is for Redis.
const LOG_SHARE: f64 = 0.6;

impl Pipeline {
    /// Takes back some sessions of a node that is dead or has left, or of an earlier name of our own: a page of its list
    /// at a time, however long that is. Forgets it when there are none left and its lease has ended: until then something
    /// of it may still be under way.
    pub(super) async fn reap(&mut self, node: Arc<str>) -> Result<(), RedisError> {
        if self.news.is_full() {
            return Ok(());
        }
        let from = self.reaping.get(&node).copied().unwrap_or_default();
        let page = self.store.sessions_of(&node, from).await?;
        if from == 0 && page.next == 0 && page.sessions.is_empty() {
            return self.bury(&node).await;
        }
        let mut places = Vec::new();
        for (id, number) in &page.sessions {
            match SessionId::parse(id) {
                Some(session_id) if session_id.as_str() == id => {
                    places.push(((Arc::clone(&node), session_id), Some(*number)));
                }
                other => {
                    let mut pipeline = self.begin();
                    // A UUID in capital letters, as earlier versions kept it: nobody is shown that session any more.
                    if other.is_some() {
                        self.store
                            .add_apply(&mut pipeline, &node, id, Listing::Left, Wants::Nothing, "");
                        pipeline.cmd("DEL").arg(keys::untold(id, &node));
                    }
                    self.store.add_settle(&mut pipeline, &node, &[(id, None)]);
                    self.send(pipeline, SHORT).await?;
                }
            }
        }
        // Those that wait for the log stay on the list until it has them.
        places.retain(|(place, _)| !self.news.is_still_moving(place));
        self.take_back(places).await?;
        // Only now: what failed is looked at again.
        self.reaping.insert(node, page.next);
        if page.next != 0 {
            self.next_upkeep = Instant::now();
        }
        Ok(())
    }

    async fn bury(&mut self, node: &Arc<str>) -> Result<(), RedisError> {
        self.reaping.remove(node);
        match self.store.bury(node).await? {
            Buried::Not => {}
            _ if self.standing.former.contains(node) => {
                self.standing.former.retain(|former| former != node);
            }
            Buried::Dead => {
                tracing::warn!(%node, "a node has died: its users have left");
                self.parts.metrics.nodes_reaped.inc();
            }
            Buried::Left => tracing::info!(%node, "a node has left, and who did not come back"),
        }
        Ok(())
    }

    /// Takes our users out under earlier names, before anybody looks at what Redis says after a loss. Who left by that
    /// is told when that can be: it is kept in Redis until then.
    pub(super) async fn release_former(&mut self) -> Result<(), RedisError> {
        if !self.standing.is_holding() {
            return Ok(());
        }
        for node in self.standing.former.clone() {
            let mut from = 0;
            loop {
                let page = self.store.sessions_of(&node, from).await?;
                for sessions in page.sessions.chunks(MAX_PIPELINE) {
                    let mut pipeline = self.begin();
                    for (id, _) in sessions {
                        self.store
                            .add_apply(&mut pipeline, &node, id, Listing::Left, Wants::Nothing, "");
                    }
                    if self.send(pipeline, LONG).await?.is_none() {
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

    /// Takes our own users out of sessions that ended unseen: those of a page of our list. Where the next one begins.
    pub(super) async fn take_back_stale(&mut self, from: u64) -> Result<Option<u64>, RedisError> {
        let name = Arc::clone(&self.standing.name);
        let page = self.store.sessions_of(&name, from).await?;
        let listed = page.sessions.iter().filter_map(|(id, _)| SessionId::parse(id));
        let registry = &self.parts.registry;
        let ended = listed.filter(|id| !registry.contains(id.as_str()));
        // Nobody else writes under this name: whatever the number is, it is ours.
        let mut places: Vec<_> = ended.map(|id| ((Arc::clone(&name), id), None)).collect();
        places.retain(|(place, _)| !self.news.is_still_moving(place));
        self.take_back(places).await?;
        if page.next == 0 {
            return Ok(None);
        }
        self.next_upkeep = Instant::now();
        Ok(Some(page.next))
    }

    /// Takes all users of these nodes out of these sessions and tells everyone.
    async fn take_back(&mut self, places: Vec<(Place, Option<u64>)>) -> Result<(), RedisError> {
        for places in places.chunks(MAX_PIPELINE) {
            let mut pipeline = self.begin();
            for ((node, session_id), _) in places {
                let id = session_id.as_str();
                self.store
                    .add_apply(&mut pipeline, node, id, Listing::Left, Wants::Snapshot, "");
            }
            let Some(answers) = self.send(pipeline, LONG).await? else {
                return Ok(());
            };
            for ((place, number), answer) in places.iter().zip(answers) {
                match answer.and_then(|answer| answers::read_applied(answer, Wants::Snapshot)) {
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

    async fn taken_back(&mut self, place: &Place, number: Option<u64>, applied: Applied) {
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
            if self.note_damage(session_id, &applied) {
                let again = self.pend(session_id.clone());
                (again.is_checked, again.is_news) = (true, true);
            }
            self.audience.show(&session, Vec::new(), applied).await;
        }
    }

    /// The orderly end: nobody is left here, and the others know. Who may still come back is handed to another node,
    /// with what is left of the grace, if there is one.
    pub(super) async fn leave(&mut self) -> Result<(), RedisError> {
        self.wants_dead = false;
        let deadline = Instant::now() + self.parts.inbox.patience().mul_f64(LOG_SHARE);
        self.settle_until(deadline).await?;
        let name = Arc::clone(&self.standing.name);
        let grace = self.to_hand_over();
        let departure = self.store.depart(&name, base(&self.parts.node), grace).await?;
        if !departure.has_others {
            self.leave_nobody_waiting(departure.left, deadline).await?;
        }
        for former in &self.standing.former {
            self.store.expire(former).await?;
        }
        if departure.has_others && grace.is_some() {
            return Ok(());
        }
        // What is left, if anything, is for the others, at once.
        self.store.expire(&name).await?;
        let page = self.store.sessions_of(&name, 0).await?;
        if page.next == 0 && page.sessions.is_empty() {
            self.store.bury(&name).await?;
        }
        Ok(())
    }

    /// How long our users' grace still is, if there are any.
    fn to_hand_over(&self) -> Option<Duration> {
        if self.times.grace.is_zero() || self.parts.registry.is_empty() {
            return None;
        }
        let longest = self.grace.longest(Moment::now());
        // Connections that are still open end now.
        let is_open = |session: &Arc<Session>| !session.members().is_empty();
        let has_open = self.parts.registry.all().iter().any(is_open);
        Some(if has_open { self.times.grace } else { longest })
    }

    /// No other node is there to wait for anybody: who is in the grace is gone, also of those that left before us.
    async fn leave_nobody_waiting(&mut self, left: Vec<String>, deadline: Instant) -> Result<(), RedisError> {
        while let Some(leaving) = self.grace.take_any() {
            self.end_grace(leaving, Moment::now());
        }
        self.round().await?;
        self.settle_until(deadline).await?;
        for node in left.into_iter().map(Arc::<str>::from) {
            while Instant::now() < deadline {
                let page = self.store.sessions_of(&node, 0).await?;
                if page.next == 0 && page.sessions.is_empty() {
                    self.bury(&node).await?;
                    break;
                }
                self.reap(Arc::clone(&node)).await?;
                self.settle_until(deadline).await?;
            }
        }
        Ok(())
    }

    /// Waits until the log has what was published, and takes that off the lists.
    async fn settle_until(&mut self, deadline: Instant) -> Result<(), RedisError> {
        loop {
            self.write(Vec::new()).await?;
            if self.news.is_settled() || Instant::now() >= deadline {
                return Ok(());
            }
            sleep(self.times.window).await;
        }
    }
}
