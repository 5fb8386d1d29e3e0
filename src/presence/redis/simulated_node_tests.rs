//! A node of the simulation: what the presence task does, with its I/O replaced by a [`Link`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::answers::Applied;
use super::super::client_view::ClientView;
use super::super::lobby_feed::LobbyFeed;
use super::super::node_lease::{Loss, NodeLease, Transition};
use super::super::session_index::{self, SessionIndex};
use super::super::timings::{MAX_RETRY, MIN_RETRY, Timings};
use super::simulated_link::{Failed, Link};
use super::simulated_redis::{ListEntry, ListingKind, Request, Session, Write, session_id};
use crate::presence::lobby::Lobby;
use crate::presence::status_frames::NextFrame;
use crate::protocol::ids::UserId;
use crate::protocol::status::{EventType, StatusEvent};

/// How often a node checks what it holds.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// See `presence_task::MAX_LOSSES`.
const MAX_LOSSES: usize = 3;

/// See `pending::Pending`.
#[derive(Default)]
struct Pending {
    users: BTreeSet<UserId>,
    writes_all: bool,
    is_check: bool,
    must_publish: bool,
    must_index: bool,
}

pub struct Node {
    pub base: String,
    names: u64,
    timings: Timings,
    pub lease: NodeLease,
    /// The users who are connected here.
    pub held: BTreeMap<Session, BTreeSet<UserId>>,
    pending: BTreeMap<Session, Pending>,
    deferred: BTreeMap<Session, Pending>,
    /// Entries of lists whose leaves the log has acknowledged.
    acknowledged: Vec<(ListEntry, u64)>,
    views: BTreeMap<Session, ClientView>,
    /// See `client_notifier::ClientNotifier::suspects`.
    suspects: BTreeMap<Session, (u64, Instant)>,
    index: SessionIndex,
    feed: LobbyFeed,
    /// Somebody is always there.
    pub lobby: Arc<Lobby>,
    is_connected: bool,
    next_heartbeat: Instant,
    next_upkeep: Instant,
    next_check: Instant,
    claims_nodes: bool,
    number: u64,
    retry: Duration,
    /// What clients were sent: for the checks only.
    pub events: Vec<(Session, StatusEvent)>,
    /// Answers that were used although the node is recovering.
    pub is_credulous: bool,
}

impl Node {
    pub fn new(base: String, timings: Timings) -> Self {
        let now = Instant::now();
        let lobby = Arc::new(Lobby::new(Arc::default()));
        lobby.watch();
        Self {
            index: SessionIndex::default(),
            feed: LobbyFeed::default(),
            lobby,
            lease: NodeLease::new(base.as_str().into(), timings),
            base,
            names: 0,
            timings,
            held: BTreeMap::new(),
            pending: BTreeMap::new(),
            deferred: BTreeMap::new(),
            acknowledged: Vec::new(),
            views: BTreeMap::new(),
            suspects: BTreeMap::new(),
            is_connected: false,
            next_heartbeat: now,
            next_upkeep: now,
            next_check: now + CHECK_INTERVAL,
            claims_nodes: false,
            number: 0,
            retry: MIN_RETRY,
            events: Vec::new(),
            is_credulous: false,
        }
    }

    pub fn join(&mut self, session: Session, user_id: &UserId) {
        self.held.entry(session).or_default().insert(user_id.clone());
        self.pend(session).users.insert(user_id.clone());
    }

    pub fn leave(&mut self, session: Session, user_id: &UserId) {
        self.held.entry(session).or_default().remove(user_id);
        self.pend(session).users.insert(user_id.clone());
    }

    /// A status record names this session.
    pub fn pend_record(&mut self, session: Session) {
        self.pend(session);
    }

    pub fn has_written_all(&self) -> bool {
        self.is_connected && self.pending.is_empty()
    }

    /// Whether the user's last join or leave is not written yet.
    pub fn is_pending(&self, session: Session, user_id: &UserId) -> bool {
        let pending = self.pending.get(&session);
        pending.is_some_and(|pending| pending.users.contains(user_id))
    }

    fn pend(&mut self, session: Session) -> &mut Pending {
        self.pending.entry(session).or_default()
    }

    /// One turn of the task's loop.
    pub fn turn(&mut self, link: &mut Link<'_>) {
        let now = Instant::now();
        let over: Vec<_> = self
            .suspects
            .extract_if(.., |_, (_, until)| *until <= now)
            .collect();
        for (session, _) in over {
            self.pend(session);
        }
        for id in self.index.take_due(now) {
            let number = id.as_str().trim_start_matches('s').parse();
            self.pend(number.expect("a session of the simulation")).must_index = true;
        }
        if self.lease.end_recovery() {
            self.pend_all();
            for (session, deferred) in std::mem::take(&mut self.deferred) {
                self.pend(session).must_publish |= deferred.must_publish;
            }
        }
        if self.is_connected && self.pending.is_empty() && now < self.next_heartbeat.min(self.next_upkeep) {
            return;
        }
        match self.round(link) {
            Ok(()) => {
                if self.is_connected {
                    self.retry = MIN_RETRY;
                }
            }
            Err(Failed) => {
                if std::mem::replace(&mut self.is_connected, false) {
                    self.lease.unanswered();
                }
                self.next_heartbeat = now + self.retry;
                self.retry = MAX_RETRY.min(2 * self.retry);
                self.publish_all_under_way();
            }
        }
    }

    fn publish_all_under_way(&mut self) {
        for pending in self.pending.values_mut() {
            pending.must_publish |= !pending.users.is_empty();
        }
    }

    fn pend_all(&mut self) {
        for session in self.held.keys().copied().collect::<Vec<_>>() {
            self.pend(session);
        }
    }

    fn start_resync(&mut self) {
        self.lease.resync();
        self.publish_all_under_way();
        self.pend_all();
        self.pending
            .values_mut()
            .for_each(|pending| pending.writes_all = true);
    }

    fn lost(&mut self, loss: Loss) {
        self.lease.lost(loss);
        if loss != Loss::Lease {
            self.views.values_mut().for_each(ClientView::reset_versions);
            self.acknowledged.clear();
            self.index.clear();
            self.lobby.suspend();
        }
        self.rename();
    }

    fn rename(&mut self) {
        self.names += 1;
        let name = format!("{}.{}", self.base, self.names);
        self.lease.rename(name.into());
        self.next_heartbeat = Instant::now();
        self.start_resync();
    }

    /// See `PresenceTask::round`.
    fn round(&mut self, link: &mut Link<'_>) -> Result<(), Failed> {
        let now = Instant::now();
        if !self.is_connected {
            if now < self.next_heartbeat {
                return Ok(());
            }
            let run_id = link.reach()?.run_id();
            self.is_connected = true;
            match self.lease.connected(Some(run_id)) {
                Transition::Resync => self.start_resync(),
                Transition::Rename => self.rename(),
                Transition::Lost(loss) => self.lost(loss),
            }
            self.next_upkeep = now;
        }
        let is_upkeep = now >= self.next_upkeep;
        if is_upkeep {
            self.next_upkeep = now + self.timings.heartbeat;
        }
        self.claims_nodes = is_upkeep && !self.lease.state().is_recovering();
        if is_upkeep && self.lease.state().is_synced() && now >= self.next_check {
            self.next_check = now + CHECK_INTERVAL;
            for session in self.held.keys().copied().collect::<Vec<_>>() {
                self.pend(session).is_check = true;
            }
        }
        if self.pending.is_empty() {
            self.write(link, None)?;
        }
        let mut losses = 0;
        while let Some(session) = self.pending.keys().next().copied() {
            losses += usize::from(!self.write(link, Some(session))?);
            if losses == MAX_LOSSES {
                return Err(Failed);
            }
        }
        self.flush_index(link)?;
        if self.lease.state().must_write_all() {
            self.release_retired_names(link)?;
            if !self.pending.is_empty() {
                return Ok(());
            }
            self.lease.wrote_all();
        }
        if self.lease.state().is_recovering() {
            return Ok(());
        }
        if is_upkeep && self.pending.is_empty() {
            let dead = self.lease.take_dead();
            let retired = self.lease.retired_names().iter().map(|name| name.to_string());
            let names: Vec<_> = retired.chain(dead).collect();
            for name in names {
                self.reap(link, &name)?;
                if self.lease.state().is_recovering() {
                    break;
                }
            }
        }
        self.flush_index(link)
    }

    /// See `PresenceTask::flush_index`.
    fn flush_index(&mut self, link: &mut Link<'_>) -> Result<(), Failed> {
        while self.index.has_rows() {
            if !self.write(link, None)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn request(&self, writes: Vec<Write>) -> Request {
        let lease = &self.lease;
        Request {
            name: lease.name().to_string(),
            lease: self.timings.lease,
            claim: self.claims_nodes.then_some(self.timings.claim),
            may_reap: lease.may_reap(),
            is_writing: lease.state().must_write_all(),
            epoch: lease.epoch().to_owned(),
            retired_names: lease
                .retired_names()
                .iter()
                .map(|name| name.to_string())
                .collect(),
            acknowledged: Vec::new(),
            number: self.number,
            writes,
            rows: Vec::new(),
            feed_from: None,
        }
    }

    /// Returns `None` if Redis has lost us.
    fn send(&mut self, link: &mut Link<'_>, request: &Request) -> Result<Option<Vec<Applied>>, Failed> {
        let answer = link.send(request)?;
        self.next_heartbeat = Instant::now() + self.timings.heartbeat;
        if let Some(loss) = self.lease.answered(answer.heartbeat, answer.epoch) {
            self.lost(loss);
            return Ok(None);
        }
        if let (Some(from), Some(page)) = (request.feed_from, answer.feed) {
            self.is_credulous |= self.lease.state().is_recovering();
            let now = link.redis.now();
            if self.feed.read(from, &page, &self.lobby, now) {
                self.next_heartbeat = Instant::now();
            }
        }
        Ok(Some(answer.applied))
    }

    fn write(&mut self, link: &mut Link<'_>, session: Option<Session>) -> Result<bool, Failed> {
        self.number += 1;
        let writes = session.iter().map(|&session| self.write_of(session)).collect();
        let mut request = self.request(writes);
        request.acknowledged = self.acknowledged.clone();
        request.rows = self.index.rows();
        if !self.lease.state().is_recovering() {
            request.feed_from = self.feed.next(&self.lobby);
        }
        let Some(applied) = self.send(link, &request)? else {
            return Ok(false);
        };
        self.index.written(&request.rows);
        self.acknowledged
            .retain(|entry| !request.acknowledged.contains(entry));
        if let (Some(session), Some(applied)) = (session, applied.into_iter().next()) {
            self.applied(link, session, applied);
        }
        Ok(true)
    }

    fn write_of(&self, session: Session) -> Write {
        let (none, nothing) = (BTreeSet::new(), Pending::default());
        let held = self.held.get(&session).unwrap_or(&none);
        let pending = self.pending.get(&session).unwrap_or(&nothing);
        let lists_all = pending.writes_all || pending.is_check;
        let others = held.iter().filter(|_| lists_all);
        let users: BTreeSet<_> = pending.users.iter().chain(others).cloned().collect();
        Write {
            name: self.lease.name().to_string(),
            session,
            users: users
                .into_iter()
                .map(|id| (id.clone(), held.contains(&id)))
                .collect(),
            listing: match pending.writes_all {
                true => ListingKind::All,
                false => ListingKind::Some,
            },
            known: self.views.get(&session).and_then(|view| view.state),
        }
    }

    /// See `PresenceTask::applied`.
    fn applied(&mut self, link: &mut Link<'_>, session: Session, applied: Applied) {
        let mut pending = self.pending.remove(&session).unwrap_or_default();
        let was_here = self.held.get(&session).is_some_and(|held| !held.is_empty());
        let write = session_index::Write {
            must_write: !was_here || pending.writes_all || pending.is_check || pending.must_index,
            is_rebuilding: pending.writes_all || self.lease.state().is_recovering(),
        };
        self.index
            .note(&session_id(session), &applied, write, Instant::now());
        let is_known = pending.writes_all && self.lease.state().is_rebuilding();
        pending.must_publish |= !applied.changes.is_empty() && !is_known;
        if self.lease.state().is_recovering() {
            self.deferred.entry(session).or_default().must_publish |= pending.must_publish;
            return;
        }
        self.note_damage(session, &applied);
        if pending.must_publish {
            link.published.insert(session);
        }
        self.notify(session, applied);
    }

    fn note_damage(&mut self, session: Session, applied: &Applied) {
        let Some(damage) = applied.damage else {
            return;
        };
        let until = Instant::now() + damage.suspect_for;
        let before = self.suspects.insert(session, (damage.found, until));
        if before.is_none_or(|(found, _)| found != damage.found) {
            let again = self.pend(session);
            (again.is_check, again.must_publish) = (true, true);
        }
    }

    fn notify(&mut self, session: Session, applied: Applied) {
        self.is_credulous |= self.lease.state().is_recovering();
        let (now, is_suspect) = (Instant::now(), self.suspects.contains_key(&session));
        let Some(status) = applied.snapshot.clone() else {
            return;
        };
        let joined: Vec<_> = applied.joined().cloned().collect();
        let initial = || ClientView::initial(&status, &joined, now);
        if !self.views.contains_key(&session) {
            let known = status.users.keys().filter(|id| !joined.contains(id));
            let join = |id: &UserId| StatusEvent {
                event_type: EventType::UserConnected,
                event_user_id: id.clone(),
                event_id: None,
            };
            self.events.extend(known.map(|id| (session, join(id))));
        }
        let view = self.views.entry(session).or_insert_with(initial);
        view.state = applied.state;
        view.update(applied.version, status, is_suspect);
        if let NextFrame::Everyone(events) = view.next(now, &[]) {
            self.events
                .extend(events.into_iter().map(|event| (session, event)));
        }
    }

    /// See `PresenceTask::release_retired_names`.
    fn release_retired_names(&mut self, link: &mut Link<'_>) -> Result<(), Failed> {
        if !self.lease.state().is_recovering() {
            return Ok(());
        }
        for name in self.lease.retired_names().to_vec() {
            let sessions = link.reach()?.sessions_of(&name);
            let writes = sessions
                .into_iter()
                .map(|(session, _)| left(&name, session))
                .collect();
            let request = self.request(writes);
            if self.send(link, &request)?.is_none() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// See `PresenceTask::reap`.
    fn reap(&mut self, link: &mut Link<'_>, name: &str) -> Result<(), Failed> {
        let sessions = link.reach()?.sessions_of(name);
        if sessions.is_empty() {
            if link.reach()?.deregister(name) && self.lease.is_retired(name) {
                self.lease.forget_retired(name);
            }
            return Ok(());
        }
        for (session, number) in sessions {
            let entry = (name.to_owned(), session);
            if self.acknowledged.iter().any(|(waiting, _)| *waiting == entry) {
                continue;
            }
            let request = self.request(vec![left(name, session)]);
            let Some(mut applied) = self.send(link, &request)? else {
                return Ok(());
            };
            let applied = applied.remove(0);
            self.index.note(
                &session_id(session),
                &applied,
                session_index::Write::required(),
                Instant::now(),
            );
            self.acknowledged.push((entry, number));
            if !self.lease.is_retired(name) || !applied.leaves.is_empty() {
                link.published.insert(session);
            }
            self.note_damage(session, &applied);
            self.notify(session, applied);
        }
        Ok(())
    }
}

fn left(name: &str, session: Session) -> Write {
    Write {
        name: name.to_owned(),
        session,
        users: Vec::new(),
        listing: ListingKind::Left,
        known: None,
    }
}
