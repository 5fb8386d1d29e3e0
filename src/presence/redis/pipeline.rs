//! The pipeline task: takes the marks of a window, writes them in one pipeline, and hands on what changed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::RedisError;
use tokio::time::{Instant, sleep, sleep_until};

use super::Times;
use super::audience::Audience;
use super::checks::Checks;
use super::news::{MAX_WAITING, News};
use super::pending::Pending;
use super::standing::Standing;
use super::store::{self, Store};
use crate::clock::Moment;
use crate::logging::LogLimit;
use crate::presence::Parts;
use crate::presence::grace::{self, Grace, Leaving};
use crate::protocol::ids::{SessionId, UserId};

/// The most sessions, and about the most users, of one pipeline: a round trip stays short, and so does Redis's pause
/// for others.
pub const MAX_PIPELINE: usize = 500;
const MAX_PIPELINE_USERS: usize = 2_000;
/// How long to leave a Redis alone that has failed; doubled up to the second while it keeps failing.
const MIN_RETRY: Duration = Duration::from_millis(250);
pub const MAX_RETRY: Duration = Duration::from_secs(1);
/// How often a round begins anew because Redis has lost what was written in it.
const MAX_LOSSES: usize = 3;
/// Typists that wait for Redis, at most: they are forgotten in half a minute anyway.
const MAX_TYPING: usize = 10_000;
/// A session that Redis refuses is logged at most so often.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);

pub struct Pipeline {
    pub(super) store: Arc<Store>,
    pub(super) parts: Arc<Parts>,
    pub(super) times: Times,
    pub(super) standing: Standing,
    pub(super) audience: Audience,
    pub(super) news: News,
    /// Whose last connection here has ended, and who may be back.
    pub(super) grace: Grace,
    checks: Checks,
    pub(super) pending: HashMap<SessionId, Pending>,
    /// When marks were last taken: who came before is pending, or written.
    pub(super) took_marks: Moment,
    pub(super) typing: HashMap<(SessionId, UserId), bool>,
    /// What was written in a hold.
    pub(super) held_back: HashMap<SessionId, Pending>,
    /// All sessions are pending; our list may have others.
    pub(super) is_resyncing: bool,
    /// Sessions that are on our list, and not here, are to be looked for, from this place in the list.
    pub(super) stale: Option<u64>,
    /// How far the lists of the nodes that are taken back have been looked at.
    pub(super) reaping: HashMap<Arc<str>, u64>,
    pub(super) next_heartbeat: Instant,
    /// When dead nodes, and what the log has refused, are looked after again.
    pub(super) next_upkeep: Instant,
    /// Dead nodes are taken back in this round.
    pub(super) wants_dead: bool,
    /// Numbers the pipelines.
    pub(super) number: u64,
    retry: Duration,
    pub(super) refusal_log: LogLimit,
    pub(super) repair_log: LogLimit,
}

impl Pipeline {
    pub fn new(store: Arc<Store>, parts: Arc<Parts>, times: Times) -> Self {
        let mut grace = Grace::new(times.grace);
        // After a panic there are some already.
        grace::find_lingerers(&parts.registry, &mut grace);
        Self {
            grace,
            checks: Checks::new(Instant::now()),
            took_marks: Moment::now(),
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
            stale: Some(0),
            reaping: HashMap::new(),
            next_heartbeat: Instant::now(),
            next_upkeep: Instant::now(),
            wants_dead: false,
            number: 0,
            retry: MIN_RETRY,
            refusal_log: LogLimit::new(REFUSAL_LOG_INTERVAL),
            repair_log: LogLimit::new(REFUSAL_LOG_INTERVAL),
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
        let grace = self.grace.due().map(|due| Instant::from_std(due.instant()));
        let due = self.audience.due().into_iter().chain(grace);
        due.fold(next, Instant::min)
    }

    fn take_marks(&mut self) {
        let now = Instant::now();
        self.took_marks = Moment::now();
        let changes = self.parts.inbox.take();
        grace::note_lingerers(&self.parts.registry, &mut self.grace, &changes.sessions);
        for (session_id, change) in changes.sessions {
            let pending = self.pend(session_id);
            pending.is_checked |= change.is_doubted;
            pending.change.merge(change);
        }
        self.take_gone();
        self.typing.extend(changes.typing);
        if self.typing.len() > MAX_TYPING {
            self.typing.clear();
        }
        for session_id in self.audience.take_due(now) {
            self.pend(session_id);
        }
        if now >= self.next_upkeep && self.store.is_connected() && self.has_log() {
            self.take_failed_news();
        }
        if self.standing.end_hold(self.times) {
            for session in self.parts.registry.all() {
                self.pend(session.id.clone());
            }
            for (session_id, pending) in std::mem::take(&mut self.held_back) {
                self.pend(session_id).merge(pending);
            }
        }
    }

    /// The session is to be written or looked at, and clients here to be shown it.
    pub(super) fn pend(&mut self, session_id: SessionId) -> &mut Pending {
        let pending = self.pending.entry(session_id).or_default();
        pending.is_shown = true;
        pending
    }

    /// Whose grace is over is gone. While Redis is away, or does not know yet what all nodes hold, nobody's is: who
    /// has come back elsewhere is not to be seen.
    fn take_gone(&mut self) {
        let now = Moment::now();
        if self.store.is_connected() && !self.standing.is_holding() && !self.is_resyncing {
            self.grace.resume(now);
        } else {
            self.grace.stop();
        }
        while let Some((leaving, end)) = self.grace.take_over(now) {
            self.end_grace(leaving, end);
        }
    }

    pub(super) fn end_grace(&mut self, leaving: Leaving, end: Moment) {
        let Leaving {
            since,
            session_id,
            user_id,
        } = leaving;
        if self.parts.registry.end_grace(&session_id, &user_id, since, end) {
            self.pend(session_id).change.gone(user_id, end);
        }
    }

    /// What the log has refused is tried again, once per heartbeat.
    fn take_failed_news(&mut self) {
        match self.news.take_failed(&self.standing.name) {
            Some(failed) => {
                for (session_id, events) in failed {
                    let pending = self.pend(session_id);
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
    /// and of all others the sessions know more.
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
                let is_here = |id: &UserId| session.with_users(|users| users.held(id).is_some());
                pending.change.users.retain(|user_id, _| is_here(user_id));
                pending.change.joiners.retain(|writer| writer.is_open());
                true
            });
        }
        self.audience.forget_the_gone();
    }

    /// Everything is to be written again. What Redis then says is new, or not, is no measure of what other nodes
    /// know: they are told of every change that is under way.
    pub(super) fn begin_resync(&mut self) {
        (self.is_resyncing, self.stale) = (true, Some(0));
        for pending in self.pending.values_mut() {
            pending.is_news |= !pending.change.users.is_empty();
        }
        for session in self.parts.registry.all() {
            self.pend(session.id.clone()).is_all = true;
        }
    }

    pub(super) async fn round(&mut self) -> Result<(), RedisError> {
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
        if is_upkeep && !self.standing.is_holding() && !self.is_resyncing {
            self.begin_checks();
        }
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
        if let Some(from) = self.stale.take() {
            self.stale = self.take_back_stale(from).await?;
        }
        if is_upkeep && self.pending.is_empty() {
            let former = self.standing.former.clone();
            let dead = std::mem::take(&mut self.standing.dead);
            let nodes: Vec<Arc<str>> = former
                .into_iter()
                .chain(dead.into_iter().map(Arc::from))
                .collect();
            self.reaping.retain(|node, _| nodes.contains(node));
            for node in nodes {
                self.reap(node).await?;
            }
        }
        Ok(())
    }

    /// Looks at some of the sessions that are held here: others may have deleted or changed their keys.
    fn begin_checks(&mut self) {
        let registry = &self.parts.registry;
        let all = || registry.all().iter().map(|session| session.id.clone()).collect();
        let users_of = |id: &SessionId| {
            let session = registry.get(id.as_str());
            session.map_or(0, |session| session.with_users(|users| users.len()))
        };
        for session_id in self.checks.take(Instant::now(), all, users_of) {
            if registry.contains(session_id.as_str()) {
                self.pending.entry(session_id).or_default().is_checked = true;
            }
        }
    }

    /// Some pending sessions, bounded by what they bring along.
    fn next_batch(&self) -> Vec<SessionId> {
        let mut users = 0;
        let mut batch = Vec::new();
        for (session_id, pending) in self.pending.iter().take(MAX_PIPELINE) {
            users += match pending.lists_all() {
                true => self
                    .parts
                    .registry
                    .get(session_id.as_str())
                    .map_or(0, |session| session.with_users(|users| users.len())),
                false => pending.change.users.len(),
            };
            batch.push(session_id.clone());
            if users >= MAX_PIPELINE_USERS {
                break;
            }
        }
        batch
    }
}
