//! Many joins at once take few round trips, and a crowd in one session is sent few frames.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::redis_cluster::users_of;
use crate::services::{PrivateRedis, RedisClient, users_key};
use crate::support::raw::handshake;
use crate::support::{Http, RawWs, Server, ServerBuilder, eventually};

const STATUS: &str = "connection_status_update";

const SESSIONS: usize = 5_000;
const JOINS: usize = 2 * SESSIONS;

/// The members of the large session, and how many of them come first: then it is over the limit of 100.
const CROWD: usize = 2_000;
const FIRST: usize = 101;

fn node(redis: &PrivateRedis) -> ServerBuilder {
    Server::builder()
        .env("REDIS_URL", redis.url())
        .env("PING_INTERVAL", "120s")
}

/// A request for an upgrade whose answer is not waited for.
fn ask(addr: SocketAddr, path: &str) -> Http {
    let mut http = Http::connect(addr);
    http.write(handshake(path, &[]).as_bytes());
    http
}

fn greeted(http: Http) -> RawWs {
    let mut ws = RawWs::upgraded(http).expect("an upgrade");
    assert_eq!(ws.read_json()["type"], "connection_established");
    ws
}

/// Asks all at once, on two threads, and then takes the answers.
fn storm(addr: SocketAddr, paths: &[String]) -> Vec<RawWs> {
    let asked: Vec<Http> = std::thread::scope(|scope| {
        let halves = paths.chunks(paths.len().div_ceil(2)).map(|half| {
            let ask_all = move || half.iter().map(|path| ask(addr, path)).collect::<Vec<_>>();
            scope.spawn(ask_all)
        });
        let halves: Vec<_> = halves.collect();
        halves
            .into_iter()
            .flat_map(|half| half.join().expect("connect"))
            .collect()
    });
    asked.into_iter().map(greeted).collect()
}

/// Counts what Redis reads, but for what it is asked here: a read each.
struct Reads {
    client: RedisClient,
    asked: u64,
    before: u64,
}

impl Reads {
    fn new(redis: &PrivateRedis) -> Self {
        let mut reads = Self {
            client: redis.client(),
            asked: 0,
            before: 0,
        };
        reads.restart();
        reads
    }

    fn restart(&mut self) {
        self.before = self.total();
        self.asked = 0;
    }

    /// Since the last start.
    fn since(&mut self) -> u64 {
        self.total() - self.before - self.asked
    }

    fn total(&mut self) -> u64 {
        self.asked += 1;
        let reads = self.client.info("total_reads_processed");
        reads.parse().expect("a number")
    }

    fn count_keys(&mut self) -> usize {
        self.asked += 1;
        self.client.keys("*").len()
    }
}

#[test]
fn a_storm_of_joins_and_leaves_takes_few_round_trips() {
    let redis = PrivateRedis::started();
    // A long window: on a busy machine the joins take longer, and windows pass meanwhile.
    let server = node(&redis).env("PRESENCE_FLUSH", "100ms").start();
    let mut reads = Reads::new(&redis);
    let lasting = ["livechat:nodes", "{livechat:nodes}:epoch", "livechat:control"];
    let is_lasting = |key: &String| lasting.contains(&key.as_str());
    // A node is ready before it has said that it has written all that it holds, and the list of those that have not is
    // a key, too.
    eventually("nothing is there but what stays", || {
        reads.client.keys("*").iter().all(is_lasting)
    });
    // A node that finds no refusals says so a second later.
    eventually("the refusals are read", || {
        reads.client.keys("livechat:control").len() == 1
    });
    let empty = reads.count_keys();

    // A session's two come apart, so that most sessions change twice.
    let paths: Vec<String> = (0..JOINS)
        .map(|join| {
            let kind = if join < SESSIONS { "customer" } else { "agent" };
            format!("/ws/s{}/{kind}/{kind}", join % SESSIONS)
        })
        .collect();
    reads.restart();
    let started = Instant::now();
    let mut clients = storm(server.http_addr(), &paths);
    for client in &mut clients {
        let is_whole = |status: &Value| {
            status["data"]["connection_status"]["total_customer"] == 1
                && status["data"]["connection_status"]["total_agent"] == 1
        };
        while !is_whole(&client.next(STATUS)) {}
    }
    let joining = reads.since();
    eprintln!(
        "{JOINS} joins, all of them shown after {:?}: Redis has read {joining} times",
        started.elapsed()
    );
    assert!(
        joining <= JOINS as u64 / 10,
        "{joining} reads for {JOINS} joins: at most a tenth is promised"
    );

    for session in 0..SESSIONS {
        let users = reads.client.hgetall(&users_key(&format!("s{session}")));
        let ids: Vec<_> = users.keys().map(String::as_str).collect();
        assert_eq!(ids, ["agent", "customer"], "in Redis, of s{session}");
    }
    for session in (0..SESSIONS).step_by(100) {
        let users = users_of(&server.connection_status(&format!("s{session}")));
        let ids: Vec<_> = users.keys().map(String::as_str).collect();
        assert_eq!(ids, ["agent", "customer"], "by REST, of s{session}");
    }

    reads.restart();
    let started = Instant::now();
    drop(clients);
    eventually("all are gone", || server.health()["connections"] == 0);
    eventually("Redis is as empty as before", || reads.count_keys() == empty);
    let leaving = reads.since();
    eprintln!(
        "{JOINS} leaves, all of them written after {:?}: Redis has read {leaving} times",
        started.elapsed()
    );
    assert!(
        leaving <= JOINS as u64 / 10,
        "{leaving} reads for {JOINS} leaves: at most a tenth is promised"
    );
    eventually("nothing is left of the sessions", || {
        reads.client.keys("*").iter().all(is_lasting)
    });
}

/// What one member was sent once the session was large.
#[derive(Default)]
struct Received {
    frames: u64,
    bytes: usize,
}

impl Received {
    /// Reads status frames until one has this total.
    fn read_until(&mut self, ws: &mut RawWs, total: usize) {
        loop {
            let status = ws.next(STATUS);
            let status = &status["data"];
            let is_large = status["users_truncated"] == true;
            if is_large {
                self.frames += 1;
                // serde_json writes as the server does, without white space.
                self.bytes += status.to_string().len();
                assert_eq!(status["connection_status"]["users"], serde_json::json!({}));
                let events = status["events"].as_array().expect("events").len();
                assert!(events <= 100, "{events} events");
            } else {
                assert_eq!(
                    self.frames, 0,
                    "a list after the session had become large: {status}"
                );
            }
            if status["connection_status"]["total_customer"] == total {
                assert!(is_large || total < FIRST, "{status}");
                return;
            }
        }
    }
}

#[test]
fn a_storm_into_one_session_sends_each_member_few_frames() {
    let redis = PrivateRedis::started();
    let server = node(&redis).start();
    let paths: Vec<String> = (0..CROWD)
        .map(|number| format!("/ws/crowd/u{number:04}/customer"))
        .collect();

    let started = Instant::now();
    let mut members = storm(server.http_addr(), &paths[..FIRST]);
    let mut received: Vec<Received> = members.iter().map(|_| Received::default()).collect();
    for (member, received) in members.iter_mut().zip(&mut received) {
        received.read_until(member, FIRST);
    }
    members.extend(storm(server.http_addr(), &paths[FIRST..]));
    received.resize_with(CROWD, Received::default);
    // Twice, to see how often a full session is notified.
    for round in 0..2 {
        // A frame tells of 100 joins a second: if they took so long, there is nothing more to tell.
        if round == 1 && started.elapsed() > Duration::from_secs(10) {
            break;
        }
        for (member, received) in members.iter_mut().zip(&mut received) {
            received.read_until(member, CROWD);
        }
    }
    let elapsed = started.elapsed();

    let most_frames = elapsed.as_secs() + 1;
    let longest_event = r#"{"event_type":"user_disconnected","event_user_id":"u0000"},"#.len();
    // The rest of a frame: totals, the last event, the time.
    let most_bytes = most_frames as usize * (100 * longest_event + 512);
    for (number, received) in received.iter().enumerate() {
        assert!(
            received.frames <= most_frames && received.bytes <= most_bytes,
            "u{number:04} got {} frames with {} bytes in {elapsed:?}",
            received.frames,
            received.bytes
        );
    }
    let all: usize = received.iter().map(|received| received.bytes).sum();
    eprintln!(
        "{CROWD} members in {elapsed:?}: {} bytes each, {} frames at most",
        all / CROWD,
        received.iter().map(|received| received.frames).max().unwrap_or(0)
    );
    assert_eq!(
        users_of(&server.connection_status("crowd")).len(),
        CROWD,
        "REST is never truncated"
    );
    assert!(
        elapsed > Duration::from_secs(1),
        "the limit of a frame a second was never reached"
    );
}
