//! Presence: folding joins and leaves, encoding status frames, and the embedded store as a whole.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use livechat_ws::bus::Bus;
use livechat_ws::bus::embedded::Embedded;
use livechat_ws::config::{self, Command};
use livechat_ws::fanout::backend::FanoutBackend;
use livechat_ws::presence::dirty_sessions::DirtySessions;
use livechat_ws::presence::lobby::Lobby;
use livechat_ws::presence::{Parts, Presence};
use livechat_ws::protocol::ids::UserType;
use livechat_ws::protocol::server;
use livechat_ws::protocol::status::MAX_LISTED_EVENTS;
use livechat_ws::session::SessionUsers;
use livechat_ws::session::disconnects::Disconnects;
use livechat_ws::writer::Start;

use crate::support::{Sessions, TIMESTAMP, greeting, mute_member, session_id, user_id};

/// Users of a session: a chat, the longest list, and one without a list.
const USERS: [usize; 3] = [2, 100, 1_000];

fn full(users: usize) -> SessionUsers {
    let mut session_users = SessionUsers::default();
    for n in 0..users {
        session_users.join(&user_id(n), UserType::Customer);
    }
    session_users
}

/// All join, are announced, leave, and are announced.
fn session_users(c: &mut Criterion) {
    let mut group = c.benchmark_group("presence/session_users");
    for users in USERS {
        let ids: Vec<_> = (0..users).map(user_id).collect();
        group.throughput(Throughput::Elements(users as u64));
        group.bench_function(BenchmarkId::from_parameter(users), |b| {
            let mut session_users = SessionUsers::default();
            b.iter(|| {
                for user_id in &ids {
                    session_users.join(user_id, UserType::Customer);
                }
                black_box(session_users.take_changes(usize::MAX));
                for user_id in &ids {
                    session_users.leave(user_id);
                }
                black_box(session_users.take_changes(usize::MAX));
            });
        });
    }
    group.finish();
}

/// A status frame out of a session_users, with as many events as one lists.
fn frame(c: &mut Criterion) {
    let mut group = c.benchmark_group("presence/status_frame");
    let session_id = session_id(0);
    for users in USERS {
        let mut session_users = full(users);
        let events = session_users.take_changes(MAX_LISTED_EVENTS);
        group.throughput(Throughput::Elements(users as u64));
        group.bench_function(BenchmarkId::from_parameter(users), |b| {
            b.iter(|| {
                let status = session_users.connected().status();
                server::connection_status_update(&session_id, &status, black_box(&events), TIMESTAMP)
            });
        });
    }
    group.finish();
}

/// Many joins at once, and the task that processes them.
fn dirty_sessions(c: &mut Criterion) {
    const SESSIONS: usize = 1_000;
    let mut group = c.benchmark_group("presence/dirty_sessions");
    let (dirty, member) = (DirtySessions::default(), mute_member());
    let ids: Vec<_> = (0..SESSIONS).map(session_id).collect();
    group.throughput(Throughput::Elements(SESSIONS as u64));
    group.bench_function("joins_of_1000_sessions", |b| {
        b.iter(|| {
            for session_id in &ids {
                dirty.connection_opened(session_id, &member.user_id, &member.writer);
            }
            dirty.take()
        });
    });
    group.finish();
}

/// Sessions of two, whose second user leaves and rejoins.
struct Store {
    sessions: Sessions,
    presence: Presence,
    /// Lengths of the frames that announce it.
    left: usize,
    joined: usize,
}

impl Store {
    fn start(sessions: usize) -> Self {
        let sessions = Sessions::open(sessions, 2);
        // The shortest allowed window.
        let env = [("PRESENCE_FLUSH", "1ms")];
        let Ok(Command::Serve(config)) = config::load(["bench".into()], env, None) else {
            panic!("a configuration of defaults is valid");
        };
        let bus = Embedded::start(sessions.router(FanoutBackend::Send)).expect("a thread");
        let dirty: Arc<DirtySessions> = Arc::default();
        let parts = Parts {
            activity: Arc::default(),
            lobby: Arc::new(Lobby::new(Arc::clone(&dirty))),
            dirty,
            registry: Arc::clone(&sessions.registry),
            bus: Arc::new(Bus::Embedded(bus)),
            metrics: Arc::clone(&sessions.metrics),
            node: "node".into(),
        };
        let presence = {
            let _entered = sessions.runtime.enter();
            let (registry, metrics) = (Arc::clone(&sessions.registry), Arc::clone(&sessions.metrics));
            let disconnects = Arc::new(Disconnects::new(registry, metrics));
            Presence::start(parts, &config, &disconnects).expect("no address to be wrong")
        };
        let mut session_users = full(2);
        let update = |status: &_, events: &_| {
            let frame = server::connection_status_update(&session_id(0), status, events, TIMESTAMP);
            frame.map_or(0, |frame| frame.len())
        };
        let mut told = || {
            let (events, status) = (
                session_users.take_changes(usize::MAX),
                session_users.connected().status(),
            );
            session_users.leave(&user_id(1));
            update(&status, &events)
        };
        let (both, left) = (told(), told());
        session_users.join(&user_id(1), UserType::Customer);
        let status = session_users.connected().status();
        let events = session_users.take_changes(usize::MAX);
        let joined = update(&status, &events);
        for session in &sessions.sessions {
            let first = &session.members()[0];
            presence.connection_opened(&session.id, &first.user_id, &first.writer);
        }
        sessions.expect(2 * both * sessions.sessions.len());
        sessions.wait();
        Self {
            sessions,
            presence,
            left,
            joined,
        }
    }

    fn go_and_come(&self) {
        let sessions = &self.sessions.sessions;
        let seconds: Vec<_> = sessions
            .iter()
            .map(|session| session.members()[1].clone())
            .collect();
        self.sessions.expect(self.left * sessions.len());
        for (session, member) in sessions.iter().zip(&seconds) {
            let is_last = self.sessions.registry.leave(session, member) == Some(true);
            self.presence
                .connection_closed(&session.id, &member.user_id, is_last);
        }
        self.sessions.wait();
        for (session, member) in sessions.iter().zip(&seconds) {
            let greeting = greeting(&session.id, &member.user_id);
            self.sessions.expect(greeting.len() + 2 * self.joined);
            let join = |_| greeting.clone();
            self.sessions
                .registry
                .join(&session.id, member, UserType::Customer, Start::Live, join);
            self.presence
                .connection_opened(&session.id, &member.user_id, &member.writer);
        }
        self.sessions.wait();
    }
}

/// Until the readers have the frames, including two windows of a millisecond.
fn store(c: &mut Criterion) {
    let mut group = c.benchmark_group("presence/embedded");
    for sessions in [10, 500] {
        let mut store = None;
        group.throughput(Throughput::Elements(2 * sessions as u64));
        group.bench_function(
            BenchmarkId::new("one_goes_and_comes_in_sessions", sessions),
            |b| {
                let store = store.get_or_insert_with(|| Store::start(sessions));
                b.iter(|| store.go_and_come());
            },
        );
    }
    group.finish();
}

criterion_group!(benches, session_users, frame, dirty_sessions, store);
