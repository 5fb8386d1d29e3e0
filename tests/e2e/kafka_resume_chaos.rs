//! Clients that come and go while nodes are killed, drained and replaced and the broker restarts: each has every message
//! of its session, once and in order.
//!
//! `TEST_CHAOS_SEEDS` and `TEST_CHAOS_DELIVERIES` make it longer.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::services::{PrivateBroker, Topics, unique};
use crate::support::spec::foreign;
use crate::support::{Client, Server};

const CLIENTS: usize = 40;
const SESSIONS: usize = 4;
/// How many events of a client a failure reports.
const STORY: usize = 60;
/// How long a client may take to come back: a broker restarts meanwhile.
const PATIENCE: Duration = Duration::from_secs(90);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// The nodes that clients may connect to.
#[derive(Default)]
struct Nodes(Mutex<Vec<Arc<Server>>>);

impl Nodes {
    fn any(&self, random: &mut Rng) -> SocketAddr {
        let nodes = self.0.lock().unwrap();
        nodes[random.usize(0..nodes.len())].http_addr()
    }

    fn add(&self, node: Server) {
        self.0.lock().unwrap().push(Arc::new(node));
    }

    fn remove(&self, at: usize) -> Arc<Server> {
        self.0.lock().unwrap().remove(at)
    }
}

/// What all tasks share.
struct World {
    nodes: Nodes,
    sessions: Vec<String>,
    deliveries: AtomicU64,
    is_over: AtomicBool,
    has_ended: AtomicBool,
}

/// One client over all its connections.
struct Walker {
    world: Arc<World>,
    session: String,
    user: String,
    random: Rng,
    /// The last message's number, and what it resumes from.
    last: Option<u64>,
    since: Option<String>,
    /// What happened lately, for the report of a failure.
    story: VecDeque<String>,
}

impl Walker {
    fn tell(&mut self, event: String) {
        if self.story.len() == STORY {
            self.story.pop_front();
        }
        self.story.push_back(event);
    }

    /// Connects to any node until one accepts, and takes the greeting.
    async fn connect(&mut self) -> Client {
        let until = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < until, "{}: no node accepts it", self.user);
            let query = self
                .since
                .as_ref()
                .map_or(String::new(), |since| format!("?since={since}"));
            let path = format!("/ws/{}/{}/customer{query}", self.session, self.user);
            let addr = self.world.nodes.any(&mut self.random);
            if let Ok(mut client) = Client::open(addr, &path, &[]).await
                && let Some(greeting) = client.next_or_end(|_| true).await
            {
                assert_eq!(greeting["type"], "connection_established");
                self.tell(format!("{addr}{path}: {greeting}"));
                self.since = self.since.take().or_else(|| text(&greeting["data"]["cursor"]));
                if self.since.is_some() {
                    return client;
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// False if the client has to come back with the same `since`.
    fn take(&mut self, frame: &Value) -> bool {
        let data = &frame["data"];
        match frame["type"].as_str().expect("a type") {
            "new_message" => {
                let number: u64 = data["message"].as_str().unwrap().parse().unwrap();
                if let Some(last) = self.last {
                    let story = self.story.make_contiguous().join("\n");
                    assert_eq!(
                        number,
                        last + 1,
                        "{} in {}:\n{story}\n{frame}",
                        self.user,
                        self.session
                    );
                }
                self.tell(format!("{number} {}", data["message_id"]));
                self.last = Some(number);
                self.since = text(&data["message_id"]);
                self.world.deliveries.fetch_add(1, Ordering::Relaxed);
            }
            "resumed" if data["recovered"] == false => {
                // As while the broker is away.
                let story = self.story.make_contiguous().join("\n");
                assert_eq!(data["reason"], "unavailable", "{}:\n{story}\n{frame}", self.user);
                self.tell(frame.to_string());
                return false;
            }
            // It is as good as the last message's id.
            "resumed" | "pong" if self.random.bool() => {
                self.tell(format!("{frame}, and its cursor is used"));
                self.since = text(&data["cursor"]).or_else(|| self.since.take());
            }
            _ => self.tell(frame.to_string()),
        }
        true
    }

    async fn walk(mut self) -> Self {
        while !self.world.is_over.load(Ordering::Relaxed) {
            let mut client = self.connect().await;
            let until = Instant::now() + Duration::from_millis(self.random.u64(0..1_500));
            while let Ok(Some(frame)) = timeout_at(until, client.next_or_end(|_| true)).await {
                if !self.take(&frame) {
                    break;
                }
                match self.random.u16(0..400) {
                    0 => sleep(Duration::from_millis(self.random.u64(0..300))).await,
                    1..20 => drop(client.try_send(json!({"type": "ping"})).await),
                    _ => {}
                }
            }
            if self.random.bool() {
                // What is unread makes the kernel reset the connection.
                drop(client);
            } else {
                client.try_send(json!({"type": "ping"})).await;
            }
        }
        self
    }

    /// Reads on until this message.
    async fn finish(mut self, number: u64) {
        let until = Instant::now() + PATIENCE;
        while self.last != Some(number) {
            let mut client = self.connect().await;
            while self.last != Some(number) {
                let frame = timeout_at(until, client.next_or_end(|_| true)).await;
                match frame.unwrap_or_else(|_| panic!("{} has {:?} of {number}", self.user, self.last)) {
                    Some(frame) if self.take(&frame) => {}
                    _ => break,
                }
            }
        }
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// Writes numbered messages to all sessions until the world is over; returns the last number.
fn write(world: &World, brokers: &str, topic: &str) -> u64 {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "1")
        .set("reconnect.backoff.max.ms", "500")
        .create()
        .expect("a producer");
    let mut number = 0;
    while !world.is_over.load(Ordering::Relaxed) {
        number += 1;
        for session in &world.sessions {
            let id = uuid::Uuid::now_v7().to_string();
            let data = json!({"message_id": id, "session_id": session, "sender_id": "w", "sender_type": "agent",
                "message": number.to_string(), "message_type": "text", "attachments": [], "timestamp": "x"});
            let value = json!({"type": "new_message", "success": true, "data": data}).to_string();
            foreign::note(value.as_bytes(), true);
            let header = Header {
                key: "livechat-frame",
                value: Some("1"),
            };
            let headers = OwnedHeaders::new().insert(header);
            let mut record = BaseRecord::to(topic)
                .key(session)
                .payload(&value)
                .headers(headers);
            // The queue is full while the broker is away.
            while let Err((error, refused)) = producer.send(record) {
                let fatal = producer.client().fatal_error();
                assert_eq!(
                    error.rdkafka_error_code(),
                    Some(RDKafkaErrorCode::QueueFull),
                    "{fatal:?}"
                );
                producer.poll(Duration::from_millis(100));
                if world.has_ended.load(Ordering::Relaxed) {
                    return number;
                }
                record = refused;
            }
        }
        producer.poll(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(20));
    }
    producer.flush(PATIENCE).expect("all records in the log");
    number
}

/// Ends the world when the test ends, also by a failure: its tasks would never end by themselves.
struct EndOfWorld(Arc<World>);

impl Drop for EndOfWorld {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
        self.0.has_ended.store(true, Ordering::Relaxed);
    }
}

async fn chaos(seed: u64, deliveries: u64) {
    let broker = PrivateBroker::started();
    let topics = Topics::on(&broker.kafka());
    let world = Arc::new(World {
        nodes: Nodes::default(),
        sessions: (0..SESSIONS).map(|_| unique("session")).collect(),
        deliveries: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        has_ended: AtomicBool::new(false),
    });
    let _end = EndOfWorld(Arc::clone(&world));
    // A broker that restarts on a busy machine is away for long.
    let node = |name: &str| {
        let node = topics.node(name).env("DRAIN_TIMEOUT", "1s");
        node.env("RESUME_MAX_MESSAGES", 5_000).start()
    };
    world.nodes.add(node("node-a"));
    world.nodes.add(node("node-b"));
    let writer = tokio::task::spawn_blocking({
        let (world, brokers, topic) = (
            Arc::clone(&world),
            topics.kafka.brokers.clone(),
            topics.messages.clone(),
        );
        move || write(&world, &brokers, &topic)
    });
    let mut walkers = JoinSet::new();
    for number in 0..CLIENTS {
        let walker = Walker {
            world: Arc::clone(&world),
            session: world.sessions[number % SESSIONS].clone(),
            user: format!("u{number}"),
            random: Rng::with_seed(seed * 1_000 + number as u64),
            last: None,
            since: None,
            story: VecDeque::new(),
        };
        walkers.spawn(walker.walk());
    }
    let (mut random, mut blow) = (Rng::with_seed(seed), 0);
    while blow < 4 || world.deliveries.load(Ordering::Relaxed) < deliveries {
        sleep(Duration::from_millis(random.u64(800..2_000))).await;
        assert_eq!(walkers.len(), CLIENTS, "a client has failed");
        assert!(!writer.is_finished(), "the writer has failed");
        if let Some(ended) = walkers.try_join_next() {
            ended.expect("a client");
        }
        match blow % 4 {
            0 => {
                let dead = world.nodes.remove(random.usize(0..2));
                dead.signal("KILL");
                world.nodes.add(tokio::task::block_in_place(|| node("node-c")));
            }
            1 => {
                let drained = world.nodes.remove(random.usize(0..2));
                drained.signal("TERM");
                world.nodes.add(tokio::task::block_in_place(|| node("node-d")));
            }
            2 => tokio::task::block_in_place(|| {
                if random.bool() {
                    broker.kill();
                } else {
                    broker.stop();
                }
                broker.start();
            }),
            _ => {
                // One more, which has been there for nothing of it.
                world.nodes.add(tokio::task::block_in_place(|| node("node-e")));
                world.nodes.remove(0);
            }
        }
        blow += 1;
    }
    world.is_over.store(true, Ordering::Relaxed);
    let last = writer.await.expect("the writer");
    let mut ends = JoinSet::new();
    while let Some(walker) = walkers.join_next().await {
        ends.spawn(walker.expect("a client").finish(last));
    }
    while let Some(end) = ends.join_next().await {
        end.expect("a client");
    }
    let all = world.deliveries.load(Ordering::Relaxed);
    println!("seed {seed}: {all} deliveries, {blow} faults");
    assert!(all >= deliveries);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_nodes_and_broker_each_client_has_every_message_once_and_in_order() {
    for seed in 0..setting("TEST_CHAOS_SEEDS", 1) {
        chaos(seed, setting("TEST_CHAOS_DELIVERIES", 20_000)).await;
    }
}
