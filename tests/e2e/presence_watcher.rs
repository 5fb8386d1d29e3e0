//! A connection that stays and checks every status frame: no event comes twice, and events add up to the list of users.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Frame, Opcode, RawWs};

pub struct Watcher {
    pub name: String,
    received: Arc<Mutex<Received>>,
    /// To close it with, while the thread reads.
    socket: TcpStream,
    reader: JoinHandle<()>,
}

#[derive(Default)]
struct Received {
    /// Who is there, as the frames so far add up; None before the first.
    users: Option<BTreeSet<String>>,
    events: u64,
    /// How often each user has left.
    leaves: BTreeMap<String, usize>,
    wrong: Vec<String>,
}

impl Watcher {
    /// Takes over a connection from its greeting on.
    pub fn start(name: String, mut ws: RawWs) -> Self {
        // A quiet session is no fault, and the stream ends when the node does.
        ws.set_read_timeout(Duration::from_secs(3600));
        let socket = ws.stream().try_clone().expect("a second handle of the socket");
        let received = Arc::new(Mutex::new(Received::default()));
        let shared = Arc::clone(&received);
        let reader = thread::spawn(move || {
            while let Some(frame) = ws.read_frame() {
                if frame.is(Opcode::Close) {
                    ws.try_write(&Frame::new(Opcode::Close, &frame.payload).encode());
                } else if frame.is(Opcode::Text) {
                    let frame: Value = serde_json::from_slice(&frame.payload).expect("JSON in a text frame");
                    if frame["type"] == "connection_status_update" {
                        locked(&shared).take(&frame["data"]);
                    }
                }
            }
        });
        Self {
            name,
            received,
            socket,
            reader,
        }
    }

    /// Who is connected according to the frames so far; None before the first.
    pub fn there(&self) -> Option<BTreeSet<String>> {
        locked(&self.received).users.clone()
    }

    /// How often it received a leave of this user.
    pub fn leaves(&self, user: &str) -> usize {
        locked(&self.received)
            .leaves
            .get(user)
            .copied()
            .unwrap_or_default()
    }

    /// Asks for the end; [`Watcher::end`] waits for it.
    pub fn close(&self) {
        let closed = (&self.socket).write_all(&Frame::close(1000, "").encode());
        closed.unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Nothing was wrong so far.
    pub fn check(&self) {
        let received = locked(&self.received);
        let first: Vec<_> = received.wrong.iter().take(5).collect();
        let wrong = received.wrong.len();
        assert!(
            wrong == 0,
            "{} received {wrong} wrong frames: {first:#?}",
            self.name
        );
    }

    /// Waits for the end of the stream. Returns how many events it received.
    pub fn end(self) -> u64 {
        self.check();
        let Self { name, received, .. } = self;
        assert!(self.reader.join().is_ok(), "{name}: its reader failed");
        let received = locked(&received);
        assert_eq!(received.wrong, [""; 0], "{name}");
        received.events
    }
}

fn locked(received: &Mutex<Received>) -> MutexGuard<'_, Received> {
    received.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Received {
    /// Each event of a frame changes who is there, once for a user, and together they give what the frame lists.
    fn take(&mut self, data: &Value) {
        let status = &data["connection_status"];
        let (Some(listed), Some(events)) = (status["users"].as_object(), data["events"].as_array()) else {
            return self.wrong.push(format!("no users or events: {data}"));
        };
        for (total, of_type) in [("total_customer", "customer"), ("total_agent", "agent")] {
            let count = listed
                .values()
                .filter(|user| user["user_type"] == of_type)
                .count();
            if status[total] != count {
                self.wrong.push(format!("{total} is not {count}: {data}"));
            }
        }
        let listed: BTreeSet<String> = listed.keys().cloned().collect();
        let mut changed = BTreeSet::new();
        if let Some(mut users) = self.users.take() {
            for event in events {
                let user = event["event_user_id"].as_str().unwrap_or_default().to_owned();
                let is_news = match event["event_type"].as_str() {
                    Some("user_connected") => users.insert(user.clone()),
                    Some("user_disconnected") => users.remove(&user),
                    _ => false,
                };
                if event["event_type"] == "user_disconnected" {
                    *self.leaves.entry(user.clone()).or_default() += 1;
                }
                if !is_news || !changed.insert(user) {
                    self.wrong
                        .push(format!("an event that changes nothing: {event} in {data}"));
                }
            }
            if users != listed {
                self.wrong
                    .push(format!("with these events it is {users:?}: {data}"));
            }
        }
        self.events += events.len() as u64;
        self.users = Some(listed);
    }
}
