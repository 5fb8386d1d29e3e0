//! The lobby against a plain model, with real sockets.

use std::collections::BTreeMap;

use fastrand::Rng;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::*;
use crate::metrics::Metrics;
use crate::protocol::frame;
use crate::protocol::lobby::Totals;
use crate::session::testing::{context, members_of};

fn id(number: usize) -> SessionId {
    SessionId::parse(&format!("s{number}")).unwrap()
}

fn summary(customers: u32, agents: u32, since: i64) -> Summary {
    let totals = Totals { customers, agents };
    let state = SessionState::of(totals);
    Summary { state, totals, since }
}

fn lobby() -> Arc<Lobby> {
    let lobby = Arc::new(Lobby::new(Arc::default()));
    tokio::spawn(Arc::clone(&lobby).run());
    lobby
}

fn load(lobby: &Lobby, sessions: &BTreeMap<SessionId, Summary>) {
    assert!(lobby.must_load());
    lobby.begin_load();
    for (session_id, summary) in sessions {
        lobby.set(session_id, Ok(*summary));
    }
    lobby.finish_load(0);
}

async fn agents(count: usize) -> (Vec<Arc<ConnectionWriter>>, Vec<Agent>) {
    let context = Arc::new(context(&Arc::new(Metrics::default()), 1 << 30));
    let (members, clients) = members_of(&context, count).await;
    let agents = clients.into_iter().map(|socket| Agent {
        socket,
        buffer: Vec::new(),
        seen: None,
    });
    (
        members.into_iter().map(|member| member.writer).collect(),
        agents.collect(),
    )
}

/// What a client believes: a session's state, by snapshot and events.
struct Agent {
    socket: TcpStream,
    buffer: Vec<u8>,
    seen: Option<BTreeMap<String, String>>,
}

impl Agent {
    async fn next(&mut self) -> (String, Value) {
        loop {
            let payload = frame::payload(&self.buffer);
            let header = self.buffer.len() - payload.len();
            let length = match self.buffer.get(1) {
                Some(126) if header == 4 => u16::from_be_bytes([self.buffer[2], self.buffer[3]]).into(),
                Some(127) if header == 10 => {
                    u64::from_be_bytes(self.buffer[2..10].try_into().unwrap()) as usize
                }
                Some(short) if header == 2 => usize::from(*short),
                _ => usize::MAX,
            };
            if payload.len() >= length {
                let mut frame: Value = serde_json::from_slice(&payload[..length]).unwrap();
                self.buffer.drain(..header + length);
                let kind = frame["type"].as_str().unwrap().to_owned();
                return (kind, frame["data"].take());
            }
            let read = self.socket.read_buf(&mut self.buffer).await.unwrap();
            assert!(read > 0, "the connection was closed");
        }
    }

    /// Reads one frame, which must be news.
    async fn follow(&mut self) {
        let (kind, data) = self.next().await;
        if kind == "lobby_snapshot" {
            let sessions = data["sessions"].as_array().unwrap();
            let seen = sessions.iter().map(|session| {
                let text = |field: &str| session[field].as_str().unwrap().to_owned();
                (text("session_id"), text("state"))
            });
            self.seen = Some(seen.collect());
            return;
        }
        let seen = self.seen.as_mut().expect("a snapshot comes first");
        let session_id = data["session_id"].as_str().unwrap().to_owned();
        let state = data["state"].as_str().unwrap().to_owned();
        assert_eq!(
            kind,
            format!("session_{}", if state == "idle" { "ended" } else { &state })
        );
        let before = match &*state {
            "idle" => seen.remove(&session_id),
            _ => seen.insert(session_id.clone(), state.clone()),
        };
        let expected = (state == "idle").then_some(());
        assert!(
            before.as_ref() != Some(&state) && (expected.is_none() || before.is_some()),
            "{session_id}: {kind} after {before:?}"
        );
    }
}

fn shown(sessions: &BTreeMap<SessionId, Summary>, scope: &Sessions) -> BTreeMap<String, String> {
    let desk = sessions
        .iter()
        .filter(|(_, summary)| summary.state != SessionState::Idle);
    let covered = desk.filter(|(session_id, _)| scope.cover(session_id));
    covered
        .map(|(session_id, summary)| {
            let state = match summary.state {
                SessionState::Waiting => "waiting",
                SessionState::Active => "active",
                SessionState::Idle => "idle",
            };
            (session_id.to_string(), state.to_owned())
        })
        .collect()
}

/// Random changes, reloads of the view and agents who come at any time, with and without a list: each event is news to
/// whoever gets it, and in the end all know what is true.
#[tokio::test]
async fn snapshot_and_events_add_up_to_what_is_true() {
    const AGENTS: usize = 12;
    for seed in 0..60 {
        let mut rng = Rng::with_seed(seed);
        let (writers, mut clients) = agents(AGENTS).await;
        let (lobby, mut sessions, mut scopes) = (lobby(), BTreeMap::new(), Vec::new());
        for step in 0..800 {
            let session_id = id(rng.usize(..20));
            match rng.u8(..20) {
                0 if scopes.len() < AGENTS => {
                    let scope = match rng.bool() {
                        true => Sessions::All,
                        false => Sessions::Listed((0..20).filter(|_| rng.bool()).map(id).collect()),
                    };
                    lobby.join(&writers[scopes.len()], scope.clone());
                    scopes.push(scope);
                }
                1 => lobby.suspend(),
                2 => tokio::task::yield_now().await,
                3 | 4 if lobby.must_load() => load(&lobby, &sessions),
                5 if !scopes.is_empty() && rng.u8(..4) == 0 => {
                    let agent = rng.usize(..scopes.len());
                    let scope = Sessions::Listed((0..20).filter(|_| rng.bool()).map(id).collect());
                    lobby.set_scope(&writers[agent], scope.clone());
                    scopes[agent] = scope;
                }
                6..10 => {
                    sessions.remove(&session_id);
                    lobby.set(&session_id, Err(step));
                }
                _ => {
                    let now = summary(rng.u32(..2), rng.u32(..2), step);
                    sessions.insert(session_id.clone(), now);
                    lobby.set(&session_id, Ok(now));
                }
            }
        }
        while scopes.len() < AGENTS {
            lobby.join(&writers[scopes.len()], Sessions::All);
            scopes.push(Sessions::All);
        }
        if lobby.must_load() {
            load(&lobby, &sessions);
        }
        for (agent, scope) in clients.iter_mut().zip(&scopes) {
            let expected = shown(&sessions, scope);
            let patience = Duration::from_secs(10);
            while agent.seen.as_ref() != Some(&expected) {
                let followed = tokio::time::timeout(patience, agent.follow()).await;
                assert!(
                    followed.is_ok(),
                    "seed {seed}: {:?}, not {expected:?}",
                    agent.seen
                );
            }
        }
        // Nothing follows but what is news.
        lobby.set(&id(99), Ok(summary(1, 0, 9_999)));
        for (agent, scope) in clients.iter_mut().zip(&scopes) {
            if *scope == Sessions::All {
                agent.follow().await;
                assert_eq!(agent.seen.as_ref().unwrap()["s99"], "waiting");
            }
        }
    }
}

/// A node with very many sessions dies: agents who read are told of every one, and are not cut off.
#[tokio::test]
async fn a_burst_cuts_off_nobody_who_reads() {
    const SESSIONS: usize = 120_000;
    let mut context = context(&Arc::new(Metrics::default()), 1 << 30);
    context.queue.queue_bytes = 64 << 10;
    let (members, mut clients) = members_of(&Arc::new(context), 2).await;
    let lobby = lobby();
    for member in &members {
        lobby.join(&member.writer, Sessions::All);
    }
    load(&lobby, &BTreeMap::new());
    let idle = clients.pop().unwrap();
    let mut reader = Agent {
        socket: clients.pop().unwrap(),
        buffer: Vec::new(),
        seen: None,
    };
    reader.follow().await;
    for number in 0..SESSIONS {
        lobby.set(&id(number), Ok(summary(1, 0, 1)));
    }
    let reading = async {
        for _ in 0..SESSIONS {
            reader.follow().await;
        }
    };
    let read = tokio::time::timeout(Duration::from_secs(60), reading).await;
    assert!(read.is_ok(), "{} events", reader.seen.unwrap().len());
    assert!(members[0].writer.is_open());
    assert!(!members[1].writer.is_open(), "who reads nothing is cut off");
    drop(idle);
}

#[tokio::test(start_paused = true)]
async fn the_view_is_kept_for_a_while_after_its_last_use() {
    let lobby = lobby();
    let waiting = summary(1, 0, 1);
    let page = || lobby.page(StateFilter::All, &Sessions::All, None, 10);
    assert!(page().await.is_err(), "it was not loaded in time");
    load(&lobby, &BTreeMap::from([(id(1), waiting)]));
    assert_eq!(page().await.unwrap().sessions.len(), 1);
    lobby.set(&id(2), Ok(waiting));
    tokio::time::sleep(LINGER / 2).await;
    assert_eq!(page().await.unwrap().sessions.len(), 2);
    tokio::time::sleep(LINGER / 2 + LINGER / 4).await;
    assert!(lobby.is_wanted());
    tokio::time::sleep(LINGER / 2).await;
    assert!(!lobby.is_wanted() && lobby.inner.lock().view.is_empty());
    lobby.set(&id(3), Ok(waiting));
    assert!(lobby.inner.lock().view.is_empty(), "nobody needs it");
}

/// Nobody gets a snapshot of what may be out of date.
#[tokio::test]
async fn a_snapshot_waits_until_everything_is_known() {
    let lobby = lobby();
    let (writers, mut clients) = agents(2).await;
    lobby.join(&writers[0], Sessions::All);
    load(&lobby, &BTreeMap::from([(id(1), summary(1, 0, 1))]));
    clients[0].follow().await;
    lobby.suspend();
    lobby.join(&writers[1], Sessions::All);
    load(&lobby, &BTreeMap::from([(id(2), summary(1, 1, 2))]));
    let expected = BTreeMap::from([("s2".to_owned(), "active".to_owned())]);
    for client in &mut clients {
        while client.seen.as_ref() != Some(&expected) {
            client.follow().await;
        }
    }
}
