//! Redis for the simulation: plain maps with the rules of the scripts, executed request by request.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::super::answers::{Applied, Damage, Heartbeat};
use super::super::keys::node_of;
use super::super::lobby_feed::{FEED_PAGE, FeedPage};
use super::super::session_entry::StateAfter;
use super::super::session_index::{ENDED_KEPT, MOST_ENDED};
use super::super::store::SUSPICION;
use crate::protocol::ids::{SessionId, UserId, UserType};
use crate::protocol::lobby::{SessionState, Summary, Totals};
use crate::protocol::status::{ConnectedUser, ConnectionStatus, EventType};

/// A session's number.
pub type Session = usize;

pub fn session_id(session: Session) -> SessionId {
    SessionId::parse(&format!("s{session}")).unwrap()
}

/// One pipeline: the heartbeat, the index, removals from lists, one or several writes, and the epoch at the end.
#[derive(Clone)]
pub struct Request {
    pub name: String,
    pub lease: Duration,
    /// How long nodes are claimed; `None`: no claims.
    pub claim: Option<Duration>,
    /// Whether dead nodes may be claimed.
    pub may_reap: bool,
    pub is_writing: bool,
    /// The epoch as the node knows it.
    pub epoch: String,
    pub retired_names: Vec<String>,
    pub acknowledged: Vec<(ListEntry, u64)>,
    pub number: u64,
    pub writes: Vec<Write>,
    /// For the index.
    pub rows: Vec<(SessionId, StateAfter)>,
    pub feed_from: Option<u64>,
}

/// A node's name and a session on its list.
pub type ListEntry = (String, Session);

/// A call of `apply.lua`.
#[derive(Clone)]
pub struct Write {
    pub name: String,
    pub session: Session,
    /// Each listed user, and whether this node has a connection of theirs.
    pub users: Vec<(UserId, bool)>,
    pub listing: ListingKind,
    pub known: Option<StateAfter>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ListingKind {
    Some,
    All,
    Left,
}

pub struct Answer {
    pub heartbeat: Heartbeat,
    pub epoch: Option<String>,
    pub applied: Vec<Applied>,
    pub feed: Option<FeedPage>,
}

/// What is stored, and lost with the data.
#[derive(Clone, Default)]
struct Data {
    epoch: Option<u64>,
    leases: BTreeMap<String, Instant>,
    claims: BTreeMap<String, (Instant, String)>,
    writing: BTreeSet<String>,
    sessions: BTreeMap<Session, Keys>,
    /// The number of the pipeline that wrote to a session last.
    lists: BTreeMap<ListEntry, u64>,
    pending_leaves: BTreeMap<ListEntry, BTreeSet<UserId>>,
    index: Index,
}

/// See `index.lua`.
#[derive(Clone, Default)]
struct Index {
    entries: BTreeMap<SessionId, (StateAfter, u64)>,
    ended: BTreeMap<SessionId, Instant>,
    seq: u64,
    pruned: u64,
}

/// The keys of one session.
#[derive(Clone, Default)]
struct Keys {
    /// Each user with the names of nodes that hold them.
    users: BTreeMap<UserId, BTreeSet<String>>,
    count: usize,
    version: u64,
    damaged: Option<Instant>,
    entered: Option<(SessionState, i64)>,
}

pub struct Redis {
    data: Data,
    /// What a restart finds on disk.
    saved: Data,
    process: u64,
    epochs: u64,
    start: Instant,
    /// When the data of all nodes was lost last: for the checks only.
    pub lost: Option<Instant>,
    /// The nodes that each node knows to be alive: for the checks only.
    pub seen: BTreeMap<String, BTreeSet<String>>,
}

impl Redis {
    pub fn new() -> Self {
        Self {
            data: Data::default(),
            saved: Data::default(),
            process: 1,
            epochs: 0,
            start: Instant::now(),
            lost: None,
            seen: BTreeMap::new(),
        }
    }

    pub fn run_id(&self) -> String {
        self.process.to_string()
    }

    pub fn save(&mut self) {
        if self.names_without_lease().is_empty() {
            self.saved = self.data.clone();
        }
    }

    /// The process is replaced by one with what was saved last.
    pub fn restart(&mut self) {
        self.data = self.saved.clone();
        self.process += 1;
        self.lost = Some(Instant::now());
    }

    pub fn flush(&mut self) {
        self.data = Data::default();
        self.lost = Some(Instant::now());
    }

    /// Loses what a node has written, under any of its names.
    pub fn lose_keys_of(&mut self, node: &str) {
        self.data.leases.retain(|name, _| node_of(name) != node);
        self.data.lists.retain(|(name, _), _| node_of(name) != node);
        for keys in self.data.sessions.values_mut() {
            keys.users.retain(|_, names| {
                names.retain(|name| node_of(name) != node);
                !names.is_empty()
            });
        }
    }

    /// `flush_within`: Redis is emptied between the heartbeat and the rest.
    pub fn execute(&mut self, request: &Request, flush_within: bool) -> Answer {
        let heartbeat = self.heartbeat(request);
        if flush_within {
            self.flush();
        }
        if !request.rows.is_empty() {
            self.index(&request.rows);
        }
        let feed = request.feed_from.map(|from| self.feed(from));
        for (entry, number) in &request.acknowledged {
            self.data.pending_leaves.remove(entry);
            if self.data.lists.get(entry) == Some(number) {
                self.data.lists.remove(entry);
            }
        }
        for write in &request.writes {
            if write.listing != ListingKind::Left {
                let entry = (request.name.clone(), write.session);
                self.data.lists.insert(entry, request.number);
            }
        }
        let applied = request.writes.iter().map(|write| self.apply(write)).collect();
        Answer {
            heartbeat,
            epoch: self.data.epoch.map(|epoch| epoch.to_string()),
            applied,
            feed,
        }
    }

    fn micros(&self) -> u64 {
        1 + self.start.elapsed().as_micros() as u64
    }

    /// In milliseconds.
    pub fn now(&self) -> i64 {
        self.start.elapsed().as_millis() as i64
    }

    fn index(&mut self, rows: &[(SessionId, StateAfter)]) {
        let (now, micros) = (Instant::now(), self.micros());
        let index = &mut self.data.index;
        index.seq = index.seq.max(micros);
        for (session_id, after) in rows {
            let entry = |of: &StateAfter| (of.version, of.state, of.is_suspect);
            let same = |known: &StateAfter| entry(known) == entry(after);
            let known = index.entries.get(session_id);
            let is_worse = |known: &StateAfter| after.is_suspect && !known.is_suspect;
            if known.is_some_and(|(known, _)| known.version > after.version || same(known) || is_worse(known))
            {
                continue;
            }
            index.seq += 1;
            index.entries.insert(session_id.clone(), (*after, index.seq));
            match after.state {
                Ok(_) => index.ended.remove(session_id),
                Err(_) => index.ended.insert(session_id.clone(), now),
            };
        }
        assert!(index.ended.len() < MOST_ENDED);
        for (session_id, _) in index.ended.extract_if(.., |_, at| now - *at >= ENDED_KEPT) {
            let forgotten = index.entries.remove(&session_id);
            index.pruned = index.pruned.max(forgotten.map_or(0, |(_, seq)| seq));
        }
    }

    fn feed(&self, from: u64) -> FeedPage {
        let index = &self.data.index;
        let mut changes: Vec<_> = index
            .entries
            .iter()
            .filter(|(_, (_, seq))| *seq > from)
            .map(|(session_id, (after, seq))| {
                let (state, since, totals) = after.fields();
                let Totals { customers, agents } = totals;
                let entry = format!("{} {state} {since} {customers} {agents}", after.version);
                (session_id.to_string(), *seq, entry)
            })
            .collect();
        changes.sort_by_key(|(_, seq, _)| *seq);
        changes.truncate(FEED_PAGE);
        FeedPage {
            last: index.seq,
            pruned: index.pruned,
            is_full: changes.len() >= FEED_PAGE,
            changes,
        }
    }

    /// The sessions that the index has as not ended.
    pub fn indexed(&self) -> BTreeMap<SessionId, SessionState> {
        let entries = self.data.index.entries.iter();
        let live = entries
            .filter_map(|(session_id, (after, _))| Some((session_id.clone(), after.state.ok()?.state)));
        live.collect()
    }

    fn heartbeat(&mut self, request: &Request) -> Heartbeat {
        let (now, data) = (Instant::now(), &mut self.data);
        let epochs = &mut self.epochs;
        let epoch = *data.epoch.get_or_insert_with(|| {
            *epochs += 1;
            *epochs
        });
        let ends = data.leases.insert(request.name.clone(), now + request.lease);
        let mut dead = Vec::new();
        if let Some(claim) = request.claim.filter(|_| request.may_reap) {
            for name in data
                .leases
                .iter()
                .filter(|(_, ends)| **ends <= now)
                .map(|(name, _)| name)
            {
                let claimed = data.claims.get(name);
                if claimed.is_none_or(|(until, reaper)| *until <= now || *reaper == request.name) {
                    data.claims
                        .insert(name.clone(), (now + claim, request.name.clone()));
                    dead.push(name.clone());
                }
            }
        }
        let is_unaware = !request.epoch.is_empty() && request.epoch != epoch.to_string();
        match request.is_writing || is_unaware {
            true => data.writing.insert(request.name.clone()),
            false => data.writing.remove(&request.name),
        };
        for name in &request.retired_names {
            data.writing.remove(name);
        }
        let live = data.leases.iter().filter(|(_, ends)| **ends > now);
        let (writing, done) = live
            .map(|(name, _)| name.clone())
            .partition(|name| data.writing.contains(name));
        let seen = self.seen.entry(node_of(&request.name).to_owned()).or_default();
        let alive = data.leases.iter().filter(|(_, ends)| **ends > now);
        seen.extend(alive.map(|(name, _)| node_of(name).to_owned()));
        Heartbeat {
            is_lease_valid: ends.is_some_and(|ends| ends > now),
            epoch: epoch.to_string(),
            dead,
            done,
            writing,
        }
    }

    fn apply(&mut self, write: &Write) -> Applied {
        let now = Instant::now();
        let (elapsed, milliseconds) = (self.micros(), self.now());
        let keys = self.data.sessions.entry(write.session).or_default();
        let is_damaged = keys.users.len() < keys.count;
        let mut changes = Vec::new();
        let release = |keys: &mut Keys, changes: &mut Vec<_>, user_id: &UserId| {
            let Some(nodes) = keys.users.get_mut(user_id) else {
                return;
            };
            if nodes.remove(&write.name) && nodes.is_empty() {
                keys.users.remove(user_id);
                changes.push((EventType::UserDisconnected, user_id.clone()));
            }
        };
        for (user_id, is_here) in &write.users {
            if !is_here {
                release(keys, &mut changes, user_id);
                continue;
            }
            if !keys.users.contains_key(user_id) {
                changes.push((EventType::UserConnected, user_id.clone()));
            }
            let nodes = keys.users.entry(user_id.clone()).or_default();
            nodes.insert(write.name.clone());
        }
        if write.listing != ListingKind::Some {
            let is_listed = |user_id: &UserId| write.users.iter().any(|(listed, _)| listed == user_id);
            let others: Vec<_> = keys.users.keys().filter(|id| !is_listed(id)).cloned().collect();
            others
                .iter()
                .for_each(|user_id| release(keys, &mut changes, user_id));
        }
        if is_damaged {
            keys.damaged = Some(now);
        }
        keys.damaged = keys.damaged.filter(|damaged| now - *damaged < SUSPICION);
        if is_damaged || !changes.is_empty() {
            keys.version = elapsed.max(keys.version + 1);
            keys.count = keys.users.len();
        }
        let (state, has_entered) = keys.state(write.known, milliseconds);
        let state = StateAfter {
            is_news: has_entered || is_damaged || !changes.is_empty(),
            version: if keys.version == 0 { elapsed } else { keys.version },
            is_suspect: false,
            state,
        };
        if keys.users.is_empty() {
            // As meta is deleted.
            (keys.version, keys.count) = (0, 0);
        }
        let damage = keys.damaged.map(|damaged| Damage {
            found: (damaged - self.start).as_millis() as u64,
            suspect_for: SUSPICION - (now - damaged),
        });
        let mut left = Vec::new();
        if write.listing == ListingKind::Left {
            let entry = (write.name.clone(), write.session);
            let kept = self.data.pending_leaves.entry(entry).or_default();
            kept.extend(changes.iter().map(|(_, user_id)| user_id.clone()));
            left.extend(kept.iter().map(|user_id| (user_id.clone(), state.version)));
        }
        Applied {
            version: state.version,
            state: Some(state),
            changes,
            leaves: left,
            snapshot: Some(status(keys.users.keys())),
            damage,
            ..Applied::default()
        }
    }

    /// The sessions on a node's list, with their numbers.
    pub fn sessions_of(&self, name: &str) -> Vec<(Session, u64)> {
        let of_node = self.data.lists.iter().filter(|((of, _), _)| of == name);
        of_node
            .map(|((_, session), number)| (*session, *number))
            .collect()
    }

    /// Whether the node was deregistered.
    pub fn deregister(&mut self, name: &str) -> bool {
        let is_over = self
            .data
            .leases
            .get(name)
            .is_none_or(|ends| *ends <= Instant::now());
        if is_over {
            self.data.leases.remove(name);
            self.data.claims.remove(name);
            self.data.writing.remove(name);
        }
        is_over
    }

    pub fn names(&self) -> BTreeSet<String> {
        self.data.leases.keys().cloned().collect()
    }

    /// Names under which users are stored that have no lease.
    pub fn names_without_lease(&self) -> BTreeSet<String> {
        let stored = self.data.sessions.values().flat_map(|keys| keys.users.values());
        let names = stored.flatten();
        let unleased = names.filter(|name| !self.data.leases.contains_key(*name));
        unleased.cloned().collect()
    }

    /// Who is stored in a session, and by whom.
    pub fn stored(&self, session: Session) -> BTreeMap<UserId, BTreeSet<String>> {
        let keys = self.data.sessions.get(&session);
        keys.map(|keys| keys.users.clone()).unwrap_or_default()
    }
}

impl Keys {
    /// Who waits, and whether that has just begun.
    fn state(&mut self, known: Option<StateAfter>, now: i64) -> (Result<Summary, i64>, bool) {
        let count = |of_type| self.users.keys().filter(|id| type_of(id) == of_type).count() as u32;
        let totals = Totals {
            customers: count(UserType::Customer),
            agents: count(UserType::Agent),
        };
        if self.users.is_empty() {
            let has_ended = self.entered.take().is_some();
            return (Err(now), has_ended);
        }
        let state = SessionState::of(totals);
        let before = self.entered.filter(|(before, _)| *before == state);
        let known = known.and_then(|known| known.state.ok()).filter(|known| {
            let is_later = self.entered.is_none_or(|(_, since)| known.since >= since);
            known.state == state && is_later
        });
        let since = known.map_or(now, |known| known.since);
        let (_, since) = *self.entered.insert(before.unwrap_or((state, since)));
        let summary = Summary { state, totals, since };
        (Ok(summary), before.is_none())
    }
}

pub fn type_of(user_id: &UserId) -> UserType {
    match user_id.as_str().starts_with("resident") {
        true => UserType::Agent,
        false => UserType::Customer,
    }
}

fn status<'a>(users: impl Iterator<Item = &'a UserId>) -> ConnectionStatus {
    ConnectionStatus::of(users.map(|user_id| ConnectedUser {
        user_id: user_id.clone(),
        user_type: type_of(user_id),
        joined_at: "J".into(),
    }))
}
