//! Redis or a node dies, hangs or forgets: chat goes on, nobody is told a false leave, and soon everything is right again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::redis_cluster::{Cluster, Tab, Truth, ask_status, fence, rest};
use crate::services::{OUTAGE, PrivateRedis, RedisClient, Resp, unique, users_key};
use crate::support::{Http, Server, eventually, eventually_async};

/// Short enough to be waited for, and shorter than the longest outage here.
const TTL: &str = "3s";
/// After this, whoever was to be reaped is: several times the above, for a busy machine.
const REAPED: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_users_of_a_killed_node_leave_once_and_leave_no_ghosts() {
    const SESSIONS: usize = 100;
    const WATCHED: usize = 20;
    let redis = PrivateRedis::started();
    let cluster = Cluster::on(&redis.url());
    // Two survivors: they race for the reaping.
    let [a, b, killed] = cluster.nodes(["node-a", "node-b", "node-killed"], Some(TTL));
    let session = unique("watched");
    let mut truth = Truth::default();
    let mut watchers = Vec::new();
    for (node, user) in [(&a, "watch-a"), (&b, "watch-b")] {
        watchers.push(Tab::join(node, &session, user, "agent").await);
        truth.join(&session, user, "agent");
    }
    // Someone with a tab on both nodes stays.
    let _stays = Tab::join(&a, &session, "stays", "customer").await;
    let _dies = Tab::open(&killed, &session, "stays", "customer").await;
    truth.join(&session, "stays", "customer");

    let mut before = truth.clone();
    let mut tabs = Vec::new();
    for number in 0..WATCHED {
        tabs.push(Tab::join(&killed, &session, &format!("user-{number}"), "customer").await);
        before.join(&session, &format!("user-{number}"), "customer");
    }
    let others: Vec<_> = (0..SESSIONS).map(|_| unique("session")).collect();
    for other in &others {
        for user in ["one", "two"] {
            tabs.push(Tab::join(&killed, other, user, "customer").await);
            before.join(other, user, "customer");
        }
        truth.0.insert(other.clone(), BTreeMap::new());
    }
    before.agreed(&[&a, &b]).await;
    let watcher_refs: Vec<_> = watchers.iter().collect();
    fence(&[&a, &b], &session, &watcher_refs).await;

    killed.signal("KILL");
    let died = Instant::now();
    for tab in &watchers {
        tab.until("every leave", |seen| {
            (0..WATCHED).all(|number| seen.leaves(&format!("user-{number}")) > 0)
        })
        .await;
    }
    let waited = died.elapsed();
    eprintln!("SIGKILL: every leave told after {waited:.1?}");
    assert!(
        waited < Duration::from_secs(30),
        "with PRESENCE_TTL={TTL} the last leave was told after {waited:?}"
    );
    truth.agreed(&[&a, &b]).await;
    let none_left = || {
        let mut redis = redis.client();
        others
            .iter()
            .all(|other| redis.hgetall(&users_key(other)).is_empty())
    };
    eventually("no ghosts in Redis", none_left);

    // The same name again is another node: it brings nobody back, and the users it gets are kept.
    let restarted = cluster.node("node-killed").env("PRESENCE_TTL", TTL).start();
    let back = Tab::join(&restarted, &session, "user-0", "customer").await;
    truth.join(&session, "user-0", "customer");
    tokio::time::sleep(REAPED).await;
    truth.still(&[&a, &b, &restarted]);
    assert!(none_left(), "ghosts in Redis after the restart");
    fence(&[&a, &b, &restarted], &session, &watcher_refs).await;
    for tab in &watchers {
        tab.look(|seen| {
            for number in 0..WATCHED {
                let user = format!("user-{number}");
                let expected = if number == 0 { (2, 1) } else { (1, 1) };
                assert_eq!((seen.joins(&user), seen.leaves(&user)), expected, "{user}");
            }
            assert_eq!(
                seen.leaves("stays"),
                0,
                "who has a tab on another node has not left"
            );
            assert_eq!(seen.leaves("watch-a") + seen.leaves("watch-b"), 0);
        });
    }
    drop(back);
}

/// Sessions over two nodes, each with people who stay and watch, who leave during an outage, and who come during it.
struct Town {
    sessions: Vec<String>,
    truth: Truth,
    /// `(session, tab)`.
    stayers: Vec<(String, Tab)>,
    /// `(session, user, tab)`.
    leavers: Vec<(String, String, Tab)>,
    gone: Vec<(String, String)>,
}

impl Town {
    const SESSIONS: usize = 6;

    async fn settle(nodes: [&Server; 2]) -> Self {
        let mut town = Self {
            sessions: (0..Self::SESSIONS).map(|_| unique("session")).collect(),
            truth: Truth::default(),
            stayers: Vec::new(),
            leavers: Vec::new(),
            gone: Vec::new(),
        };
        for session in town.sessions.clone() {
            for (node, name) in nodes.into_iter().zip(["a", "b"]) {
                for (kind, user_type) in [("stays", "agent"), ("leaves", "customer")] {
                    let user = format!("{kind}-{name}");
                    let tab = Tab::join(node, &session, &user, user_type).await;
                    town.truth.join(&session, &user, user_type);
                    if kind == "stays" {
                        town.stayers.push((session.clone(), tab));
                    } else {
                        town.leavers.push((session.clone(), user, tab));
                    }
                }
            }
        }
        town.truth.agreed(&nodes).await;
        for (session, tab) in &town.stayers {
            let all = &town.truth.0[session];
            tab.until("everyone", |seen| seen.shown().as_ref() == Some(all))
                .await;
        }
        town
    }

    /// One customer of each session goes, and one comes on the other node; of the first session, also one who only passes by.
    async fn change(&mut self, nodes: [&Server; 2]) {
        for (number, (session, user, tab)) in std::mem::take(&mut self.leavers).into_iter().enumerate() {
            if number % 2 == 1 {
                self.leavers.push((session, user, tab));
                continue;
            }
            tab.close().await;
            self.truth.leave(&session, &user);
            self.gone.push((session, user));
        }
        for session in self.sessions.clone() {
            let tab = Tab::open(nodes[1], &session, "comes", "customer").await;
            self.truth.join(&session, "comes", "customer");
            self.stayers.push((session, tab));
        }
        let passer = Tab::open(nodes[0], &self.sessions[0], "passes-by", "customer").await;
        passer.close().await;
    }

    /// Nobody who is there was said to have left, and who left was said so once; each watcher shows the truth.
    async fn check(&self) {
        for (session, tab) in &self.stayers {
            let truth = &self.truth.0[session];
            tab.until("the true snapshot", |seen| seen.shown().as_ref() == Some(truth))
                .await;
        }
        self.no_false_events();
        for (session, tab) in &self.stayers {
            tab.look(|seen| {
                for (_, user) in self.gone.iter().filter(|(of, _)| of == session) {
                    assert!(
                        seen.leaves(user) <= 1,
                        "{user} of {session} left {} times",
                        seen.leaves(user)
                    );
                }
            });
        }
    }

    async fn fence(&self, nodes: [&Server; 2]) {
        for session in &self.sessions {
            let tabs = self.stayers.iter().filter(|(of, _)| of == session);
            let tabs: Vec<_> = tabs.map(|(_, tab)| tab).collect();
            fence(&nodes, session, &tabs).await;
        }
    }

    fn no_false_events(&self) {
        for (session, tab) in &self.stayers {
            tab.look(|seen| {
                assert_eq!(seen.ended, None, "a connection to {session} was closed");
                for user in self.truth.0[session].keys() {
                    assert_eq!(seen.leaves(user), 0, "{user} of {session} has not left");
                    assert!(seen.joins(user) <= 1, "{user} of {session} has come once");
                }
            });
        }
    }

    /// Those who were there all the time: how many were told of a leave, of how many.
    fn told(&self) -> (usize, usize) {
        let (mut told, mut all) = (0, 0);
        for (session, user) in &self.gone {
            let watchers = self
                .stayers
                .iter()
                .filter(|(of, tab)| of == session && tab.user.starts_with("stays"));
            for (_, tab) in watchers {
                all += 1;
                told += usize::from(tab.look(|seen| seen.leaves(user)) > 0);
            }
        }
        (told, all)
    }

    /// The two of a session who stay talk over both nodes; returns the slowest message.
    async fn talk(&self, what: &str) -> Duration {
        let mut slowest = Duration::ZERO;
        for (number, pair) in self.stayers[..4].chunks(2).enumerate() {
            let [(_, from), (_, to)] = pair else {
                panic!("a pair")
            };
            for (from, to, way) in [(from, to, "there"), (to, from, "back")] {
                let text = format!("{what} {number} {way}");
                let said = Instant::now();
                from.say(&text).await;
                to.until("the message", |seen| seen.has_text(&text)).await;
                slowest = slowest.max(said.elapsed());
            }
        }
        slowest
    }
}

fn redis_status(node: &Server) -> String {
    let health = node.health();
    assert_eq!(health["redis"]["mode"], "redis", "{health}");
    health["redis"]["status"]
        .as_str()
        .expect("a redis status")
        .to_owned()
}

/// Health says so in time; returns after how long.
fn degraded(nodes: &[&Server], since: Instant) -> Duration {
    for node in nodes {
        eventually("redis degraded in health", || redis_status(node) != "ok");
        assert_eq!(node.health()["status"], "degraded");
        assert_eq!(node.get("/ready").status, 200, "a degraded node stays ready");
    }
    let waited = since.elapsed();
    // The contract says 5 s; the rest is for a busy machine.
    assert!(waited < Duration::from_secs(12), "degraded after {waited:?}");
    waited
}

/// Somebody who comes and goes meanwhile does not make it well.
async fn stays_degraded(nodes: &[&Server], session: &str) {
    for _ in 0..8 {
        for node in nodes {
            let passer = Tab::open(node, session, "passes-by", "customer").await;
            passer.close().await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        for node in nodes {
            assert_ne!(redis_status(node), "ok", "Redis is still away");
        }
    }
}

async fn well(nodes: &[&Server]) {
    for node in nodes {
        eventually_async("health is ok again", async || {
            redis_status(node) == "ok" && node.health()["status"] == "ok"
        })
        .await;
    }
}

/// REST answers that it can't know, each time, and within a second.
fn rest_503(nodes: &[&Server], session: &str) {
    for node in nodes {
        let times = [(); 3].map(|()| {
            let asked = Instant::now();
            let answer = ask_status(node, session);
            answer.assert_error(503);
            assert_eq!(answer.json()["message"], "Failed to get connection status");
            asked.elapsed()
        });
        // The slowest may have met a busy machine.
        let [quick, slow] = [times.iter().min(), times.iter().max()].map(Option::unwrap);
        assert!(*quick < Duration::from_secs(1), "503 after {times:?}");
        assert!(*slow < Duration::from_secs(4), "503 after {times:?}");
    }
}

async fn outage(begins: fn(&PrivateRedis), ends: fn(&PrivateRedis), length: Duration) {
    let redis = PrivateRedis::started();
    let cluster = Cluster::on(&redis.url());
    let [a, b] = cluster.nodes(["node-a", "node-b"], Some(TTL));
    let nodes = [&a, &b];
    let mut town = Town::settle(nodes).await;
    let quiet = town.talk("before").await;

    begins(&redis);
    let down = Instant::now();
    rest_503(&nodes, &town.sessions[0]);
    let first = town.talk("during").await;
    town.change(nodes).await;
    let second = town.talk("still during").await;
    let told = degraded(&nodes, down);
    rest_503(&nodes, &town.sessions[1]);
    stays_degraded(&nodes, &town.sessions[0]).await;
    tokio::time::sleep(length.saturating_sub(down.elapsed())).await;
    let third = town.talk("just before the end").await;
    eprintln!(
        "slowest message before {quiet:.1?}, during {:.1?}; degraded after {told:.1?}; down for {:.1?}",
        first.max(second).max(third),
        down.elapsed()
    );
    town.no_false_events();

    ends(&redis);
    let right = town.truth.agreed(&nodes).await;
    eprintln!("right again after {right:.1?}");
    well(&nodes).await;
    town.check().await;
    town.talk("after").await;
    // Whoever would be reaped by mistake would be so now.
    tokio::time::sleep(REAPED).await;
    town.truth.still(&nodes);
    town.fence(nodes).await;
    town.check().await;
    equal_in_redis(&mut redis.client(), &town.truth);
    let (told, all) = town.told();
    assert_eq!(told, all, "leaves told, to those who were there");
}

/// Redis, user by user.
fn equal_in_redis(redis: &mut RedisClient, truth: &Truth) {
    for (session, users) in &truth.0 {
        let stored = redis.hgetall(&users_key(session));
        let stored: BTreeMap<_, _> = stored
            .iter()
            .map(|(user, value)| {
                let value: Value = serde_json::from_str(value).expect("JSON");
                (
                    user.clone(),
                    value["user_type"].as_str().expect("a type").to_owned(),
                )
            })
            .collect();
        assert_eq!(&stored, users, "Redis of {session}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_killed_redis_that_comes_back_empty_is_filled_again() {
    outage(PrivateRedis::kill, PrivateRedis::start, Duration::from_secs(3)).await;
}

/// For longer than PRESENCE_TTL: when it goes on, every lease has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stopped_redis_is_waited_for() {
    outage(PrivateRedis::pause, PrivateRedis::resume, Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flushed_redis_is_filled_again() {
    let redis = PrivateRedis::started();
    let cluster = Cluster::on(&redis.url());
    let [a, b] = cluster.nodes(["node-a", "node-b"], Some(TTL));
    let nodes = [&a, &b];
    let mut town = Town::settle(nodes).await;
    for _ in 0..3 {
        redis.client().flushall();
        let right = town.truth.agreed(&nodes).await;
        eprintln!("right again {right:.1?} after FLUSHALL");
        assert!(
            right < Duration::from_secs(20),
            "right again only {right:?} after FLUSHALL"
        );
        town.no_false_events();
    }
    // Forgotten in the middle of changes.
    town.change(nodes).await;
    redis.client().flushall();
    town.truth.agreed(&nodes).await;
    tokio::time::sleep(REAPED).await;
    town.truth.still(&nodes);
    equal_in_redis(&mut redis.client(), &town.truth);
    town.fence(nodes).await;
    town.check().await;
    town.talk("after").await;
    well(&nodes).await;
    let (told, all) = town.told();
    assert_eq!(told, all, "leaves told, to those who were there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_costs_presence_and_is_never_logged() {
    const RIGHT: &str = "right-horse-battery";
    const WRONG: &str = "wrong-horse-staple";
    let redis = PrivateRedis::started_with("--requirepass right-horse-battery");
    let cluster = Cluster::on(&redis.url_with(WRONG));
    let server = cluster
        .node("node-a")
        .env("LOG_LEVEL", "debug")
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .start_listening();
    eventually_async("ready without its Redis", async || {
        server.get("/ready").status == 200
    })
    .await;
    degraded(&[&server], Instant::now());
    rest_503(&[&server], "session");

    let session = unique("session");
    let ann = Tab::open(&server, &session, "ann", "customer").await;
    let ben = Tab::open(&server, &session, "ben", "agent").await;
    ann.say("hello").await;
    ben.until("the message", |seen| seen.has_text("hello")).await;
    // Some more attempts.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let metrics = Http::get(server.admin_addr(), "/metrics").text();
    let health = server.get("/health").text();

    // The operator mends it: the server needs no restart.
    let mut client = redis.client();
    client.command(&["AUTH", RIGHT]);
    client.command(&["CONFIG", "SET", "requirepass", WRONG]);
    well(&[&server]).await;
    let mut truth = Truth::default();
    truth.join(&session, "ann", "customer");
    truth.join(&session, "ben", "agent");
    truth.agreed(&[&server]).await;

    let log = server.log();
    assert!(
        log.iter()
            .any(|line| line.contains("WARN") || line.contains("ERROR")),
        "nothing of it in the log"
    );
    for text in log.iter().chain([&metrics, &health]) {
        for secret in [WRONG, RIGHT] {
            assert!(!text.contains(secret), "the password: {text}");
        }
    }
    // Named once in a while, not with each attempt.
    let lines = log
        .iter()
        .filter(|line| {
            (line.contains("WARN") || line.contains("ERROR")) && line.to_lowercase().contains("redis")
        })
        .count();
    assert!((1..=30).contains(&lines), "{lines} warnings: {log:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_redis_that_takes_no_writes_is_waited_for() {
    let redis = PrivateRedis::started();
    let cluster = Cluster::on(&redis.url());
    let [a, b] = cluster.nodes(["node-a", "node-b"], Some(TTL));
    let nodes = [&a, &b];
    let mut town = Town::settle(nodes).await;

    // A master that is not there.
    let mut client = redis.client();
    client.command(&["REPLICAOF", "127.0.0.1", "1"]);
    assert!(
        matches!(client.ask(&["SET", "x", "y"]), Resp::Error(error) if error.starts_with("READONLY")),
        "it still takes writes"
    );
    let since = Instant::now();
    town.change(nodes).await;
    degraded(&nodes, since);
    town.talk("during").await;
    for node in nodes {
        let answer = ask_status(node, &town.sessions[0]);
        if answer.status == 200 {
            eprintln!("REST answers from a read-only Redis");
        } else {
            answer.assert_error(503);
        }
    }
    town.no_false_events();

    client.command(&["REPLICAOF", "NO", "ONE"]);
    town.truth.agreed(&nodes).await;
    well(&nodes).await;
    town.check().await;
    tokio::time::sleep(REAPED).await;
    town.truth.still(&nodes);
    equal_in_redis(&mut client, &town.truth);
    town.fence(nodes).await;
    town.check().await;
    let (told, all) = town.told();
    assert_eq!(told, all, "leaves told, to those who were there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_takes_the_nodes_users_and_its_lease_out_of_redis() {
    const USERS: usize = 20;
    let redis = PrivateRedis::started();
    let cluster = Cluster::on(&redis.url());
    let name = unique("node-leaving");
    // PRESENCE_TTL is a minute: what is gone at the exit was not reaped.
    let leaving = cluster.node(&name).env("DRAIN_TIMEOUT", "2s").start();
    let staying = cluster.node("node-staying").start();
    let (own, shared) = (unique("session"), unique("session"));
    let watcher = Tab::join(&staying, &shared, "watcher", "agent").await;
    let mut truth = Truth::default();
    truth.join(&shared, "watcher", "agent");
    let mut after = truth.clone();
    let mut tabs = Vec::new();
    for session in [&own, &shared] {
        for number in 0..USERS {
            let user = format!("user-{number}");
            tabs.push(Tab::join(&leaving, session, &user, "customer").await);
            truth.join(session, &user, "customer");
        }
    }
    truth.agreed(&[&leaving, &staying]).await;
    let mut client = redis.client();
    let side: Vec<_> = client
        .keys_with(&name)
        .into_iter()
        .filter(|key| !key.contains(&own) && !key.contains(&shared))
        .collect();
    assert!(!side.is_empty(), "no lease of the node: {:?}", client.keys("*"));

    leaving.signal("TERM");
    let code = tokio::task::block_in_place(|| leaving.wait_exit(Duration::from_secs(2) + OUTAGE));
    assert_eq!(code, Some(0), "the exit status");
    assert!(
        client.hgetall(&users_key(&own)).is_empty(),
        "users are left in Redis"
    );
    assert_eq!(
        client.keys_with(&name),
        [""; 0],
        "what is left of the node in Redis"
    );
    after.0.insert(own.clone(), BTreeMap::new());
    assert_eq!(rest(&staying, &own), Some(BTreeMap::new()));
    after.agreed(&[&staying]).await;

    watcher
        .until("every leave", |seen| {
            (0..USERS).all(|number| seen.leaves(&format!("user-{number}")) > 0)
        })
        .await;
    fence(&[&staying], &shared, &[&watcher]).await;
    watcher.look(|seen| {
        for number in 0..USERS {
            let user = format!("user-{number}");
            assert_eq!((seen.joins(&user), seen.leaves(&user)), (1, 1), "{user}");
        }
        assert_eq!(seen.leaves("watcher"), 0);
    });
    assert_eq!(client.info("rejected_connections"), "0");
}
