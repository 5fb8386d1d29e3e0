//! What the Redis tests share: nodes with one Kafka and one Redis, and connections that count the events they receive.

#[path = "redis_fault_scenario.rs"]
pub mod fault_scenario;

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::services::{Notes, OUTAGE, Reader, RedisClient, Topics, unique, users_key};
use crate::support::{Response, Server, ServerBuilder};

const STATUS: &str = "connection_status_update";

/// Topics and a Redis that several nodes share.
pub struct Cluster {
    pub topics: Topics,
    pub redis: String,
}

impl Cluster {
    #[track_caller]
    pub fn on(redis: &str) -> Self {
        Self {
            topics: Topics::new(),
            redis: redis.to_owned(),
        }
    }

    pub fn node(&self, name: &str) -> ServerBuilder {
        self.topics.node(name).env("REDIS_URL", &self.redis)
    }

    /// Nodes of these names, ready; a short PRESENCE_TTL where one is given.
    #[track_caller]
    pub fn nodes<const N: usize>(&self, names: [&str; N], ttl: Option<&str>) -> [Server; N] {
        let nodes = names.map(|name| {
            let node = self.node(name);
            match ttl {
                Some(ttl) => node.env("PRESENCE_TTL", ttl),
                None => node,
            }
            .spawn()
        });
        for node in &nodes {
            node.wait_ready();
        }
        nodes
    }
}

/// One connection (a tab, a device). Counts the events it receives.
pub struct Tab {
    pub user: String,
    reader: Reader<Seen>,
}

impl Deref for Tab {
    type Target = Reader<Seen>;

    fn deref(&self) -> &Self::Target {
        &self.reader
    }
}

/// What a [`Tab`] has read.
#[derive(Default)]
pub struct Seen {
    /// The data of every status frame, in order.
    pub statuses: Vec<Value>,
    /// How often each event was received.
    events: HashMap<(String, String), usize>,
    /// All other frames, in order.
    pub others: Vec<Value>,
    pub ended: Option<Option<u16>>,
}

impl Seen {
    pub fn joins(&self, user: &str) -> usize {
        self.count("user_connected", user)
    }

    pub fn leaves(&self, user: &str) -> usize {
        self.count("user_disconnected", user)
    }

    fn count(&self, event: &str, user: &str) -> usize {
        let key = (event.to_owned(), user.to_owned());
        self.events.get(&key).copied().unwrap_or_default()
    }

    /// The newest snapshot: user ids and their types.
    pub fn shown(&self) -> Option<BTreeMap<String, String>> {
        Some(users_of(&self.statuses.last()?["connection_status"]))
    }

    pub fn has_text(&self, text: &str) -> bool {
        self.others
            .iter()
            .any(|frame| frame["type"] == "new_message" && frame["data"]["message"] == text)
    }
}

impl Notes for Seen {
    fn take(&mut self, mut frame: Value, _: &str) {
        if frame["type"] != STATUS {
            return self.others.push(frame);
        }
        let data = frame["data"].take();
        for event in data["events"].as_array().expect("events are always there") {
            let text = |name: &str| event[name].as_str().expect("a string").to_owned();
            *self
                .events
                .entry((text("event_type"), text("event_user_id")))
                .or_default() += 1;
        }
        self.statuses.push(data);
    }

    fn end(&mut self, code: Option<u16>) {
        self.ended = Some(code);
    }

    fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    fn summary(&self) -> String {
        let (last, ended) = (self.statuses.last(), self.ended);
        let mut events: Vec<_> = self.events.iter().collect();
        events.sort();
        format!(
            "{} status frames, the last: {last:?}; {} other frames; ended: {ended:?}; events: {events:?}",
            self.statuses.len(),
            self.others.len()
        )
    }
}

impl Tab {
    /// Connects, and returns when the greeting is there.
    pub async fn open(server: &Server, session: &str, user: &str, user_type: &str) -> Self {
        Self {
            user: user.to_owned(),
            reader: Reader::connect(server, session, user, user_type).await,
        }
    }

    /// As [`Tab::open`]; returns when the join of its user has been announced to this connection.
    pub async fn join(server: &Server, session: &str, user: &str, user_type: &str) -> Self {
        let tab = Self::open(server, session, user, user_type).await;
        tab.until("its own join", |seen| seen.joins(user) > 0).await;
        tab
    }

    pub async fn send(&self, frame: Value) {
        assert!(self.reader.send(frame).await, "{} was closed", self.user);
    }

    /// Says it, and waits until the log has it.
    pub async fn say(&self, text: &str) {
        self.send(json!({"type": "send_message", "request_id": text, "data": {"message": text}}))
            .await;
        let is_answer = |frame: &Value| frame["request_id"] == text;
        self.until("the answer to a message", |seen| {
            seen.others.iter().any(is_answer)
        })
        .await;
        self.look(|seen| {
            let answer = seen.others.iter().find(|frame| is_answer(frame)).unwrap();
            assert_eq!(answer["type"], "message_sent", "{answer}");
        });
    }

    /// Closes properly, and waits for the echo.
    pub async fn close(self) {
        self.reader.close().await;
    }
}

/// Returns when everything that happened before has been announced to these connections: on each node a user joins and
/// leaves, and all have received that.
pub async fn fence(nodes: &[&Server], session: &str, tabs: &[&Tab]) {
    for node in nodes {
        let name = unique("fence");
        let user = Tab::join(node, session, &name, "admin").await;
        for tab in tabs {
            tab.until("the fence comes", |seen| seen.joins(&name) == 1).await;
        }
        user.close().await;
        for tab in tabs {
            tab.until("the fence goes", |seen| seen.leaves(&name) == 1).await;
        }
    }
}

/// User ids and types of a `connection_status`.
pub fn users_of(status: &Value) -> BTreeMap<String, String> {
    let users = status["users"]
        .as_object()
        .unwrap_or_else(|| panic!("no users: {status}"));
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    users
        .iter()
        .map(|(id, user)| (id.clone(), text(&user["user_type"])))
        .collect()
}

pub fn ask_status(node: &Server, session: &str) -> Response {
    node.get(&format!("/api/session/{session}/connection-status"))
}

/// REST's users of a session, or None when it does not answer with 200 now.
pub fn rest(node: &Server, session: &str) -> Option<BTreeMap<String, String>> {
    let answer = ask_status(node, session);
    (answer.status == 200).then(|| users_of(&answer.json()["data"]))
}

/// Who is truly there: users and types by session.
#[derive(Clone, Default)]
pub struct Truth(pub BTreeMap<String, BTreeMap<String, String>>);

impl Truth {
    pub fn join(&mut self, session: &str, user: &str, user_type: &str) {
        self.0
            .entry(session.to_owned())
            .or_default()
            .insert(user.to_owned(), user_type.to_owned());
    }

    pub fn leave(&mut self, session: &str, user: &str) {
        self.0.get_mut(session).expect("a session").remove(user);
    }

    /// Waits until REST of every session says so on every node; returns how long it took.
    pub async fn agreed(&self, nodes: &[&Server]) -> Duration {
        let started = Instant::now();
        for node in nodes {
            for (session, users) in &self.0 {
                loop {
                    let answer = rest(node, session);
                    if answer.as_ref() == Some(users) {
                        break;
                    }
                    assert!(
                        started.elapsed() < OUTAGE,
                        "REST of {session} never agreed: {answer:?}, should be {users:?}; health: {}",
                        node.health()
                    );
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        started.elapsed()
    }

    /// REST says so now: for facts that must have stayed. On a busy machine it may be 503 for a moment.
    pub fn still(&self, nodes: &[&Server]) {
        for node in nodes {
            for (session, users) in &self.0 {
                assert_eq!(
                    &users_of(&node.connection_status(session)),
                    users,
                    "REST of {session}"
                );
            }
        }
    }

    /// Redis says so now, user by user.
    #[track_caller]
    pub fn in_redis(&self, redis: &mut RedisClient) {
        for (session, users) in &self.0 {
            assert_eq!(&stored(redis, session), users, "Redis of {session}");
        }
    }
}

/// Users and types of a session as they stand in Redis.
pub fn stored(redis: &mut RedisClient, session: &str) -> BTreeMap<String, String> {
    let user_type = |value: &str| {
        let value: Value = serde_json::from_str(value).unwrap_or_else(|error| panic!("{error}: {value}"));
        value["user_type"].as_str().expect("a type").to_owned()
    };
    let users = redis.hgetall(&users_key(session));
    users
        .into_iter()
        .map(|(user, value)| (user, user_type(&value)))
        .collect()
}

/// For each `(session, user)` who has left, the `event_id` of each such event in the status topic: what a reader finds who is
/// none of our nodes.
pub fn leaves_in_the_log(topics: &Topics) -> BTreeMap<(String, String), Vec<Option<String>>> {
    let mut leaves: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for record in topics.kafka.consume(&topics.status) {
        let record = record.json();
        let session = record["session_id"].as_str().expect("a session_id");
        for event in record["events"].as_array().expect("events are always there") {
            if event["event_type"] == "user_disconnected" {
                let user = event["event_user_id"].as_str().expect("an event_user_id");
                let id = event["event_id"].as_str().map(str::to_owned);
                let person = (session.to_owned(), user.to_owned());
                leaves.entry(person).or_default().push(id);
            }
        }
    }
    leaves
}
