//! A key of presence is deleted, evicted or overwritten: it is written again, and nobody is announced as having left.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::redis_cluster::{Cluster, Tab, Truth, fence, rest};
use crate::services::{OUTAGE, PrivateRedis, RedisClient, Resp, unique, users_key};
use crate::support::{Server, eventually};

struct DamageScenario {
    redis: PrivateRedis,
    nodes: [Server; 2],
    session: String,
    tabs: Vec<Tab>,
    truth: Truth,
    joins: usize,
}

impl DamageScenario {
    /// Two users on each node, who all know each other.
    async fn start() -> Self {
        let redis = PrivateRedis::started();
        let cluster = Cluster::on(&redis.url());
        let nodes = ["node-a", "node-b"].map(|name| {
            let node = cluster.node(name).env("PRESENCE_GRACE", "500ms");
            node.env("ADMIN_ADDR", "127.0.0.1:0").start()
        });
        let session = unique("session");
        let (mut tabs, mut truth) = (Vec::new(), Truth::default());
        for (user, node, kind) in [
            ("ann", 0, "customer"),
            ("ben", 1, "agent"),
            ("cid", 0, "agent"),
            ("dan", 1, "customer"),
        ] {
            tabs.push(Tab::join(&nodes[node], &session, user, kind).await);
            truth.join(&session, user, kind);
        }
        truth.agreed(&[&nodes[0], &nodes[1]]).await;
        let scenario = Self {
            redis,
            nodes,
            session,
            tabs,
            truth,
            joins: 0,
        };
        scenario.await_all_announced().await;
        scenario
    }

    fn nodes(&self) -> [&Server; 2] {
        self.nodes.each_ref()
    }

    async fn await_all_announced(&self) {
        for tab in &self.tabs {
            let truth = Some(&self.truth.0[&self.session]);
            tab.until("everyone", |seen| seen.shown().as_ref() == truth).await;
        }
    }

    /// The damage is found and repaired although no user does anything.
    async fn assert_repaired(&mut self, damage: impl Fn(&mut RedisClient, &str)) {
        let mut client = self.redis.client();
        damage(&mut client, &self.session);
        let damaged = Instant::now();
        eventually("it is intact again", || self.is_intact(&mut client));
        eprintln!("intact after {:.1?}", damaged.elapsed());
        self.assert_nothing_announced().await;
    }

    /// A user joins at once, on a node that has not found the damage yet.
    async fn assert_repaired_by_a_join(&mut self, node: usize, damage: impl Fn(&mut RedisClient, &str)) {
        let mut client = self.redis.client();
        self.joins += 1;
        let user = format!("guest-{}", self.joins);
        damage(&mut client, &self.session);
        let tab = Tab::open(&self.nodes[node], &self.session, &user, "admin").await;
        self.truth.join(&self.session, &user, "admin");
        for other in &self.tabs {
            other.until("the join", |seen| seen.joins(&user) == 1).await;
        }
        tab.until("its own join", |seen| seen.joins(&user) == 1).await;
        self.tabs.push(tab);
        eventually("it is intact again", || self.is_intact(&mut client));
        self.assert_nothing_announced().await;
    }

    /// Users in Redis and by both nodes' REST, and totals, are right.
    fn is_intact(&self, client: &mut RedisClient) -> bool {
        let users = &self.truth.0[&self.session];
        let is_listed = self
            .nodes
            .iter()
            .all(|node| rest(node, &self.session).as_ref() == Some(users));
        let stored = client.ask(&["TYPE", &users_key(&self.session)]);
        if !is_listed || stored != Resp::Text("hash".into()) {
            return false;
        }
        let values = client.hgetall(&users_key(&self.session));
        let is_held = users.keys().all(|user| {
            let value = values
                .get(user)
                .and_then(|value| serde_json::from_str::<Value>(value).ok());
            value.is_some_and(|value| value["nodes"].as_object().is_some_and(|nodes| nodes.len() == 1))
        });
        if client.ask(&["TYPE", &meta_key(&self.session)]) != Resp::Text("hash".into()) {
            return false;
        }
        let meta = client.hgetall(&meta_key(&self.session));
        let total = |kind: &str| users.values().filter(|of| *of == kind).count().to_string();
        is_held
            && ["customer", "agent", "admin"].into_iter().all(|kind| {
                let stored = meta.get(&format!("total_{kind}"));
                stored.map_or("0", String::as_str) == total(kind)
            })
    }

    /// False leaves would have been announced by now, and real ones still are.
    async fn assert_nothing_announced(&mut self) {
        let name = unique("leaves");
        let leaver = Tab::join(&self.nodes[0], &self.session, &name, "admin").await;
        for tab in &self.tabs {
            tab.until("a join", |seen| seen.joins(&name) == 1).await;
        }
        leaver.close().await;
        for tab in &self.tabs {
            tab.until("a true leave", |seen| seen.leaves(&name) == 1).await;
        }
        let tabs: Vec<_> = self.tabs.iter().collect();
        fence(&self.nodes(), &self.session, &tabs).await;
        for tab in &self.tabs {
            tab.look(|seen| {
                for user in self.truth.0[&self.session].keys() {
                    assert_eq!(
                        seen.leaves(user),
                        0,
                        "{user} has not left, but {} received a leave",
                        tab.user
                    );
                    assert!(
                        seen.joins(user) <= 1,
                        "joins of {user} that {} received",
                        tab.user
                    );
                }
                // Nor was anybody shown a list without them once they were in it.
                let mut known = std::collections::BTreeSet::new();
                for status in &seen.statuses {
                    let users = status["connection_status"]["users"].as_object().expect("users");
                    let missing: Vec<_> = known.iter().filter(|user| !users.contains_key(*user)).collect();
                    assert!(missing.is_empty(), "{missing:?} were not shown to {}", tab.user);
                    let stays = |user: &&String| self.truth.0[&self.session].contains_key(*user);
                    known.extend(users.keys().filter(stays).cloned());
                }
            });
        }
        self.truth.still(&self.nodes());
        self.await_all_announced().await;
    }
}

fn meta_key(session: &str) -> String {
    format!("{{{}}}:meta", users_key(session))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_keys_are_written_again() {
    let mut scenario = DamageScenario::start().await;
    scenario
        .assert_repaired(|redis, session| {
            redis.command(&["DEL", &users_key(session)]);
        })
        .await;
    scenario
        .assert_repaired(|redis, session| {
            redis.command(&["DEL", &users_key(session), &meta_key(session)]);
        })
        .await;
    scenario
        .assert_repaired(|redis, session| {
            redis.command(&["DEL", &meta_key(session)]);
        })
        .await;
    scenario
        .assert_repaired(|redis, session| {
            redis.command(&["HDEL", &users_key(session), "ann", "dan"]);
        })
        .await;
    let repairs: f64 = scenario
        .nodes
        .iter()
        .map(|node| node.metric("livechat_presence_repairs_total"))
        .sum();
    assert!(repairs >= 4.0, "{repairs} repairs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_after_the_keys_were_deleted_announces_no_leave() {
    let mut scenario = DamageScenario::start().await;
    for node in [0, 1] {
        scenario
            .assert_repaired_by_a_join(node, |redis, session| {
                redis.command(&["DEL", &users_key(session), &meta_key(session)]);
            })
            .await;
    }
    scenario
        .assert_repaired_by_a_join(0, |redis, session| {
            redis.command(&["DEL", &users_key(session)]);
        })
        .await;
    scenario
        .assert_repaired_by_a_join(1, |redis, session| {
            redis.command(&["HDEL", &users_key(session), "ann", "ben"]);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_values_under_a_users_id_are_replaced() {
    let mut scenario = DamageScenario::start().await;
    let nan = r#"{"user_id":"ben","user_type":"agent","joined_at":"2026-01-01T00:00:00.000Z","x":NaN}"#;
    let count = r#"{"user_id":"ann","user_type":"customer","joined_at":"2026-01-01T00:00:00.000Z","nodes":{"n+1":NaN}}"#;
    scenario
        .assert_repaired(|redis, session| {
            let values = ["ann", count, "ben", nan, "cid", "[1,2]", "dan", "junk"];
            redis.command(&[["HSET", &users_key(session)].as_slice(), &values].concat());
        })
        .await;
    for (node, user, value) in [
        (1, "ben", nan),
        (0, "dan", "[1,2]"),
        (1, "ben", "{}"),
        (0, "ann", count),
    ] {
        eprintln!("{value}");
        scenario
            .assert_repaired_by_a_join(node, |redis, session| {
                redis.command(&["HSET", &users_key(session), user, value]);
            })
            .await;
    }
    // What is nobody's here hides nobody, and holds up nothing for long.
    scenario
        .redis
        .client()
        .command(&["HSET", &users_key(&scenario.session), "nobody", "[1,2]"]);
    scenario.assert_nothing_announced().await;
    scenario.assert_nothing_announced().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_another_type_are_replaced() {
    let mut scenario = DamageScenario::start().await;
    let overwrite = |key: fn(&str) -> String| {
        move |redis: &mut RedisClient, session: &str| {
            redis.command(&["SET", &key(session), "somebody else's"]);
        }
    };
    scenario.assert_repaired(overwrite(users_key)).await;
    scenario.assert_repaired(overwrite(meta_key)).await;
    scenario.assert_repaired_by_a_join(0, overwrite(users_key)).await;
    scenario.assert_repaired_by_a_join(1, overwrite(meta_key)).await;
    // Those of the nodes, too: without them no death would be noticed.
    let mut client = scenario.redis.client();
    let mut lists = Vec::new();
    eventually("a list of each node", || {
        lists = client.keys("livechat:node:*:sessions");
        lists.len() == 2
    });
    for key in lists {
        client.command(&["SET", &key, "somebody else's"]);
        eventually("a list again", || client.ask(&["ZCARD", &key]) == Resp::Number(1));
    }
    for key in [
        "{livechat:nodes}:claims",
        "{livechat:nodes}:writing",
        "{livechat:nodes}:left",
    ] {
        client.command(&["SET", key, "somebody else's"]);
    }
    scenario.assert_nothing_announced().await;
    client.command(&["SET", "livechat:nodes", "somebody else's"]);
    eventually("leases again", || {
        client.ask(&["ZCARD", "livechat:nodes"]) == Resp::Number(2)
    });
    scenario.truth.agreed(&scenario.nodes()).await;
}

/// Presence is not safe in this Redis: health and one line of the log say so.
fn named_in_health(redis: &PrivateRedis, words: &[&str]) {
    let node = Server::builder().env("REDIS_URL", redis.url()).start_listening();
    for word in words {
        eventually(word, || {
            let health = node.health();
            health["redis"]["detail"]
                .as_str()
                .is_some_and(|detail| detail.contains(word))
        });
        node.wait_log(word);
    }
    let warnings = node.log();
    let warnings = warnings
        .iter()
        .filter(|line| line.contains("WARN") && line.contains(words[0]));
    assert_eq!(warnings.count(), 1, "{:#?}", node.log());
}

#[test]
fn health_warns_of_a_redis_that_may_lose_data() {
    named_in_health(
        &PrivateRedis::started_with("--maxmemory-policy allkeys-lru"),
        &["allkeys-lru", "noeviction"],
    );
    named_in_health(
        &PrivateRedis::started_with("--replicaof 127.0.0.1 1"),
        &["replica"],
    );
    named_in_health(
        &PrivateRedis::started_with("--cluster-enabled yes"),
        &["Redis Cluster"],
    );
}

/// INFO is forbidden: there is no warning, and everything works.
#[test]
fn presence_works_where_info_is_forbidden() {
    let redis = PrivateRedis::started_with("--maxmemory-policy allkeys-lru");
    redis
        .client()
        .command(&["ACL", "SETUSER", "default", "-info", "-config"]);
    let node = Server::builder().env("REDIS_URL", redis.url()).start();
    eventually("Redis is used", || node.health()["redis"]["status"] == "ok");
    assert!(
        node.health()["redis"].get("detail").is_none(),
        "{}",
        node.health()
    );
}

/// A whole cycle of checks over an intact session announces nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_of_intact_keys_change_nothing() {
    let mut scenario = DamageScenario::start().await;
    let mut client = scenario.redis.client();
    let before = client.hgetall(&meta_key(&scenario.session));
    let pipelines = |scenario: &DamageScenario| scenario.nodes[0].metric("livechat_redis_pipelines_total");
    let (first, since) = (pipelines(&scenario), Instant::now());
    // A heartbeat a second, and a cycle is five.
    eventually("some cycles", || pipelines(&scenario) >= first + 12.0);
    assert!(since.elapsed() < OUTAGE && since.elapsed() > Duration::from_secs(5));
    assert_eq!(client.hgetall(&meta_key(&scenario.session)), before);
    scenario.assert_nothing_announced().await;
    for node in &scenario.nodes {
        assert_eq!(node.metric("livechat_presence_repairs_total") as u64, 0);
    }
}
