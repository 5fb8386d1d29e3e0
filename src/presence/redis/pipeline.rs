//! The pipeline task: takes the marks of a window, writes them in one pipeline, and hands on what changed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::RedisError;
use tokio::time::{Instant, sleep, sleep_until};

use super::audience::Audience;
use super::news::{self, MAX_SETTLED, MAX_WAITING, News, Settled, Unsettled};
use super::standing::Standing;
use super::store::{self, Applied, Held, LONG, Listing, SHORT, Store};
use super::{Times, keys};
use crate::logging::LogLimit;
use crate::presence::Parts;
use crate::presence::inbox::Change;
use crate::protocol::format_timestamp;
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::status::StatusEvent;
use crate::session::Session;

/// The most sessions, and about the most users, of one pipeline: a round trip stays short, and so does Redis's pause
/// for others.
pub const MAX_PIPELINE: usize = 500;
const MAX_PIPELINE_USERS: usize = 2_000;
/// How long to leave a Redis alone that has failed; doubled up to the second while it keeps failing.
const MIN_RETRY: Duration = Duration::from_millis(250);
pub const MAX_RETRY: Duration = Duration::from_secs(1);
/// How often a round begins anew because Redis has lost what was written in it.
const MAX_LOSSES: usize = 3;
/// How long the old server's readers see somebody type.
const TYPING_SECONDS: u32 = 30;
/// Typists that wait for Redis, at most: they are forgotten in half a minute anyway.
const MAX_TYPING: usize = 10_000;
/// A session that Redis refuses is logged at most so often.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// What is not written yet of one session.
#[derive(Default)]
struct Pending {
    change: Change,
    /// All users are to be written, and whoever is not here is not.
    is_all: bool,
    /// Other nodes are to be told, whatever Redis says has changed: an earlier time failed, or was not seen.
    is_news: bool,
    /// Events they have not been told.
    events: Vec<StatusEvent>,
}

impl Pending {
    fn merge(&mut self, other: Self) {
        self.change.merge(other.change);
        self.is_all |= other.is_all;
        self.is_news |= other.is_news;
        self.events.extend(other.events);
    }
}

pub struct Pipeline {
    pub(super) store: Arc<Store>,
    pub(super) parts: Arc<Parts>,
    pub(super) times: Times,
    pub(super) standing: Standing,
    pub(super) audience: Audience,
    pub(super) news: News,
    pending: HashMap<SessionId, Pending>,
    typing: HashMap<(SessionId, UserId), bool>,
    /// What was written in a hold.
    held_back: HashMap<SessionId, Pending>,
    /// All sessions are pending; our list may have others.
    pub(super) is_resyncing: bool,
    /// Sessions that are on our list, and not here, are to be looked for.
    has_stale: bool,
    pub(super) next_heartbeat: Instant,
    /// When dead nodes, and what the log has refused, are looked after again.
    next_upkeep: Instant,
    /// Dead nodes are taken back in this round.
    pub(super) wants_dead: bool,
    /// Numbers the pipelines.
    number: u64,
    retry: Duration,
    refusal_log: LogLimit,
}

impl Pipeline {
    pub fn new(store: Arc<Store>, parts: Arc<Parts>, times: Times) -> Self {
        Self {
            audience: Audience::new(Arc::clone(&parts.registry), Arc::clone(&parts.metrics)),
            news: News::new(Arc::clone(&parts.bus), Arc::clone(&parts.inbox)),
            standing: Standing::new(store.next_name(&parts.node)),
            store,
            parts,
            times,
            pending: HashMap::new(),
            typing: HashMap::new(),
            held_back: HashMap::new(),
            is_resyncing: true,
            has_stale: true,
            next_heartbeat: Instant::now(),
            next_upkeep: Instant::now(),
            wants_dead: false,
            number: 0,
            retry: MIN_RETRY,
            refusal_log: LogLimit::new(REFUSAL_LOG_INTERVAL),
        }
    }

    /// Runs until the inbox is stopped.
    pub async fn run(mut self) {
        // After a panic there are sessions already.
        self.begin_resync();
        loop {
            let due = self.due();
            tokio::select! {
                () = self.parts.inbox.marked() => sleep(self.times.window).await,
                () = sleep_until(due) => {}
            }
            let is_stopping = self.parts.inbox.is_stopping();
            if is_stopping {
                // A Redis that is away has one more chance.
                self.next_heartbeat = Instant::now();
            }
            self.take_marks();
            match self.round().await {
                Ok(()) if self.store.is_connected() => {
                    self.retry = MIN_RETRY;
                    if !self.standing.is_holding() {
                        self.store.succeed();
                    }
                }
                Ok(()) => {}
                Err(error) => {
                    self.store.fail(&error);
                    self.standing.is_uncertain |= !store::is_answer(&error);
                    self.next_heartbeat = Instant::now() + self.retry;
                    self.retry = MAX_RETRY.min(2 * self.retry);
                    self.forget_what_a_resync_finds();
                }
            }
            let is_up = self.store.is_connected();
            self.parts.metrics.redis_up.set(is_up.into());
            if is_stopping {
                if let Err(error) = self.leave().await {
                    self.store.fail(&error);
                }
                return;
            }
        }
    }

    fn due(&self) -> Instant {
        if !self.store.is_connected() {
            return self.next_heartbeat;
        }
        let next = self.next_heartbeat.min(self.next_upkeep);
        self.audience.due().map_or(next, |due| due.min(next))
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
        if now >= self.next_upkeep && self.store.is_connected() && self.has_log() {
            self.take_failed_news();
        }
        if self.standing.end_hold(self.times) {
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
        match self.news.take_failed(&self.standing.name) {
            Some(failed) => {
                for (session_id, events) in failed {
                    let pending = self.pending.entry(session_id).or_default();
                    pending.is_news = true;
                    pending.events.extend(events);
                }
            }
            None => {
                self.begin_resync();
                for pending in self.pending.values_mut() {
                    pending.is_news = true;
                }
            }
        }
    }

    /// While Redis is away, marks would pile up: of sessions that have ended, our list of sessions, there, has them,
    /// and of all others the rosters know more.
    fn forget_what_a_resync_finds(&mut self) {
        self.typing.clear();
        let registry = &self.parts.registry;
        for waiting in [&mut self.pending, &mut self.held_back] {
            let mut kept = 0;
            waiting.retain(|session_id, pending| {
                let Some(session) = registry.get(session_id.as_str()) else {
                    // What others were not told is nowhere else.
                    kept += usize::from(pending.is_news);
                    return pending.is_news && kept <= MAX_WAITING;
                };
                pending.is_news |= !pending.change.users.is_empty();
                let is_here = |id: &UserId| session.with_roster(|roster| roster.held(id).is_some());
                pending.change.users.retain(|user_id, _| is_here(user_id));
                pending.change.joiners.retain(|outbox| outbox.is_open());
                true
            });
        }
        self.audience.forget_the_gone();
    }

    /// Everything is to be written again. What Redis then says is new, or not, is no measure of what other nodes
    /// know: they are told of every change that is under way.
    pub(super) fn begin_resync(&mut self) {
        (self.is_resyncing, self.has_stale) = (true, true);
        for pending in self.pending.values_mut() {
            pending.is_news |= !pending.change.users.is_empty();
        }
        for session in self.parts.registry.all() {
            self.pending.entry(session.id.clone()).or_default().is_all = true;
        }
    }

    async fn round(&mut self) -> Result<(), RedisError> {
        let is_nudged = self.parts.inbox.take_nudge();
        if !self.store.is_connected() {
            if Instant::now() < self.next_heartbeat {
                return Ok(());
            }
            self.connect().await?;
            self.next_upkeep = Instant::now();
        }
        let is_upkeep = is_nudged || Instant::now() >= self.next_upkeep;
        if is_upkeep {
            self.next_upkeep = Instant::now() + self.times.heartbeat;
        }
        self.wants_dead = is_upkeep && !self.news.is_full() && !self.standing.is_holding();
        if self.pending.is_empty() {
            self.write(Vec::new()).await?;
        }
        let mut losses = 0;
        while !self.pending.is_empty() {
            let batch = self.next_batch();
            losses += usize::from(!self.write(batch).await?);
            if losses == MAX_LOSSES {
                return Err(store::keeps_losing());
            }
        }
        if self.is_resyncing {
            self.release_former().await?;
            // Redis may have lost us meanwhile: then there is more to write.
            if !self.pending.is_empty() {
                return Ok(());
            }
            self.is_resyncing = false;
            self.standing.wrote_all();
        }
        // In a hold Redis knows too little for anything that is published.
        if self.standing.is_holding() {
            return Ok(());
        }
        if self.has_stale {
            self.has_stale = false;
            self.take_back_stale().await?;
        }
        if is_upkeep && self.pending.is_empty() {
            let former = self.standing.former.clone();
            let dead = std::mem::take(&mut self.standing.dead);
            for node in former.into_iter().chain(dead.into_iter().map(Arc::from)) {
                self.reap(node).await?;
            }
        }
        Ok(())
    }

    /// Some pending sessions, bounded by what they bring along.
    fn next_batch(&self) -> Vec<SessionId> {
        let mut users = 0;
        let mut batch = Vec::new();
        for (session_id, pending) in self.pending.iter().take(MAX_PIPELINE) {
            users += match pending.is_all {
                true => self
                    .parts
                    .registry
                    .get(session_id.as_str())
                    .map_or(0, |session| session.with_roster(|roster| roster.len())),
                false => pending.change.users.len(),
            };
            batch.push(session_id.clone());
            if users >= MAX_PIPELINE_USERS {
                break;
            }
        }
        batch
    }

    /// Renews the lease, takes what is settled off the lists, and writes a batch. False when Redis has lost us.
    pub(super) async fn write(&mut self, batch: Vec<SessionId>) -> Result<bool, RedisError> {
        let now = Instant::now();
        self.number += 1;
        let mut pipeline = self.begin();
        let registry = &self.parts.registry;
        let is_here = |id: &SessionId| registry.contains(id.as_str());
        let is_pending = |id: &SessionId| self.pending.contains_key(id);
        let settled = self.news.settled(&self.standing.name, is_here, is_pending);
        for Settled {
            place,
            left,
            removes,
            number,
        } in &settled
        {
            let (node, session_id) = (&place.0, place.1.as_str());
            if !left.is_empty() {
                let left: Vec<&str> = left.iter().map(UserId::as_str).collect();
                let key = keys::untold(session_id, node);
                pipeline.cmd("HDEL").arg(key).arg(left);
            }
            if *removes {
                self.store
                    .add_settle(&mut pipeline, node, &[(session_id, *number)]);
            }
        }
        // Asked once: what is counted in this pipeline is on our list by this pipeline.
        let sessions: Vec<_> = batch.iter().map(|id| registry.get(id.as_str())).collect();
        let here = sessions.iter().flatten();
        let here: Vec<&str> = here.map(|session| session.id.as_str()).collect();
        if !here.is_empty() {
            // After the removals: who has come back meanwhile stays on the list.
            let command = pipeline.cmd("ZADD").arg(keys::sessions(&self.standing.name));
            for session_id in here {
                command.arg(self.number).arg(session_id);
            }
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
            let pending = self.pending.get(session_id);
            let held = pending.map_or_else(Vec::new, |pending| held(session.as_deref(), pending));
            let listing = match pending.is_some_and(|pending| pending.is_all) {
                true => Listing::All(&held),
                false => Listing::Some(&held),
            };
            let wants_snapshot = !self.standing.is_holding() && self.audience.wants_snapshot(session_id, now);
            let (name, id) = (&self.standing.name, session_id.as_str());
            self.store
                .add_apply(&mut pipeline, name, id, listing, wants_snapshot);
            wants.push(wants_snapshot);
        }
        let patience = if batch.len() > 1 { LONG } else { SHORT };
        let Some(answers) = self.send(pipeline, patience).await? else {
            return Ok(false);
        };
        self.typing.clear();
        self.news.forget(&settled);
        if settled.len() == MAX_SETTLED {
            // There are more.
            self.next_heartbeat = now;
        }
        let was_here = sessions.iter().map(Option::is_some);
        // The heartbeat's answer is not among them.
        let answers = wants
            .into_iter()
            .zip(was_here)
            .zip(answers.into_iter().skip(before - 1));
        for (session_id, ((wanted, was_here), answer)) in batch.into_iter().zip(answers) {
            let pending = self.pending.remove(&session_id).unwrap_or_default();
            match answer.and_then(|answer| store::read_applied(answer, wanted)) {
                Ok(applied) => self.applied(session_id, pending, applied, was_here).await,
                Err(error) => self.refused(&session_id, &error),
            }
        }
        Ok(true)
    }

    /// Somebody else's value under our key, say: this session has no presence, the others do.
    pub(super) fn refused(&mut self, session_id: &SessionId, error: &RedisError) {
        self.parts.metrics.redis_refusals.inc();
        if self.refusal_log.allows() {
            tracing::warn!(%session_id, code = error.code(), "Redis refuses a session's presence");
        }
        if !self.parts.registry.contains(session_id.as_str()) {
            self.audience.forget(session_id);
        }
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
        let mut events = news::events(&applied);
        // Where Redis was emptied, all who are here seem to come; nobody else believes they had gone.
        if pending.is_all && self.standing.is_rebuilding {
            events.clear();
        }
        pending.is_news |= !events.is_empty();
        pending.events.extend(events);
        if self.standing.is_holding() {
            (pending.is_all, pending.change.users) = Default::default();
            let held_back = self.held_back.entry(session_id);
            held_back.or_default().merge(pending);
            return;
        }
        if let Some(deferred) = self.audience.take_deferred(&session_id) {
            pending.is_news = true;
            pending.events.splice(0..0, deferred);
        }
        let session = self.parts.registry.get(session_id.as_str());
        let place = (Arc::clone(&self.standing.name), session_id.clone());
        match (&applied.snapshot, pending.is_news) {
            (Some(status), true) => {
                let receipt = self.news.publish(&session_id, status, pending.events);
                if !was_here {
                    self.news.settle_with(place, Unsettled::own(receipt));
                }
            }
            (None, true) if session.is_some() => self.audience.defer(&session_id, pending.events),
            // It ended meanwhile: the mark of that brings the snapshot.
            (None, true) => {
                let again = self.pending.entry(session_id.clone()).or_default();
                (again.is_news, again.events) = (true, pending.events);
            }
            (_, false) if !was_here => self.news.settle_without(place, None),
            (_, false) => {}
        }
        match session {
            Some(session) => {
                let joiners = pending.change.joiners;
                self.audience.show(&session, joiners, applied).await;
            }
            None => self.audience.forget(&session_id),
        }
    }
}

/// What this node holds of the users that are to be written, from the roster of this moment.
fn held(session: Option<&Session>, pending: &Pending) -> Vec<Held> {
    let changed = &pending.change.users;
    let of_roster = |user_id: &UserId| {
        let held = session.and_then(|session| session.with_roster(|roster| roster.held(user_id)));
        let user_id = user_id.clone();
        match held {
            Some((user_type, joined_at, connections)) => Held {
                anew: changed.get(&user_id).copied().unwrap_or_default(),
                user_id,
                user_type,
                joined_at: format_timestamp(joined_at),
                connections,
            },
            None => Held::none(user_id),
        }
    };
    match (pending.is_all, session) {
        (true, Some(session)) => {
            let all = session.with_roster(|roster| roster.ids());
            all.iter().map(of_roster).collect()
        }
        // None of them is here: the listing says so.
        (true, None) => Vec::new(),
        (false, _) => changed.keys().map(of_roster).collect(),
    }
}
