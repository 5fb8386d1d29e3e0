//! An agent in the lobby who checks every frame: snapshots come first, each event is news, and together they say which
//! sessions wait and which are active.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::Value;

use crate::frame_watcher::{FrameWatcher, Received};
use crate::http_routes::is_utc;
use crate::support::RawWs;

/// Sessions and their states.
pub type Desk = BTreeMap<String, String>;
pub type LobbyWatcher = FrameWatcher<LobbyFrames>;

#[derive(Default)]
pub struct LobbyFrames {
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
        Self::start(name.to_owned(), ws)
    }

    /// What waits and what is active, by the frames so far; None before the snapshot.
    pub fn desk(&self) -> Option<Desk> {
        self.received().desk.clone()
    }

    /// The state of one session.
    pub fn state(&self, session: &str) -> Option<String> {
        self.received().desk.as_ref()?.get(session).cloned()
    }

    /// The events about one session so far.
    pub fn events(&self, session: &str) -> Vec<String> {
        let received = self.received();
        received.events.get(session).cloned().unwrap_or_default()
    }
}

impl Received for LobbyFrames {
    fn wrong(&self) -> &[String] {
        &self.wrong
    }

    fn events(&self) -> u64 {
        self.count
    }

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
