//! A scenario for faults of Redis: sessions over two nodes in which users join, leave and talk, and a record of who is
//! connected and of what may have been announced to the watchers.

use std::time::{Duration, Instant};

use crate::services::{OUTAGE, RedisClient, unique};
use crate::support::{Client, Server, eventually, eventually_async};
use futures_util::future::join_all;

use super::{Cluster, Tab, Truth, ask_status, fence, leaves_in_the_log, stored};

/// PRESENCE_TTL: short enough to be waited for, and shorter than an outage.
const TTL: &str = "5s";

struct TestUser {
    session: String,
    tab: Tab,
}

pub struct FaultScenario {
    cluster: Cluster,
    pub nodes: [Server; 2],
    sessions: Vec<String>,
    truth: Truth,
    /// Users who stay.
    watchers: Vec<TestUser>,
    /// Users who are connected, and whom the watchers know.
    known: Vec<TestUser>,
    /// Users who have joined since.
    new: Vec<TestUser>,
    /// `(session, user)`: users who have left, and whom the watchers knew.
    left: Vec<(String, String)>,
    /// Users who have joined and left since: that may have been announced, or not.
    transient: Vec<(String, String)>,
    /// One on each node, in a session of their own.
    talkers: [Client; 2],
    steps: usize,
}

impl FaultScenario {
    pub async fn start(redis: &str) -> Self {
        Self::start_with_ttl(redis, TTL).await
    }

    /// With another PRESENCE_TTL.
    pub async fn start_with_ttl(redis: &str, ttl: &str) -> Self {
        let cluster = Cluster::on(redis);
        let nodes = cluster.nodes(["node-a", "node-b"], Some(ttl));
        let talk = unique("talk");
        let talkers = [
            Client::connect(&nodes[0], &talk, "ann", "customer").await,
            Client::connect(&nodes[1], &talk, "ben", "agent").await,
        ];
        let mut truth = Truth::default();
        truth.join(&talk, "ann", "customer");
        truth.join(&talk, "ben", "agent");
        let sessions: Vec<_> = (0..6).map(|_| unique("session")).collect();
        let (mut watchers, mut known) = (Vec::new(), Vec::new());
        for session in &sessions {
            for (node, name) in nodes.iter().zip(["a", "b"]) {
                for (kind, user_type) in [("stays", "agent"), ("goes", "customer"), ("goes-too", "admin")] {
                    let tab = Tab::join(node, session, &format!("{kind}-{name}"), user_type).await;
                    truth.join(session, &tab.user, user_type);
                    let users = if kind == "stays" {
                        &mut watchers
                    } else {
                        &mut known
                    };
                    users.push(TestUser {
                        session: session.clone(),
                        tab,
                    });
                }
            }
        }
        let mut scenario = Self {
            cluster,
            nodes,
            sessions,
            truth,
            watchers,
            known,
            new: Vec::new(),
            left: Vec::new(),
            transient: Vec::new(),
            talkers,
            steps: 0,
        };
        scenario.await_consistent().await;
        scenario
    }

    pub fn nodes(&self) -> [&Server; 2] {
        self.nodes.each_ref()
    }

    /// Waits until REST of both nodes and all watchers agree with the record.
    pub async fn await_consistent(&mut self) {
        let took = self.truth.agreed(&self.nodes()).await;
        eprintln!("REST tells the truth after {took:.1?}");
        for TestUser { session, tab } in &self.watchers {
            let truth = Some(&self.truth.0[session]);
            tab.until("the true snapshot", |seen| seen.shown().as_ref() == truth)
                .await;
        }
        self.known.append(&mut self.new);
    }

    /// A user joins. Every second time a user leaves whom all know, every third time one who has only just joined.
    pub async fn step(&mut self) {
        let step = self.steps;
        self.steps += 1;
        let session = self.sessions[step % self.sessions.len()].clone();
        let node = &self.nodes[step / 2 % 2];
        let tab = Tab::open(node, &session, &format!("comes-{step}"), "customer").await;
        self.truth.join(&session, &tab.user, "customer");
        self.new.push(TestUser { session, tab });
        if step.is_multiple_of(3) {
            let user = self.new.pop();
            self.leaves(user).await;
        } else if step.is_multiple_of(2) && !self.known.is_empty() {
            let user = self.known.swap_remove(step % self.known.len());
            self.left.push((user.session.clone(), user.tab.user.clone()));
            self.leaves(Some(user)).await;
        }
    }

    async fn leaves(&mut self, user: Option<TestUser>) {
        let TestUser { session, tab } = user.expect("a user");
        self.truth.leave(&session, &tab.user);
        let person = (session, tab.user.clone());
        if !self.left.contains(&person) {
            self.transient.push(person);
        }
        tab.close().await;
    }

    /// Takes steps for so long, with a message after each. Returns how long each message took from one node to a client
    /// of the other.
    pub async fn run_for(&mut self, length: Duration) -> Vec<Duration> {
        let (began, mut times) = (Instant::now(), Vec::new());
        while began.elapsed() < length {
            self.step().await;
            times.push(self.talk().await);
            // Some joins share a window of writes, and some do not.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..200))).await;
        }
        times
    }

    pub async fn talk(&mut self) -> Duration {
        self.talkers.reverse();
        let [from, to] = &mut self.talkers;
        let text = unique("said");
        let said = Instant::now();
        from.say(&text, &text).await;
        to.next_where(&text, |frame| frame["data"]["message"] == text.as_str())
            .await;
        let took = said.elapsed();
        let answer = from
            .next_where("its answer", |frame| frame["request_id"] == text.as_str())
            .await;
        assert_eq!(answer["type"], "message_sent", "{answer}");
        took
    }

    /// No user who is connected was announced as having left, and nothing was announced twice.
    pub fn assert_no_false_events(&self) {
        for TestUser { session, tab } in &self.watchers {
            tab.look(|seen| {
                assert_eq!(seen.ended, None, "a connection to {session} was closed");
                for user in self.truth.0[session].keys() {
                    assert_eq!(seen.leaves(user), 0, "{user} of {session} has not left");
                    assert!(seen.joins(user) <= 1, "{user} of {session} has come once");
                }
                let of_session = |people: &[(String, String)]| -> Vec<_> {
                    people.iter().filter(|(of, _)| of == session).cloned().collect()
                };
                for (_, user) in of_session(&self.left) {
                    assert!(seen.leaves(&user) <= 1, "{user} of {session} has left once");
                }
                for (_, user) in of_session(&self.transient) {
                    let (joins, leaves) = (seen.joins(&user), seen.leaves(&user));
                    assert!(
                        leaves <= joins && joins <= 1,
                        "{user} of {session}: {joins}, {leaves}"
                    );
                }
            });
        }
    }

    /// Everything was announced, once.
    fn assert_all_announced(&self) {
        self.assert_no_false_events();
        for TestUser { session, tab } in &self.watchers {
            tab.look(|seen| {
                for user in self.truth.0[session]
                    .keys()
                    .filter(|user| user.starts_with("comes-"))
                {
                    assert_eq!(
                        seen.joins(user),
                        1,
                        "{user} of {session} has come, to {}",
                        tab.user
                    );
                }
                for (_, user) in self.left.iter().filter(|(of, _)| of == session) {
                    assert_eq!(
                        seen.leaves(user),
                        1,
                        "{user} of {session} has left, to {}",
                        tab.user
                    );
                }
                for (_, user) in self.transient.iter().filter(|(of, _)| of == session) {
                    let (joins, leaves) = (seen.joins(user), seen.leaves(user));
                    assert_eq!(joins, leaves, "{user} of {session}, to {}", tab.user);
                }
            });
        }
    }

    /// REST answers 503 or correctly, also while the nodes reconnect.
    pub fn assert_rest_never_wrong(&self, length: Duration) {
        let (began, mut known, mut all) = (Instant::now(), 0, 0);
        let sessions = self.sessions.iter().cycle();
        for (session, node) in sessions.zip(self.nodes.iter().cycle()) {
            let answer = ask_status(node, session);
            all += 1;
            if answer.status == 200 {
                known += 1;
                let users = super::users_of(&answer.json()["data"]);
                assert_eq!(users, self.truth.0[session], "REST of {session}");
            } else {
                answer.assert_error(503);
            }
            if began.elapsed() > length {
                break;
            }
        }
        eprintln!("REST knew the truth {known} times of {all}");
    }

    /// Redis answers again from now on: waits until it holds every user, and both nodes are healthy.
    pub async fn await_rewritten(&self, redis: &mut RedisClient) {
        let back = Instant::now();
        let (mut well, mut equal) = (None, None);
        while well.is_none() || equal.is_none() {
            let mut all = self.truth.0.iter();
            if well.is_none() && self.nodes.iter().all(|node| redis_status(node) == "ok") {
                well = Some(back.elapsed());
            }
            if equal.is_none() && all.all(|(session, users)| stored(redis, session) == *users) {
                equal = Some(back.elapsed());
            }
            assert!(
                back.elapsed() < OUTAGE,
                "well: {well:.1?}, the truth in Redis: {equal:.1?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let [well, equal] = [well, equal].map(Option::unwrap_or_default);
        eprintln!("Redis is back: health says ok after {well:.1?}, the truth is in Redis after {equal:.1?}");
        assert!(
            equal.saturating_sub(well) < Duration::from_secs(30),
            "health says ok after {well:?}, but Redis has the truth only after {equal:?}"
        );
    }

    /// After a fault: everything is right again, and stays so.
    pub async fn assert_recovered(&mut self, redis: &mut RedisClient) {
        self.await_consistent().await;
        well(&self.nodes()).await;
        self.talk().await;
        self.somebody_is_reaped().await;
        // Users removed by mistake would be missing by now.
        self.truth.still(&self.nodes());
        self.truth.in_redis(redis);
        let nodes = self.nodes();
        let fences = self.sessions.iter().map(async |session| {
            let here = self.watchers.iter().filter(|user| user.session == *session);
            let tabs: Vec<_> = here.map(|user| &user.tab).collect();
            fence(&nodes, session, &tabs).await;
        });
        join_all(fences).await;
        self.assert_all_announced();
        for (session, user) in leaves_in_the_log(&self.cluster.topics).keys() {
            let users = self.truth.0.get(session);
            let is_here = users.is_some_and(|users| users.contains_key(user));
            assert!(!is_here, "{user} of {session} has left, says the log");
        }
    }

    /// A node that dies now is noticed.
    async fn somebody_is_reaped(&self) {
        let mortal = self.cluster.node("node-mortal").env("PRESENCE_TTL", TTL).start();
        let (session, user) = (&self.sessions[0], unique("dies"));
        let _dies = Tab::join(&mortal, session, &user, "customer").await;
        let witnesses = self.watchers.iter().filter(|user| user.session == *session);
        for watcher in witnesses.clone() {
            watcher
                .tab
                .until("the mortal", |seen| seen.joins(&user) == 1)
                .await;
        }
        mortal.signal("KILL");
        for watcher in witnesses {
            watcher
                .tab
                .until("its death", |seen| seen.leaves(&user) == 1)
                .await;
        }
    }

    pub fn a_session(&self) -> &str {
        &self.sessions[0]
    }
}

pub fn redis_status(node: &Server) -> String {
    let health = node.health();
    assert_eq!(health["redis"]["mode"], "redis", "{health}");
    let status = health["redis"]["status"].as_str().expect("a redis status");
    assert!(status == "ok" || health["status"] == "degraded", "{health}");
    status.to_owned()
}

/// Health says so in time; returns after how long.
pub fn degraded(nodes: &[&Server], since: Instant) -> Duration {
    for node in nodes {
        eventually("redis degraded in health", || redis_status(node) != "ok");
        assert_eq!(node.get("/ready").status, 200, "a degraded node stays ready");
    }
    let waited = since.elapsed();
    // The contract says 5 s; the rest is for a busy machine.
    assert!(waited < Duration::from_secs(40), "degraded after {waited:?}");
    waited
}

pub async fn well(nodes: &[&Server]) {
    for node in nodes {
        eventually_async("health is ok again", async || {
            redis_status(node) == "ok" && node.health()["status"] == "ok"
        })
        .await;
    }
}

/// REST answers that it can't know, each time, and within a second.
pub fn rest_503(nodes: &[&Server], session: &str) {
    for node in nodes {
        let mut times = [(); 5].map(|()| {
            let asked = Instant::now();
            let answer = ask_status(node, session);
            answer.assert_error(503);
            assert_eq!(answer.json()["message"], "Failed to get connection status");
            asked.elapsed()
        });
        times.sort_unstable();
        eprintln!("503 after {times:.1?}");
        // All but one may have met a busy machine; whoever waits for Redis does so each time.
        assert!(times[0] < Duration::from_secs(1), "503 after {times:?}");
        assert!(times[4] < Duration::from_secs(20), "503 after {times:?}");
    }
}

pub fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
