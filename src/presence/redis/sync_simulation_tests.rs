//! [`NodeLease`](super::node_lease::NodeLease) and [`SyncState`](super::sync_state::SyncState) against a simulated
//! Redis: several nodes, whose requests are lost, delayed and repeated, while Redis is emptied, is restarted with older
//! data or loses one node's keys, and while nodes die, sleep and start again.
//!
//! At all times, nobody who is connected is announced as having left, and nothing is announced during a recovery. When
//! everything is quiet again, each recovery ends, Redis holds exactly the users of the live nodes, and the clients of
//! each node have been told exactly that. The same holds for the index of sessions, and for the lobby of each node, whose
//! every event is news.

#[path = "named_schedules_tests.rs"]
mod named_schedules;
#[path = "simulated_link_tests.rs"]
mod simulated_link;
#[path = "simulated_node_tests.rs"]
mod simulated_node;
#[path = "simulated_redis_tests.rs"]
mod simulated_redis;
#[path = "simulated_steps_tests.rs"]
mod simulated_steps;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::keys::node_of;
use super::timings::{self, Timings};
use crate::protocol::ids::{SessionId, UserId, UserType};
use crate::protocol::lobby::{SessionState, Totals};
use crate::protocol::status::EventType;
use simulated_link::{Fault, Link};
use simulated_node::Node;
use simulated_redis::{Redis, Request, Session, session_id, type_of};
use simulated_steps::{NODES, SESSIONS, Step, steps};

const TURN: Duration = Duration::from_millis(250);
/// How many turns old the data of a restarted Redis may be.
const SAVE_INTERVAL: usize = 4;
const TTL: Duration = Duration::from_secs(12);

/// A node's place: nodes that are started there one after the other are different nodes.
#[derive(Default)]
struct Place {
    node: Option<Node>,
    /// What will happen to its next requests.
    faults: VecDeque<Fault>,
    sleeps_until: Option<Instant>,
    /// When a request last failed, or the node slept.
    disturbed: Option<Instant>,
    /// When it had written everything for the first time: before, it does not notice a loss of data.
    known_since: Option<Instant>,
    /// When it had last written everything.
    written: Option<Instant>,
    /// When Redis last lost its keys.
    keys_lost: Option<Instant>,
    /// Users whom clients here believe to be connected, since when.
    announced: BTreeMap<(Session, UserId), Instant>,
    /// What agents in the lobby here believe to wait, or to be active; None before their snapshot.
    desk: Option<BTreeMap<SessionId, SessionState>>,
}

struct World {
    timings: Timings,
    redis: Redis,
    places: Vec<Place>,
    started: usize,
    turns: usize,
    delayed: Vec<(Instant, Request)>,
    /// Everyone who has ever been connected.
    known: BTreeSet<(Session, UserId)>,
    /// When a user was last connected nowhere, or only to nodes that may count as dead or had not written that yet.
    absent: BTreeMap<(Session, UserId), Instant>,
}

fn guest(number: usize) -> UserId {
    UserId::parse(&format!("guest{number}")).unwrap()
}

fn resident(node: &str) -> UserId {
    UserId::parse(&format!("resident-{node}").replace('+', "-")).unwrap()
}

fn sessions_and_users(node: &Node) -> impl Iterator<Item = (Session, UserId)> {
    let held = node.held.iter();
    held.flat_map(|(session, users)| users.iter().map(|user_id| (*session, user_id.clone())))
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            timings: timings::testing(TTL),
            redis: Redis::new(),
            places: (0..NODES).map(|_| Place::default()).collect(),
            started: 0,
            turns: 0,
            delayed: Vec::new(),
            known: BTreeSet::new(),
            absent: BTreeMap::new(),
        };
        (0..NODES).for_each(|at| world.start(at));
        world
    }

    fn start(&mut self, at: usize) {
        self.started += 1;
        let mut node = Node::new(format!("node{at}+{}", self.started), self.timings);
        let alive = self.places.iter().filter(|place| !self.has_no_lease(place));
        let alive = alive
            .filter_map(|place| place.node.as_ref())
            .map(|node| node.base.clone());
        // It sees those that are away when they are back.
        self.redis.seen.insert(node.base.clone(), alive.collect());
        for session in 0..SESSIONS {
            node.join(session, &resident(&node.base.clone()));
        }
        let place = &mut self.places[at];
        *place = Place {
            node: Some(node),
            ..Place::default()
        };
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.places.iter().filter_map(|place| place.node.as_ref())
    }

    async fn play(&mut self, step: Step) {
        match step {
            Step::Wait { turns } => {
                for _ in 0..turns {
                    self.turn().await;
                }
            }
            Step::Join {
                node,
                session,
                guest: number,
            } => {
                if let Some(node) = &mut self.places[node].node {
                    node.join(session, &guest(number));
                }
            }
            Step::Leave {
                node,
                session,
                guest: number,
            } => {
                if let Some(node) = &mut self.places[node].node {
                    node.leave(session, &guest(number));
                }
            }
            Step::Disturb { node, faults } => self.places[node].faults.extend(faults),
            Step::EmptyRedis => self.redis.flush(),
            Step::RestartRedis => {
                self.redis.restart();
                // Every connection breaks, with what is still under way on it.
                self.delayed.clear();
                for place in &mut self.places {
                    place.faults.push_front(Fault::Broken);
                }
            }
            Step::LoseKeys { node } => {
                let place = &mut self.places[node];
                if let Some(node) = &place.node {
                    self.redis.lose_keys_of(&node.base);
                    place.keys_lost = Some(Instant::now());
                }
            }
            Step::Kill { node } => {
                let place = &mut self.places[node];
                // If Redis is emptied in the middle of a node's pipeline, and the node dies before the next, what the
                // rest of that pipeline has written has no lease, and nobody removes it.
                let without_lease = self.redis.names_without_lease();
                let is_safe = |node: &mut Node| without_lease.iter().all(|name| node_of(name) != node.base);
                place.node.take_if(is_safe);
            }
            Step::Start { node } if self.places[node].node.is_none() => self.start(node),
            Step::Start { .. } => {}
            Step::Sleep { node, turns } => {
                let until = Instant::now() + TURN * turns as u32;
                self.places[node].sleeps_until = Some(until);
            }
        }
        self.note_absent();
    }

    async fn turn(&mut self) {
        tokio::time::advance(TURN).await;
        let now = Instant::now();
        self.turns += 1;
        if self.turns.is_multiple_of(SAVE_INTERVAL) {
            self.redis.save();
        }
        for (_, request) in self.delayed.extract_if(.., |(due, _)| *due <= now) {
            self.redis.execute(&request, false);
        }
        self.note_absent();
        for at in 0..NODES {
            let place = &mut self.places[at];
            let Some(node) = &mut place.node else {
                continue;
            };
            if place.sleeps_until.is_some_and(|until| now < until) {
                place.disturbed = Some(now);
                continue;
            }
            let (mut published, faults) = (BTreeSet::new(), place.faults.len());
            node.turn(&mut Link {
                redis: &mut self.redis,
                faults: &mut place.faults,
                delayed: &mut self.delayed,
                published: &mut published,
            });
            if place.faults.len() < faults {
                place.disturbed = Some(now);
            }
            if node.has_written_all() {
                place.written = Some(now);
                place.known_since.get_or_insert(now);
            }
            self.check_events(at);
            self.check_lobby(at);
            for other in (0..NODES).filter(|other| *other != at) {
                if let Some(node) = &mut self.places[other].node {
                    published.iter().for_each(|session| node.pend_record(*session));
                }
            }
        }
    }

    /// Whether the lease of the node in this place may have ended.
    fn has_no_lease(&self, place: &Place) -> bool {
        // Its last heartbeat may have been that much earlier.
        let lease = self.timings.lease - self.timings.heartbeat;
        place.written.is_none_or(|written| written.elapsed() >= lease)
    }

    /// Whether a node, which holds this user, may count as dead: it could write nothing for its lease or, after a loss of
    /// data,
    /// could not write the user in the time it has to reconnect. (Or Redis had lost its keys just before it was emptied:
    /// the others did not see it alive any more.)
    fn may_be_dead(&self, place: &Place, node: &Node, (session, user_id): &(Session, UserId)) -> bool {
        if self.has_no_lease(place) {
            return true;
        }
        let now = Instant::now();
        let reconnect = self.timings.reconnect();
        let is_late = self.redis.lost.is_some_and(|lost| {
            let was_disturbed = place.disturbed.is_some_and(|at| at + reconnect >= lost);
            let was_unknown = place
                .keys_lost
                .is_some_and(|at| at <= lost && lost - at < reconnect);
            was_unknown || was_disturbed && now - lost >= reconnect
        });
        let stored = self.redis.stored(*session);
        let is_stored = || {
            let names = stored.get(user_id);
            names.is_some_and(|names| names.iter().any(|name| node_of(name) == node.base))
        };
        is_late && !is_stored()
    }

    fn note_absent(&mut self) {
        let without_lease = self.places.iter().filter(|place| self.has_no_lease(place));
        let without_lease = without_lease.filter_map(|place| place.node.as_ref());
        let without_lease: BTreeSet<_> = without_lease.map(|node| node.base.clone()).collect();
        for seen in self.redis.seen.values_mut() {
            seen.retain(|base| !without_lease.contains(base));
        }
        let (mut present, mut known) = (BTreeSet::new(), Vec::new());
        for place in &self.places {
            let Some(node) = &place.node else {
                continue;
            };
            for user in sessions_and_users(node) {
                let is_pending = node.is_pending(user.0, &user.1);
                if !is_pending && !self.may_be_dead(place, node, &user) {
                    present.insert(user.clone());
                }
                known.push(user);
            }
        }
        self.known.extend(known);
        let now = Instant::now();
        for user in self.known.difference(&present) {
            self.absent.insert(user.clone(), now);
        }
    }

    /// Whether this user is connected to a node that the one here knows to be alive. One that starts, or is back after its
    /// lease has ended, while the one here can't reach Redis, is not waited for after a loss: leaves are held back for a
    /// heartbeat, and for the nodes that were seen (contract, section 8).
    fn is_on_known_node(&self, at: usize, (session, user_id): &(Session, UserId)) -> bool {
        let seen = self.places[at]
            .node
            .as_ref()
            .and_then(|node| self.redis.seen.get(&node.base));
        let holds = |node: &Node| node.held.get(session).is_some_and(|held| held.contains(user_id));
        self.nodes()
            .any(|node| holds(node) && seen.is_some_and(|seen| seen.contains(&node.base)))
    }

    fn check_events(&mut self, at: usize) {
        let now = Instant::now();
        let place = &mut self.places[at];
        let Some(node) = &mut place.node else {
            return;
        };
        assert!(
            !node.is_credulous,
            "{}: a notification during a recovery",
            node.base
        );
        let (base, events) = (node.base.clone(), std::mem::take(&mut node.events));
        for (session, event) in events {
            let user = (session, event.event_user_id);
            let is_on_known = self.is_on_known_node(at, &user);
            let place = &mut self.places[at];
            match event.event_type {
                EventType::UserConnected => {
                    let before = place.announced.insert(user.clone(), now);
                    assert_eq!(before, None, "{base}: {user:?} joins twice");
                }
                EventType::UserDisconnected => {
                    let since = place
                        .announced
                        .remove(&user)
                        .expect("a leave of somebody who has joined");
                    let was_absent = self.absent.get(&user).is_some_and(|absent| *absent >= since);
                    // A node that starts just after a loss can't know who is missing.
                    let has_noticed = place
                        .known_since
                        .is_some_and(|at| self.redis.lost.is_none_or(|lost| at < lost));
                    assert!(
                        was_absent || !has_noticed || !is_on_known,
                        "{base}: {user:?} is connected and leaves"
                    );
                }
            }
        }
    }

    /// Each event is news.
    fn check_lobby(&mut self, at: usize) {
        let place = &mut self.places[at];
        let Some(node) = &place.node else {
            return;
        };
        let (events, snapshot) = (node.lobby.take_events(), node.lobby.snapshot());
        let Some(desk) = &mut place.desk else {
            place.desk = snapshot.map(|page| {
                let sessions = page.sessions.into_iter();
                sessions
                    .map(|session| (session.session_id, session.state))
                    .collect()
            });
            return;
        };
        for event in events {
            let before = match event.state {
                SessionState::Idle => desk.remove(&event.session_id),
                state => desk.insert(event.session_id.clone(), state),
            };
            let now = Some(event.state).filter(|state| *state != SessionState::Idle);
            assert_ne!(before, now, "{}: {event:?} is no news", node.base);
        }
    }

    async fn become_quiet(&mut self) {
        for place in &mut self.places {
            // A connection that broke stays broken.
            place.faults.retain(|fault| *fault == Fault::Broken);
            place.sleeps_until = None;
        }
        if self.nodes().next().is_none() {
            self.start(0);
        }
        let quiet = Instant::now();
        while quiet.elapsed() < 4 * TTL {
            self.turn().await;
            if quiet.elapsed() > TTL + 3 * self.timings.heartbeat {
                for node in self.nodes() {
                    let state = node.lease.state();
                    assert!(state.is_synced(), "{}: still {state:?}", node.base);
                }
            }
        }
    }

    fn assert_consistent(&self) {
        let names: BTreeSet<_> = self.nodes().map(|node| node.lease.name().to_string()).collect();
        assert_eq!(self.redis.names(), names, "leases");
        let connected: BTreeSet<_> = self.nodes().flat_map(sessions_and_users).collect();
        for session in 0..SESSIONS {
            let mut expected = BTreeMap::<_, BTreeSet<_>>::new();
            for node in self.nodes() {
                for user_id in node.held.get(&session).into_iter().flatten() {
                    let nodes = expected.entry(user_id.clone()).or_default();
                    nodes.insert(node.lease.name().to_string());
                }
            }
            assert_eq!(self.redis.stored(session), expected, "session {session} in Redis");
        }
        let mut sessions = BTreeMap::<_, Totals>::new();
        for (session, user_id) in &connected {
            let totals = sessions.entry(session_id(*session)).or_default();
            match type_of(user_id) {
                UserType::Agent => totals.agents += 1,
                _ => totals.customers += 1,
            }
        }
        let states = sessions
            .into_iter()
            .map(|(id, totals)| (id, SessionState::of(totals)));
        let states: BTreeMap<_, _> = states.collect();
        assert_eq!(self.redis.indexed(), states, "the index");
        let mut desk = states;
        desk.retain(|_, state| *state != SessionState::Idle);
        for place in &self.places {
            if let Some(node) = &place.node {
                assert_eq!(place.desk.as_ref(), Some(&desk), "the lobby of {}", node.base);
                let announced: BTreeSet<_> = place.announced.keys().cloned().collect();
                assert_eq!(announced, connected, "what clients of {} know", node.base);
            }
        }
    }
}

fn simulate(steps: Vec<Step>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut world = World::new();
        world.play(Step::Wait { turns: 8 }).await;
        for step in steps {
            world.play(step).await;
        }
        world.become_quiet().await;
        world.assert_consistent();
    });
}

proptest! {
    /// Other schedules in each run, and as many as `PROPTEST_CASES` says. One that fails gets a test of its own.
    #[test]
    fn nodes_agree_whatever_happens_to_their_requests_and_to_redis(steps in steps()) {
        simulate(steps);
    }
}
