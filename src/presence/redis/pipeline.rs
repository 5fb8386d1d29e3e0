//! The pipeline task: takes the marks of a window, writes them in one pipeline, shows and publishes what changed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{RedisError, Value};
use tokio::time::{Instant, sleep, sleep_until};

use super::shown::{Next, Shown};
use super::store::{self, Applied, Held, Store, sessions_key, typing_key};
use crate::presence::Parts;
use crate::presence::inbox::Change;
use crate::protocol::ids::{SessionId, UserId};
use crate::protocol::record::{self, Form, Outgoing, Topic};
use crate::protocol::status::{ConnectionStatus, EventType, StatusEvent};
use crate::protocol::{format_timestamp, server, timestamp};
use crate::session::Session;
use crate::session::fanout::deliver_in_slices;

/// The most sessions of one pipeline: a round trip stays short, and so does Redis's pause for others.
const MAX_PIPELINE: usize = 500;
/// How long to leave a Redis alone that has failed.
const RETRY: Duration = Duration::from_millis(250);
/// How long the old server's readers see somebody type.
const TYPING_SECONDS: u32 = 30;
/// How long a reaper waits for the log to have its news.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(5);
/// Typists that wait for Redis, at most: they are forgotten in half a minute anyway.
const MAX_TYPING: usize = 10_000;

pub struct Pipeline {
    store: Arc<Store>,
    parts: Arc<Parts>,
    window: Duration,
    heartbeat: Duration,
    ttl: Duration,
    /// Marks that are not written yet.
    pending: HashMap<SessionId, Change>,
    typing: HashMap<(SessionId, UserId), bool>,
    shown: HashMap<SessionId, Shown>,
    /// Sessions in [`Self::shown`] with something that has to wait for its time.
    waiting: HashSet<SessionId>,
    /// Sessions nobody is in any more, and whether the others know: then they leave our list.
    released: HashMap<SessionId, Arc<AtomicBool>>,
    next_heartbeat: Instant,
    /// Everything is to be written again: the connection is new, or Redis has lost it.
    needs_resync: bool,
    /// Redis has lost what nodes wrote: until all have written it again, what it says is not shown.
    hold_until: Option<Instant>,
    /// Changes that were written in that time.
    held_back: HashMap<SessionId, Change>,
    /// Nobody is declared dead before: after a loss every lease is new.
    reap_after: Instant,
    has_had_lease: bool,
}

impl Pipeline {
    pub fn new(
        store: Arc<Store>,
        parts: Arc<Parts>,
        window: Duration,
        heartbeat: Duration,
        ttl: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            store,
            parts,
            window,
            heartbeat,
            ttl,
            pending: HashMap::new(),
            typing: HashMap::new(),
            shown: HashMap::new(),
            waiting: HashSet::new(),
            released: HashMap::new(),
            next_heartbeat: now,
            needs_resync: true,
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
                () = self.parts.inbox.marked() => sleep(self.window).await,
                () = sleep_until(due) => {}
            }
            let is_stopping = self.parts.inbox.is_stopping();
            self.take_marks();
            match self.round().await {
                Ok(()) if self.store.is_connected() => self.store.succeed(),
                Ok(()) => {}
                Err(error) => {
                    self.store.fail(&error);
                    self.next_heartbeat = Instant::now() + RETRY;
                    self.forget_what_a_resync_finds();
                }
            }
            if is_stopping {
                if let Err(error) = self.store.bury(&self.store.node).await {
                    self.store.fail(&error);
                }
                return;
            }
        }
    }

    fn due(&self) -> Instant {
        let shown = self
            .waiting
            .iter()
            .filter_map(|id| self.shown.get(id))
            .map(Shown::next_frame);
        shown
            .chain(self.hold_until)
            .chain([self.next_heartbeat])
            .min()
            .unwrap_or(self.next_heartbeat)
    }

    fn take_marks(&mut self) {
        let changes = self.parts.inbox.take();
        for (session_id, change) in changes.sessions {
            self.pending.entry(session_id).or_default().merge(change);
        }
        self.typing.extend(changes.typing);
        if self.typing.len() > MAX_TYPING {
            self.typing.clear();
        }
        let now = Instant::now();
        let is_due = |shown: &Shown| now >= shown.next_frame();
        for session_id in self
            .waiting
            .extract_if(|id| self.shown.get(id).is_none_or(is_due))
        {
            self.pending.entry(session_id).or_default();
        }
        if self.hold_until.is_some_and(|until| now >= until) {
            self.hold_until = None;
            for session in self.parts.registry.all() {
                self.pending.entry(session.id.clone()).or_default();
            }
            for (session_id, change) in self.held_back.drain() {
                self.pending.entry(session_id).or_default().merge(change);
            }
        }
    }

    /// While Redis is away, marks of sessions that have ended would pile up; our list of sessions, there, has them.
    fn forget_what_a_resync_finds(&mut self) {
        let registry = &self.parts.registry;
        self.pending
            .retain(|session_id, _| registry.contains(session_id.as_str()));
        self.shown
            .retain(|session_id, _| registry.contains(session_id.as_str()));
        self.begin_resync();
    }

    /// Everything is to be written again. What the store then says is new, or not, is no measure of what other
    /// nodes know: they are told of every change that is under way.
    fn begin_resync(&mut self) {
        self.needs_resync = true;
        for change in self.pending.values_mut() {
            change.republish |= !change.users.is_empty();
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
                self.reap_after = Instant::now() + self.ttl;
            }
        }
        let mut ended = self.write(Vec::new()).await?;
        if self.needs_resync {
            self.resync().await?;
        }
        while !self.pending.is_empty() && !self.needs_resync {
            let batch: Vec<SessionId> = self.pending.keys().take(MAX_PIPELINE).cloned().collect();
            ended = self.write(batch).await?;
        }
        if Instant::now() >= self.reap_after {
            for node in ended {
                // Our own would have shown above.
                if node != self.store.node {
                    self.reap(&node).await?;
                }
            }
        }
        Ok(())
    }

    /// Renews the lease and writes a batch. Gives the nodes whose lease has ended.
    async fn write(&mut self, batch: Vec<SessionId>) -> Result<Vec<String>, RedisError> {
        let now = Instant::now();
        let mut pipeline = redis::pipe();
        self.store.add_heartbeat(&mut pipeline);
        let mut skipped = 1;
        let here: Vec<&SessionId> = batch
            .iter()
            .filter(|id| self.parts.registry.contains(id.as_str()))
            .collect();
        if !here.is_empty() {
            let ids: Vec<&str> = here.iter().map(|id| id.as_str()).collect();
            pipeline.cmd("SADD").arg(sessions_key(&self.store.node)).arg(ids);
            skipped += 1;
        }
        let told: Vec<SessionId> = self.take_told();
        if !told.is_empty() {
            let ids: Vec<&str> = told.iter().map(SessionId::as_str).collect();
            pipeline.cmd("SREM").arg(sessions_key(&self.store.node)).arg(ids);
            skipped += 1;
        }
        for ((session_id, user_id), &is_typing) in &self.typing {
            let key = typing_key(session_id, user_id);
            if is_typing {
                pipeline
                    .cmd("SET")
                    .arg(key)
                    .arg("true")
                    .arg("EX")
                    .arg(TYPING_SECONDS);
            } else {
                pipeline.cmd("DEL").arg(key);
            }
            skipped += 1;
        }
        let mut wants = Vec::with_capacity(batch.len());
        for session_id in &batch {
            let users = self.pending.get(session_id).map(|change| change.users.iter());
            let held = self.held(session_id, users.into_iter().flatten());
            let wants_snapshot = self
                .shown
                .get(session_id)
                .is_none_or(|shown| shown.wants_snapshot(now));
            self.store.add_apply(
                &mut pipeline,
                &self.store.node,
                session_id.as_str(),
                &held,
                false,
                wants_snapshot,
            );
            wants.push(wants_snapshot);
        }
        let mut answers = self.store.send(&mut pipeline).await?.into_iter();
        self.typing.clear();
        let (had_lease, ended) = store::read_heartbeat(answers.next().unwrap_or(Ok(Value::Nil))?)?;
        self.next_heartbeat = Instant::now() + self.heartbeat;
        if !had_lease && std::mem::replace(&mut self.has_had_lease, true) {
            tracing::warn!("Redis has lost this node's lease: presence is written again");
            self.begin_resync();
            self.hold_until = Some(Instant::now() + 2 * self.heartbeat + self.window);
            self.reap_after = Instant::now() + self.ttl;
            return Ok(Vec::new());
        }
        self.has_had_lease = true;
        for ((session_id, wanted), answer) in batch.into_iter().zip(wants).zip(answers.skip(skipped - 1)) {
            let change = self.pending.remove(&session_id).unwrap_or_default();
            match answer.and_then(|answer| store::read_applied(answer, wanted)) {
                Ok(applied) => self.applied(session_id, change, applied).await,
                // Somebody else's value under our key, say: this session has no presence, the others do.
                Err(error) => {
                    tracing::warn!(%session_id, code = error.code(), "Redis refuses a session's presence")
                }
            }
        }
        Ok(ended)
    }

    /// What this node holds of these users, from the roster of this moment.
    fn held<'a>(&self, session_id: &SessionId, users: impl Iterator<Item = &'a UserId>) -> Vec<Held> {
        let session = self.parts.registry.get(session_id.as_str());
        users
            .map(|user_id| {
                let held = session
                    .as_ref()
                    .and_then(|session| session.with_roster(|roster| roster.held(user_id)));
                let user_id = user_id.clone();
                match held {
                    Some((user_type, joined_at, connections)) => Held {
                        user_id,
                        user_type,
                        joined_at: format_timestamp(joined_at),
                        connections,
                    },
                    None => Held::none(user_id),
                }
            })
            .collect()
    }

    /// A change is written: tells clients here and nodes elsewhere.
    async fn applied(&mut self, session_id: SessionId, change: Change, applied: Applied) {
        let is_news = !applied.came.is_empty() || !applied.gone.is_empty() || change.republish;
        let session = self.parts.registry.get(session_id.as_str());
        if self.hold_until.is_some() {
            let held_back = Change {
                users: Default::default(),
                joiners: change.joiners,
                republish: is_news,
            };
            self.held_back
                .entry(session_id.clone())
                .or_default()
                .merge(held_back);
            if session.is_none() {
                self.released.insert(session_id, Arc::new(AtomicBool::new(true)));
            }
            return;
        }
        if is_news {
            let events = events(&applied);
            let told = self.publish(&session_id, applied.snapshot.as_ref(), &events);
            if session.is_none() {
                self.released.insert(session_id.clone(), told);
            }
        } else if session.is_none() {
            self.released
                .entry(session_id.clone())
                .or_insert_with(|| Arc::new(AtomicBool::new(true)));
        }
        match session {
            Some(session) => self.show(&session, change, applied).await,
            None => drop(self.shown.remove(&session_id)),
        }
    }

    async fn show(&mut self, session: &Arc<Session>, change: Change, applied: Applied) {
        let now = Instant::now();
        let shown = match (self.shown.get_mut(&session.id), &applied.snapshot) {
            (Some(shown), _) => shown,
            (None, Some(status)) => {
                let before = Shown::before(status, &applied.came, now);
                self.shown.entry(session.id.clone()).or_insert(before)
            }
            (None, None) => return,
        };
        shown.joiners.extend(change.joiners);
        if let Some(status) = applied.snapshot {
            shown.update(applied.version, status);
        } else {
            self.waiting.insert(session.id.clone());
            return;
        }
        loop {
            match shown.next(now) {
                Next::Everyone(events) => {
                    self.parts.metrics.status_frames.inc();
                    let frame =
                        server::connection_status_update(&session.id, &shown.status, &events, &timestamp());
                    deliver_in_slices(&session.members(), &frame).await;
                }
                Next::Joiners => {
                    self.parts.metrics.status_frames.inc();
                    let frame =
                        server::connection_status_update(&session.id, &shown.status, &[], &timestamp());
                    for outbox in shown.joiners.drain(..) {
                        outbox.insist(&frame);
                    }
                }
                Next::Later(_) => {
                    self.waiting.insert(session.id.clone());
                    return;
                }
                Next::Nothing => return,
            }
        }
    }

    /// Publishes a session's status; the flag rises when the log has it.
    fn publish(
        &self,
        session_id: &SessionId,
        snapshot: Option<&ConnectionStatus>,
        events: &[StatusEvent],
    ) -> Arc<AtomicBool> {
        let told = Arc::new(AtomicBool::new(false));
        let (rises, inbox, id) = (
            Arc::clone(&told),
            Arc::clone(&self.parts.inbox),
            session_id.clone(),
        );
        // Of a large session whose snapshot was not asked for, the last one shown stands in.
        let status = snapshot.or_else(|| self.shown.get(session_id).map(|shown| &shown.status));
        let Some(status) = status else { return told };
        let outgoing = Outgoing {
            topic: Topic::Status,
            key: session_id.clone(),
            value: record::status_value(session_id, status, events, &timestamp()),
            form: Form::Old,
            message_id: None,
        };
        self.parts.bus.publish(
            outgoing,
            Box::new(move |outcome| match outcome {
                Ok(()) => rises.store(true, Ordering::Release),
                Err(_) => inbox.republish(&id),
            }),
        );
        told
    }

    /// Sessions that nobody is in and whose end the others know.
    fn take_told(&mut self) -> Vec<SessionId> {
        let registry = &self.parts.registry;
        self.released
            .retain(|session_id, _| !registry.contains(session_id.as_str()));
        let told: Vec<SessionId> = self
            .released
            .iter()
            .filter(|(_, told)| told.load(Ordering::Acquire))
            .map(|(session_id, _)| session_id.clone())
            .collect();
        for session_id in &told {
            self.released.remove(session_id);
        }
        told
    }

    /// Writes all that this node holds, and takes back what it no longer does.
    async fn resync(&mut self) -> Result<(), RedisError> {
        let sessions = self.parts.registry.all();
        for batch in sessions.chunks(MAX_PIPELINE) {
            let mut pipeline = redis::pipe();
            let ids: Vec<&str> = batch.iter().map(|session| session.id.as_str()).collect();
            pipeline.cmd("SADD").arg(sessions_key(&self.store.node)).arg(ids);
            for session in batch {
                let users = session.with_roster(|roster| roster.ids());
                let held = self.held(&session.id, users.iter());
                self.store.add_apply(
                    &mut pipeline,
                    &self.store.node,
                    session.id.as_str(),
                    &held,
                    true,
                    false,
                );
            }
            self.store.send(&mut pipeline).await?;
        }
        for session_id in self.store.sessions_of(&self.store.node, true).await? {
            if let Some(session_id) = SessionId::parse(&session_id)
                && !self.parts.registry.contains(session_id.as_str())
            {
                let node = self.store.node.clone();
                self.take_back(&node, vec![session_id]).await?;
            }
        }
        self.needs_resync = false;
        // What happened meanwhile, here and elsewhere, shows in what Redis says now.
        if self.hold_until.is_none() {
            for session in sessions {
                self.pending.entry(session.id.clone()).or_default();
            }
        }
        Ok(())
    }

    /// Declares a node dead: takes back what it held, tells everyone, and only then forgets that there was
    /// something to tell, so that a reaper's own death repeats, never loses.
    async fn reap(&mut self, node: &str) -> Result<(), RedisError> {
        let sessions = self.store.sessions_of(node, false).await?;
        if sessions.is_empty() {
            tracing::warn!(node, "a node has died: its users have left");
            return self.store.bury(node).await;
        }
        let sessions = sessions.iter().filter_map(|id| SessionId::parse(id)).collect();
        self.take_back(node, sessions).await?;
        // The rest, and the burial, in the next round.
        self.next_heartbeat = Instant::now();
        Ok(())
    }

    async fn take_back(&mut self, node: &str, sessions: Vec<SessionId>) -> Result<(), RedisError> {
        let mut pipeline = redis::pipe();
        for session_id in &sessions {
            self.store
                .add_apply(&mut pipeline, node, session_id.as_str(), &[], true, true);
        }
        let answers = self.store.send(&mut pipeline).await?;
        let mut told = Vec::new();
        for (session_id, answer) in sessions.into_iter().zip(answers) {
            let Ok(applied) = answer.and_then(|answer| store::read_applied(answer, true)) else {
                continue;
            };
            told.push((
                session_id.clone(),
                self.publish(&session_id, applied.snapshot.as_ref(), &events(&applied)),
            ));
            if let Some(session) = self.parts.registry.get(session_id.as_str())
                && self.hold_until.is_none()
            {
                self.show(&session, Change::default(), applied).await;
            }
        }
        let deadline = Instant::now() + PUBLISH_PATIENCE;
        while told.iter().any(|(_, told)| !told.load(Ordering::Acquire)) && Instant::now() < deadline {
            sleep(Duration::from_millis(5)).await;
        }
        let is_told = |told: &&(SessionId, Arc<AtomicBool>)| told.1.load(Ordering::Acquire);
        let done: Vec<&str> = told
            .iter()
            .filter(is_told)
            .map(|(session_id, _)| session_id.as_str())
            .collect();
        if !done.is_empty() {
            let mut remove = redis::pipe();
            remove.cmd("SREM").arg(sessions_key(node)).arg(done);
            self.store.send(&mut remove).await?;
        }
        Ok(())
    }
}

fn events(applied: &Applied) -> Vec<StatusEvent> {
    let event = |event_type| {
        move |user_id: &UserId| StatusEvent {
            event_type,
            event_user_id: user_id.clone(),
        }
    };
    let gone = applied.gone.iter().map(event(EventType::UserDisconnected));
    gone.chain(applied.came.iter().map(event(EventType::UserConnected)))
        .collect()
}
