//! An agent in the lobby who checks every frame: snapshots come first, each event is news, and together they say which
//! sessions wait and which are active.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use crate::http_routes::is_utc;
use crate::support::{Frame, Opcode, RawWs};

/// Sessions and their states.
pub type Desk = BTreeMap<String, String>;

pub struct LobbyWatcher {
    name: String,
    received: Arc<Mutex<Received>>,
    /// To close it with, while the thread reads.
    socket: TcpStream,
    reader: JoinHandle<()>,
}

#[derive(Default)]
struct Received {
    /// As the frames so far add up; None before the snapshot.
    desk: Option<Desk>,
    /// The events of each session, in order.
    events: BTreeMap<String, Vec<String>>,
    count: u64,
    wrong: Vec<String>,
}

impl LobbyWatcher {
    pub fn enter(name: &str, address: SocketAddr) -> Self {
        let mut ws = RawWs::connect_path(address, &format!("/ws/@lobby/{name}/admin"));
        assert_eq!(ws.read_json()["type"], "connection_established");
        // Quiet sessions are no fault, and the stream ends when the node does.
        ws.set_read_timeout(Duration::from_secs(3600));
        let socket = ws.stream().try_clone().expect("a second handle of the socket");
        let received = Arc::new(Mutex::new(Received::default()));
        let shared = Arc::clone(&received);
        let reader = thread::spawn(move || {
            while let Some(frame) = ws.read_frame() {
                if frame.is(Opcode::Close) {
                    ws.try_write(&Frame::new(Opcode::Close, &frame.payload).encode());
                } else if frame.is(Opcode::Text) {
                    let frame = serde_json::from_slice(&frame.payload).expect("JSON in a text frame");
                    locked(&shared).take(&frame);
                }
            }
        });
        Self {
            name: name.to_owned(),
            received,
            socket,
            reader,
        }
    }

    /// What waits and what is active, by the frames so far; None before the snapshot.
    pub fn desk(&self) -> Option<Desk> {
        locked(&self.received).desk.clone()
    }

    /// The state of one session.
    pub fn state(&self, session: &str) -> Option<String> {
        locked(&self.received).desk.as_ref()?.get(session).cloned()
    }

    /// The events about one session so far.
    pub fn events(&self, session: &str) -> Vec<String> {
        let received = locked(&self.received);
        received.events.get(session).cloned().unwrap_or_default()
    }

    /// Nothing was wrong so far.
    pub fn check(&self) {
        let wrong = locked(&self.received).wrong.clone();
        assert_eq!(wrong, [""; 0], "{}", self.name);
    }

    /// Asks for the end; [`LobbyWatcher::end`] waits for it.
    pub fn close(&self) {
        let closed = (&self.socket).write_all(&Frame::close(1000, "").encode());
        closed.unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Waits for the end of the stream. Returns how many events it received.
    pub fn end(self) -> u64 {
        self.check();
        assert!(self.reader.join().is_ok(), "{}: its reader failed", self.name);
        let received = locked(&self.received);
        assert_eq!(received.wrong, [""; 0], "{}", self.name);
        received.count
    }
}

fn locked(received: &Mutex<Received>) -> MutexGuard<'_, Received> {
    received.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Received {
    fn take(&mut self, frame: &Value) {
        let data = &frame["data"];
        match (frame["type"].as_str(), &mut self.desk) {
            (Some("lobby_snapshot"), desk @ None) => {
                let sessions = data["sessions"].as_array().cloned().unwrap_or_default();
                let listed: Desk = sessions.iter().map(session).collect();
                if listed.len() != sessions.len() || data["has_more"] != false {
                    self.wrong.push(format!("a snapshot: {data}"));
                }
                *desk = Some(listed);
            }
            (Some(kind @ ("session_waiting" | "session_active" | "session_ended")), Some(desk)) => {
                let (id, state) = session(data);
                let is_news = match kind {
                    "session_ended" => desk.remove(&id).is_some(),
                    _ => desk.insert(id.clone(), state.clone()).as_deref() != Some(&*state),
                };
                let named = kind == format!("session_{}", if state == "idle" { "ended" } else { &state });
                if !is_news || !named || !is_utc(&data["since"]) {
                    self.wrong.push(format!("an event that is no news: {frame}"));
                }
                self.events
                    .entry(id)
                    .or_default()
                    .push(kind.replace("session_", ""));
                self.count += 1;
            }
            _ => self
                .wrong
                .push(format!("a frame that does not belong here: {frame}")),
        }
    }
}

/// A session's id and state.
pub fn session(entry: &Value) -> (String, String) {
    let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let total = |field: &str| entry[field].as_u64().unwrap_or_default();
    let state = match (total("total_customer"), total("total_agent")) {
        (0, _) => "idle",
        (_, 0) => "waiting",
        _ => "active",
    };
    assert_eq!(text("state"), state, "{entry}");
    (text("session_id"), text("state"))
}
