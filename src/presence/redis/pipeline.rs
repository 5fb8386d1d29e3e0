//! The pipeline task: takes the marks of a window, writes them in one pipeline, and hands on what changed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::{RedisError, Value};
use tokio::time::{Instant, sleep, sleep_until};

use super::audience::Audience;
use super::news::{self, News};
use super::store::{self, Applied, Held, Lease, Listing, Store};
use super::{Times, keys};
use crate::presence::Parts;
use crate::presence::inbox::Change;
use crate::protocol::format_timestamp;
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::status::StatusEvent;
use crate::session::Session;

/// The most sessions of one pipeline: a round trip stays short, and so does Redis's pause for others.
pub const MAX_PIPELINE: usize = 500;
/// How long to leave a Redis alone that has failed; doubled up to the second while it keeps failing.
const MIN_RETRY: Duration = Duration::from_millis(250);
const MAX_RETRY: Duration = Duration::from_secs(1);
/// How long the old server's readers see somebody type.
const TYPING_SECONDS: u32 = 30;
/// Typists that wait for Redis, at most: they are forgotten in half a minute anyway.
const MAX_TYPING: usize = 10_000;

/// What is not written yet of one session.
#[derive(Default)]
struct Pending {
    change: Change,
    /// Other nodes are to be told, whatever Redis says has changed: an earlier time failed, or was not seen.
    is_news: bool,
    /// Events they have not been told.
    events: Vec<StatusEvent>,
}

impl Pending {
    fn merge(&mut self, other: Self) {
        self.change.merge(other.change);
        self.is_news |= other.is_news;
        self.events.extend(other.events);
    }
}

pub struct Pipeline {
    pub(super) store: Arc<Store>,
    pub(super) parts: Arc<Parts>,
    pub(super) times: Times,
    /// This node's name in Redis: `NODE_ID` and boot id and, after a lost lease, a number. Whoever was declared
    /// dead stays dead: what a reaper still takes from the old name can't hurt the new one.
    pub(super) node: Arc<str>,
    /// How often the lease was lost.
    losses: u32,
    /// Our names before, with sessions that may still be under them.
    pub(super) former: Vec<Arc<str>>,
    pub(super) audience: Audience,
    pub(super) news: News,
    pending: HashMap<SessionId, Pending>,
    typing: HashMap<(SessionId, UserId), bool>,
    /// Sessions that have ended, but are on our list in Redis.
    pub(super) stale: Vec<SessionId>,
    pub(super) next_heartbeat: Instant,
    retry: Duration,
    /// Everything is to be written again: the connection is new, or Redis has lost it.
    needs_resync: bool,
    /// Redis seems to have lost everything.
    is_empty: bool,
    /// Redis has lost what nodes wrote: until all have written it again, what it says is not shown.
    hold_until: Option<Instant>,
    /// What was written in that time.
    held_back: HashMap<SessionId, Pending>,
    /// Nobody is declared dead before: after a loss every lease is new.
    reap_after: Instant,
    has_had_lease: bool,
}

impl Pipeline {
    pub fn new(store: Arc<Store>, parts: Arc<Parts>, times: Times) -> Self {
        let now = Instant::now();
        Self {
            audience: Audience::new(Arc::clone(&parts.registry), Arc::clone(&parts.metrics)),
            news: News::new(Arc::clone(&parts.bus), Arc::clone(&parts.inbox)),
            node: parts.node.as_str().into(),
            store,
            parts,
            times,
            losses: 0,
            former: Vec::new(),
            pending: HashMap::new(),
            typing: HashMap::new(),
            stale: Vec::new(),
            next_heartbeat: now,
            retry: MIN_RETRY,
            needs_resync: true,
            is_empty: false,
            hold_until: None,
            held_back: HashMap::new(),
            reap_after: now,
            has_had_lease: false,
        }
    }

    /// Runs until the inbox is stopped.
    pub async fn run(mut self) {
        loop {
            let due = self.due();
            tokio::select! {
                () = self.parts.inbox.marked() => sleep(self.times.window).await,
                () = sleep_until(due) => {}
            }
            let is_stopping = self.parts.inbox.is_stopping();
            self.take_marks();
            match self.round().await {
                Ok(()) if self.store.is_connected() => {
                    self.retry = MIN_RETRY;
                    if self.hold_until.is_none() {
                        self.store.succeed();
                    }
                }
                Ok(()) => {}
                Err(error) => {
                    self.store.fail(&error);
                    self.next_heartbeat = Instant::now() + self.retry;
                    self.retry = MAX_RETRY.min(2 * self.retry);
                    self.forget_what_a_resync_finds();
                }
            }
            self.parts.metrics.redis_up.set(self.store.is_connected().into());
            if is_stopping {
                if let Err(error) = self.leave().await {
                    self.store.fail(&error);
                }
                return;
            }
        }
    }

    fn due(&self) -> Instant {
        let others = [self.audience.due(), self.hold_until];
        let others = others.into_iter().flatten();
        others.fold(self.next_heartbeat, Instant::min)
    }

    fn take_marks(&mut self) {
        let now = Instant::now();
        let changes = self.parts.inbox.take();
        for (session_id, change) in changes.sessions {
            self.pending.entry(session_id).or_default().change.merge(change);
        }
        self.typing.extend(changes.typing);
        if self.typing.len() > MAX_TYPING {
            self.typing.clear();
        }
        for session_id in self.audience.take_due(now) {
            self.pending.entry(session_id).or_default();
        }
        if now >= self.next_heartbeat {
            self.take_failed_news();
        }
        if self.hold_until.is_some_and(|until| now >= until) {
            self.hold_until = None;
            self.store.settle(false);
            for session in self.parts.registry.all() {
                self.pending.entry(session.id.clone()).or_default();
            }
            for (session_id, pending) in self.held_back.drain() {
                self.pending.entry(session_id).or_default().merge(pending);
            }
        }
    }

    /// What the log has refused is tried again, once per heartbeat.
    fn take_failed_news(&mut self) {
        match self.news.take_failed() {
            Some(failed) => {
                for (session_id, events) in failed {
                    let pending = self.pending.entry(session_id).or_default();
                    pending.is_news = true;
                    pending.events.extend(events);
                }
            }
            None => {
                for session in self.parts.registry.all() {
                    self.pending.entry(session.id.clone()).or_default().is_news = true;
                }
                self.begin_resync();
            }
        }
    }

    /// While Redis is away, marks would pile up: of sessions that have ended, our list of sessions, there, has them,
    /// and of all others the rosters know more.
    fn forget_what_a_resync_finds(&mut self) {
        let registry = &self.parts.registry;
        self.pending
            .retain(|session_id, _| registry.contains(session_id.as_str()));
        for (session_id, pending) in &mut self.pending {
            let session = registry.get(session_id.as_str());
            let is_here = |user_id: &UserId| {
                let session = session.as_ref();
                session.is_some_and(|session| session.with_roster(|roster| roster.held(user_id).is_some()))
            };
            let before = pending.change.users.len();
            pending.change.users.retain(|user_id, _| is_here(user_id));
            pending.is_news |= pending.change.users.len() < before;
            pending.change.joiners.retain(|outbox| outbox.is_open());
        }
        self.held_back
            .retain(|session_id, _| registry.contains(session_id.as_str()));
        self.audience.forget_the_gone();
        self.begin_resync();
    }

    /// Everything is to be written again. What Redis then says is new, or not, is no measure of what other nodes
    /// know: they are told of every change that is under way.
    fn begin_resync(&mut self) {
        self.needs_resync = true;
        for pending in self.pending.values_mut() {
            pending.is_news |= !pending.change.users.is_empty();
        }
    }

    async fn round(&mut self) -> Result<(), RedisError> {
        if !self.store.is_connected() {
            if Instant::now() < self.next_heartbeat {
                return Ok(());
            }
            self.store.connect().await?;
            self.begin_resync();
            // What a Redis that slept has missed is no sign of death.
            if self.has_had_lease {
                self.reap_after = Instant::now() + self.times.ttl;
            }
        }
        let mut dead = self.write(Vec::new()).await?;
        if self.needs_resync {
            self.resync().await?;
        }
        while !self.pending.is_empty() && !self.needs_resync {
            let batch: Vec<SessionId> = self.pending.keys().take(MAX_PIPELINE).cloned().collect();
            dead = self.write(batch).await?;
        }
        self.take_back_stale().await?;
        let former = self.former.clone();
        for node in former.into_iter().chain(dead.into_iter().map(Arc::from)) {
            self.reap(node).await?;
        }
        Ok(())
    }

    /// Renews the lease, takes what is settled off the lists, and writes a batch. Gives the dead nodes that are ours
    /// to take back.
    pub(super) async fn write(&mut self, batch: Vec<SessionId>) -> Result<Vec<String>, RedisError> {
        let now = Instant::now();
        let claim = match now >= self.reap_after {
            true => self.times.claim,
            false => Duration::ZERO,
        };
        let mut pipeline = redis::pipe();
        self.store
            .add_heartbeat(&mut pipeline, &self.node, self.times.lease, claim);
        let registry = &self.parts.registry;
        let is_here = |id: &SessionId| registry.contains(id.as_str());
        let is_pending = |id: &SessionId| self.pending.contains_key(id);
        let settled = self.news.settled(&self.node, is_here, is_pending);
        for ((node, session_id), left) in &settled {
            if !left.is_empty() {
                let left: Vec<&str> = left.iter().map(UserId::as_str).collect();
                let key = keys::untold(session_id.as_str(), node);
                pipeline.cmd("HDEL").arg(key).arg(left);
            }
            let key = keys::sessions(node);
            pipeline.cmd("SREM").arg(key).arg(session_id.as_str());
        }
        // Asked once: what is counted in this pipeline is on our list by this pipeline.
        let sessions: Vec<_> = batch.iter().map(|id| registry.get(id.as_str())).collect();
        let here: Vec<&str> = sessions
            .iter()
            .flatten()
            .map(|session| session.id.as_str())
            .collect();
        if !here.is_empty() {
            // After the removals: who has come back meanwhile stays on the list.
            pipeline.cmd("SADD").arg(keys::sessions(&self.node)).arg(here);
        }
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
        let before = pipeline.len();
        let mut wants = Vec::with_capacity(batch.len());
        for (session_id, session) in batch.iter().zip(&sessions) {
            let users = self.pending.get(session_id).map(|pending| &pending.change.users);
            let held = held(session.as_deref(), users.into_iter().flatten());
            let wants_snapshot = self.audience.wants_snapshot(session_id, now);
            let listing = Listing::Some(&held);
            self.store.add_apply(
                &mut pipeline,
                &self.node,
                session_id.as_str(),
                listing,
                wants_snapshot,
            );
            wants.push(wants_snapshot);
        }
        self.parts.metrics.redis_pipelines.inc();
        let mut answers = self.store.send(&mut pipeline).await?.into_iter();
        self.typing.clear();
        self.news.forget(&settled);
        let (lease, dead) = store::read_heartbeat(answers.next().unwrap_or(Ok(Value::Nil))?)?;
        self.next_heartbeat = Instant::now() + self.times.heartbeat;
        if std::mem::replace(&mut self.has_had_lease, true) && lease != Lease::Held {
            self.lose_lease(lease);
            return Ok(Vec::new());
        }
        let was_here = sessions.iter().map(Option::is_some);
        let answers = wants.into_iter().zip(was_here).zip(answers.skip(before - 1));
        for (session_id, ((wanted, was_here), answer)) in batch.into_iter().zip(answers) {
            let pending = self.pending.remove(&session_id).unwrap_or_default();
            match answer.and_then(|answer| store::read_applied(answer, wanted)) {
                Ok(applied) => self.applied(session_id, pending, applied, was_here).await,
                // Somebody else's value under our key, say: this session has no presence, the others do.
                Err(error) => {
                    tracing::warn!(%session_id, code = error.code(), "Redis refuses a session's presence");
                }
            }
        }
        Ok(dead)
    }

    /// Redis was emptied or restored, or believed us dead: begins anew under another name.
    fn lose_lease(&mut self, lease: Lease) {
        tracing::warn!(lease = ?lease, "Redis has lost this node's lease: presence is written again");
        let now = Instant::now();
        self.losses += 1;
        let name = format!("{}.{}", self.parts.node, self.losses).into();
        self.former.push(std::mem::replace(&mut self.node, name));
        self.has_had_lease = false;
        self.is_empty = lease == Lease::Absent;
        self.stale.clear();
        self.begin_resync();
        self.audience.distrust();
        self.store.settle(true);
        self.hold_until = Some(now + 2 * self.times.heartbeat + self.times.window);
        self.reap_after = now + self.times.ttl;
        self.next_heartbeat = now;
    }

    /// A change is written: tells clients here and nodes elsewhere. A session that was not here any more when it was
    /// written can leave our list; one that ended since is marked again.
    async fn applied(
        &mut self,
        session_id: SessionId,
        mut pending: Pending,
        applied: Applied,
        was_here: bool,
    ) {
        pending.events.extend(news::events(&applied));
        pending.is_news |= !pending.events.is_empty();
        let session = self.parts.registry.get(session_id.as_str());
        let place = || (Arc::clone(&self.node), session_id.clone());
        if self.hold_until.is_some() {
            pending.change.users.clear();
            let held_back = self.held_back.entry(session_id.clone());
            held_back.or_default().merge(pending);
            return;
        }
        if let Some(deferred) = self.audience.take_deferred(&session_id) {
            pending.is_news = true;
            pending.events.splice(0..0, deferred);
        }
        match (&applied.snapshot, pending.is_news) {
            (Some(status), true) => {
                let receipt = self.news.publish(&session_id, status, pending.events);
                if !was_here {
                    let place = place();
                    self.news.settle_with(place, receipt, Vec::new());
                }
            }
            (None, true) => self.audience.defer(&session_id, pending.events),
            (_, false) if !was_here => {
                let place = place();
                self.news.settle_without(place);
            }
            (_, false) => {}
        }
        match session {
            Some(session) => {
                self.audience
                    .show(&session, pending.change.joiners, applied)
                    .await
            }
            None => self.audience.forget(&session_id),
        }
    }

    /// Writes all that this node holds, and finds what it no longer does.
    async fn resync(&mut self) -> Result<(), RedisError> {
        let sessions = self.parts.registry.all();
        for batch in sessions.chunks(MAX_PIPELINE) {
            let mut pipeline = redis::pipe();
            let ids: Vec<&str> = batch.iter().map(|session| session.id.as_str()).collect();
            pipeline.cmd("SADD").arg(keys::sessions(&self.node)).arg(ids);
            for session in batch {
                let users = session.with_roster(|roster| roster.ids());
                let changed = self.pending.get(&session.id).map(|pending| &pending.change.users);
                let is_anew = |user_id| changed.and_then(|users| users.get(user_id)).unwrap_or(&false);
                let held = held(
                    Some(session),
                    users.iter().map(|user_id| (user_id, is_anew(user_id))),
                );
                let id = session.id.as_str();
                self.store
                    .add_apply(&mut pipeline, &self.node, id, Listing::All(&held), false);
                for former in &self.former {
                    self.store
                        .add_apply(&mut pipeline, former, id, Listing::All(&[]), false);
                }
            }
            let answers = self.store.send(&mut pipeline).await?;
            for (session, answers) in batch.iter().zip(answers[1..].chunks(1 + self.former.len())) {
                let pending = self.pending.entry(session.id.clone()).or_default();
                for answer in answers.iter().flatten().cloned() {
                    let events = news::events(&store::read_applied(answer, false)?);
                    pending.is_news |= !events.is_empty();
                    // Where Redis has lost everything, all who are here seem new; others know them.
                    if !self.is_empty {
                        pending.events.extend(events);
                    }
                }
            }
        }
        let listed = self.store.sessions_of(&self.node, None).await?;
        self.stale = listed.iter().filter_map(|id| SessionId::parse(id)).collect();
        let registry = &self.parts.registry;
        self.stale.retain(|id| !registry.contains(id.as_str()));
        self.needs_resync = false;
        self.is_empty = false;
        Ok(())
    }

    pub(super) fn is_holding(&self) -> bool {
        self.hold_until.is_some()
    }
}

/// What this node holds of these users (and whether they have come anew), from the roster of this moment.
fn held<'a>(session: Option<&Session>, users: impl Iterator<Item = (&'a UserId, &'a bool)>) -> Vec<Held> {
    users
        .map(|(user_id, &anew)| {
            let held = session.and_then(|session| session.with_roster(|roster| roster.held(user_id)));
            let user_id = user_id.clone();
            match held {
                Some((user_type, joined_at, connections)) => Held {
                    user_id,
                    user_type,
                    joined_at: format_timestamp(joined_at),
                    connections,
                    anew,
                },
                None => Held::none(user_id),
            }
        })
        .collect()
}
