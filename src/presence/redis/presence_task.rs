//! The presence task: collects the changes of a window, writes them in one pipeline, and passes on what has changed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::RedisError;
use tokio::time::{Instant, sleep, sleep_until};

use super::checks::Checks;
use super::client_notifier::ClientNotifier;
use super::lobby_feed::LobbyFeed;
use super::node_lease::NodeLease;
use super::pending::Pending;
use super::reads::Reads;
use super::session_index::SessionIndex;
use super::status_publisher::{MAX_WAITING, StatusPublisher};
use super::store::{self, SUSPICION, Store};
use super::timings::{MAX_RETRY, MIN_RETRY, Timings};
use crate::clock::Moment;
use crate::logging::LogLimit;
use crate::presence::grace::{self, GraceClock, UserInGrace};
use crate::presence::parts::Parts;
use crate::protocol::ids::{SessionId, UserId};

/// The most sessions, and about the most users, of one pipeline: the round trip stays short, and so does the time for
/// which Redis serves nobody else.
pub const MAX_PIPELINE: usize = 500;
const MAX_PIPELINE_USERS: usize = 2_000;
/// How often a round starts again because Redis has lost what was written in it.
const MAX_LOSSES: usize = 3;
/// At most so many typists wait for Redis: they expire in half a minute anyway.
const MAX_TYPING: usize = 10_000;
/// The least time between two log lines about sessions that Redis refuses.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);

pub struct PresenceTask {
    pub(super) store: Arc<Store>,
    pub(super) parts: Arc<Parts>,
    pub(super) timings: Timings,
    pub(super) lease: NodeLease,
    pub(super) notifier: ClientNotifier,
    pub(super) publisher: StatusPublisher,
    pub(super) index: SessionIndex,
    pub(super) feed: LobbyFeed,
    /// Users whose last connection here has closed, and who may reconnect.
    pub(super) grace: GraceClock,
    checks: Checks,
    pub(super) pending: HashMap<SessionId, Pending>,
    /// When changes were last taken: users who joined before are pending, or written.
    pub(super) took_changes: Moment,
    pub(super) typing: HashMap<(SessionId, UserId), bool>,
    pub(super) reads: Reads,
    /// What was written during a recovery, to be published and announced after it.
    pub(super) deferred: HashMap<SessionId, Pending>,
    /// Where to continue looking for sessions that are on our list in Redis but not here.
    pub(super) stale_cursor: Option<u64>,
    /// Where to continue in the lists of the nodes that are reaped.
    pub(super) reaping: HashMap<Arc<str>, u64>,
    pub(super) next_heartbeat: Instant,
    /// When to look after dead nodes and what the log has rejected again.
    pub(super) next_upkeep: Instant,
    /// Dead nodes are claimed and reaped in this round.
    pub(super) claims_nodes: bool,
    /// Numbers the pipelines.
    pub(super) number: u64,
    retry: Duration,
    pub(super) refusal_log: LogLimit,
    pub(super) repair_log: LogLimit,
}

impl PresenceTask {
    pub fn new(store: Arc<Store>, parts: Arc<Parts>, timings: Timings) -> Self {
        let mut grace = GraceClock::new(timings.grace);
        // There are some already if the task was restarted after a panic.
        grace::add_all_users_in_grace(&parts.registry, &mut grace);
        // The same for what the lobby was told.
        parts.lobby.suspend();
        Self {
            grace,
            checks: Checks::new(Instant::now()),
            took_changes: Moment::now(),
            notifier: ClientNotifier::new(Arc::clone(&parts.registry), Arc::clone(&parts.metrics)),
            publisher: StatusPublisher::new(Arc::clone(&parts.bus), Arc::clone(&parts.dirty)),
            index: SessionIndex::default(),
            feed: LobbyFeed::default(),
            lease: NodeLease::new(store.next_name(&parts.node), timings),
            reads: Reads::new(&parts),
            store,
            parts,
            timings,
            pending: HashMap::new(),
            typing: HashMap::new(),
            deferred: HashMap::new(),
            stale_cursor: Some(0),
            reaping: HashMap::new(),
            next_heartbeat: Instant::now(),
            next_upkeep: Instant::now(),
            claims_nodes: false,
            number: 0,
            retry: MIN_RETRY,
            refusal_log: LogLimit::new(REFUSAL_LOG_INTERVAL),
            repair_log: LogLimit::new(REFUSAL_LOG_INTERVAL),
        }
    }

    /// Runs until it is told to stop.
    pub async fn run(mut self) {
        // There are sessions already if the task was restarted after a panic.
        self.start_resync();
        loop {
            let due = self.due();
            tokio::select! {
                () = self.parts.dirty.changed() => sleep(self.timings.window).await,
                () = sleep_until(due) => {}
            }
            let is_stopping = self.parts.dirty.is_stopping();
            if is_stopping {
                // If Redis is unavailable it has one more chance.
                self.next_heartbeat = Instant::now();
            }
            self.take_changes();
            match self.round().await {
                Ok(()) if self.store.is_connected() => {
                    self.retry = MIN_RETRY;
                    if !self.lease.state().is_recovering() {
                        self.store.succeed();
                    }
                }
                Ok(()) => {}
                Err(error) => {
                    // Without a connection nothing was sent.
                    if self.store.is_connected() && !store::is_answer(&error) {
                        self.lease.unanswered();
                    }
                    self.store.fail(&error);
                    self.next_heartbeat = Instant::now() + self.retry;
                    self.retry = MAX_RETRY.min(2 * self.retry);
                    self.trim_pending();
                }
            }
            let is_up = self.store.is_connected();
            self.parts.metrics.redis_up.set(is_up.into());
            if is_stopping {
                if let Err(error) = self.shut_down().await {
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
        let due = self
            .notifier
            .due()
            .into_iter()
            .chain(grace)
            .chain(self.index.due());
        due.fold(next, Instant::min)
    }

    fn take_changes(&mut self) {
        let now = Instant::now();
        self.took_changes = Moment::now();
        let changes = self.parts.dirty.take();
        grace::add_users_in_grace(&self.parts.registry, &mut self.grace, &changes.sessions);
        self.reads.add(changes.receipts);
        for (session_id, change) in changes.sessions {
            self.reads.joined(&session_id, &change.joiners);
            let pending = self.pend(session_id);
            pending.is_check |= change.needs_check;
            pending.change.merge(change);
        }
        self.expire_graces();
        self.typing.extend(changes.typing);
        if self.typing.len() > MAX_TYPING {
            self.typing.clear();
        }
        for session_id in self.notifier.take_due(now) {
            self.pend(session_id);
        }
        for session_id in self.store.doubtful.take() {
            // Its keys may be damaged, and be written again.
            self.index.look_later(&session_id, now + SUSPICION);
        }
        for session_id in self.index.take_due(now) {
            self.pending.entry(session_id).or_default().must_index = true;
        }
        if now >= self.next_upkeep && self.store.is_connected() && self.has_log() {
            self.retry_failed();
        }
        if self.lease.end_recovery() {
            for session in self.parts.registry.all() {
                self.pend(session.id.clone());
            }
            for (session_id, pending) in std::mem::take(&mut self.deferred) {
                self.pend(session_id).merge(pending);
            }
        }
    }

    /// The session is to be written or read, and clients here notified.
    pub(super) fn pend(&mut self, session_id: SessionId) -> &mut Pending {
        let pending = self.pending.entry(session_id).or_default();
        pending.must_notify = true;
        pending
    }

    /// Users whose grace has expired leave. The clock is paused while Redis is unavailable, or does not know yet what
    /// all nodes hold: nobody could see who has reconnected to another node.
    fn expire_graces(&mut self) {
        let now = Moment::now();
        if self.store.is_connected() && self.lease.state().is_synced() {
            self.grace.resume(now);
        } else {
            self.grace.pause();
        }
        while let Some((user, end)) = self.grace.take_expired(now) {
            self.end_grace(user, end);
        }
    }

    pub(super) fn end_grace(&mut self, user: UserInGrace, end: Moment) {
        let UserInGrace {
            since,
            session_id,
            user_id,
        } = user;
        if self.parts.registry.end_grace(&session_id, &user_id, since, end) {
            self.pend(session_id).change.grace_expired(user_id, end);
        }
    }

    /// Publishes again what the log has rejected, once per heartbeat.
    fn retry_failed(&mut self) {
        match self.publisher.take_failed(self.lease.name()) {
            Some(failed) => {
                for (session_id, events) in failed {
                    let pending = self.pend(session_id);
                    pending.must_publish = true;
                    pending.events.extend(events);
                }
            }
            None => {
                self.start_resync();
                for pending in self.pending.values_mut() {
                    pending.must_publish = true;
                }
            }
        }
    }

    /// While Redis is unavailable changes must not pile up: sessions that have ended are on our list in Redis, and for
    /// all others the sessions are enough.
    fn trim_pending(&mut self) {
        self.typing.clear();
        self.reads.trim();
        let registry = &self.parts.registry;
        for waiting in [&mut self.pending, &mut self.deferred] {
            let mut kept = 0;
            waiting.retain(|session_id, pending| {
                let Some(session) = registry.get(session_id.as_str()) else {
                    // What was not published is known nowhere else.
                    kept += usize::from(pending.must_publish);
                    return pending.must_publish && kept <= MAX_WAITING;
                };
                pending.must_publish |= !pending.change.users.is_empty();
                let is_here = |id: &UserId| session.with_users(|users| users.state_of(id).is_some());
                pending.change.users.retain(|user_id, _| is_here(user_id));
                pending.change.joiners.retain(|writer| writer.is_open());
                true
            });
        }
        self.notifier.prune();
    }

    /// Everything is to be written again. Whether that then is a change for Redis does not tell what other nodes know:
    /// every change under way is published.
    pub(super) fn start_resync(&mut self) {
        self.lease.resync();
        self.stale_cursor = Some(0);
        for pending in self.pending.values_mut() {
            pending.must_publish |= !pending.change.users.is_empty();
        }
        for session in self.parts.registry.all() {
            self.pend(session.id.clone()).writes_all = true;
        }
    }

    pub(super) async fn round(&mut self) -> Result<(), RedisError> {
        let is_woken = self.parts.dirty.take_wake();
        if !self.store.is_connected() {
            if Instant::now() < self.next_heartbeat {
                return Ok(());
            }
            self.connect().await?;
            self.next_upkeep = Instant::now();
        }
        let is_upkeep = is_woken || Instant::now() >= self.next_upkeep;
        if is_upkeep {
            self.next_upkeep = Instant::now() + self.timings.heartbeat;
        }
        self.claims_nodes = is_upkeep && !self.publisher.is_full() && !self.lease.state().is_recovering();
        if is_upkeep && self.lease.state().is_synced() {
            self.schedule_checks();
        }
        if self.pending.is_empty() {
            self.write_sessions(Vec::new()).await?;
        }
        let mut losses = 0;
        while !self.pending.is_empty() {
            let batch = self.next_batch();
            losses += usize::from(!self.write_sessions(batch).await?);
            if losses == MAX_LOSSES {
                return Err(store::keeps_losing());
            }
        }
        self.flush_index().await?;
        if self.lease.state().must_write_all() {
            self.release_retired_names().await?;
            // There is more to write if Redis has lost us meanwhile.
            if !self.pending.is_empty() {
                return Ok(());
            }
            self.lease.wrote_all();
        }
        // During a recovery Redis knows too little to publish anything.
        if self.lease.state().is_recovering() {
            return Ok(());
        }
        if let Some(from) = self.stale_cursor.take() {
            self.stale_cursor = self.reclaim_stale(from).await?;
        }
        if is_upkeep && self.pending.is_empty() {
            let retired = self.lease.retired_names().to_vec();
            let dead = self.lease.take_dead();
            let nodes: Vec<Arc<str>> = retired
                .into_iter()
                .chain(dead.into_iter().map(Arc::from))
                .collect();
            self.reaping.retain(|node, _| nodes.contains(node));
            for node in nodes {
                self.reap(node).await?;
                // Redis has lost data meanwhile: nobody is announced before all nodes have written again.
                if self.lease.state().is_recovering() {
                    break;
                }
            }
        }
        self.flush_index().await
    }

    /// Schedules checks of some sessions: others may have deleted or changed their keys.
    fn schedule_checks(&mut self) {
        let registry = &self.parts.registry;
        let all = || registry.all().iter().map(|session| session.id.clone()).collect();
        let users_of = |id: &SessionId| {
            let session = registry.get(id.as_str());
            session.map_or(0, |session| session.with_users(|users| users.len()))
        };
        for session_id in self.checks.take(Instant::now(), all, users_of) {
            if registry.contains(session_id.as_str()) {
                self.pending.entry(session_id).or_default().is_check = true;
            }
        }
    }

    /// Some pending sessions, limited by the number of their users.
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
