//! Without Kafka, whom backends disconnect is kept in Redis.

use crate::disconnect::{
    delete, disconnect, everyone_is_disconnected_soon, knock, stays_refused_if_disconnected_elsewhere,
};
use crate::publish::with_key;
use crate::services::{PrivateRedis, unique};
use crate::support::{Client, Server, ServerBuilder, eventually};

fn node(redis: &PrivateRedis, name: &str) -> ServerBuilder {
    with_key(Server::builder())
        .env("NODE_ID", name)
        .env("REDIS_URL", redis.url())
        .env("ADMIN_ADDR", "127.0.0.1:0")
}

fn is_ok(server: &Server) -> bool {
    server.health()["redis"]["status"] == "ok"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_reaches_all_nodes_of_a_redis_and_outlives_them() {
    let redis = PrivateRedis::started();
    let [a, b] = ["node-a", "node-b"].map(|name| node(&redis, name).start());
    let session = unique("session");
    everyone_is_disconnected_soon(&a, &b, &session).await;
    let mut there = Client::connect(&b, &session, "u", "customer").await;
    disconnect(&a, &session, "u", "?for=10m");
    assert_eq!(knock(&a, &session, "u", "").await, 403, "where it was asked for");
    assert_eq!(there.expect_close().await, 4403);
    assert_eq!(knock(&b, &session, "u", "").await, 403);
    let gone = unique("gone");
    disconnect(&b, &gone, "v", "");
    drop((a, b));
    let later = node(&redis, "node-a").start();
    assert_eq!(knock(&later, &session, "u", "").await, 403);
    assert_eq!(knock(&later, &gone, "v", "").await, 101, "it only closed");
    let ttl = redis.client().ttl("livechat:control");
    assert!((1..=90_000).contains(&ttl), "{ttl}");
    disconnect(&later, &session, "u", "?for=0s");
    assert_eq!(knock(&later, &session, "u", "").await, 101);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_has_lost_everything_gets_the_refusals_back() {
    let redis = PrivateRedis::started();
    let [a, b] = ["node-a", "node-b"].map(|name| node(&redis, name).start());
    let session = unique("session");
    disconnect(&a, &session, "u", "?for=10m");
    disconnect(&a, &session, "v", "?for=10m");
    disconnect(&a, &session, "v", "?for=0s");
    eventually("the other node knows it", || b.metric("livechat_refusals") == 1.0);
    redis.kill();
    eventually("Redis is missed", || !is_ok(&a) && !is_ok(&b));
    delete(&a, &format!("/api/session/{session}/users/w?for=10m")).assert_error(503);
    assert_eq!(knock(&a, &session, "u", "").await, 403, "known all the same");
    redis.start();
    eventually("Redis is back", || is_ok(&a) && is_ok(&b));
    eventually("the refusals are there again", || {
        redis.client().keys("livechat:control").len() == 1
    });
    drop((a, b));
    let later = node(&redis, "node-c").start();
    assert_eq!(knock(&later, &session, "u", "").await, 403);
    for user in ["v", "w"] {
        assert_eq!(knock(&later, &session, user, "").await, 101, "{user}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnect_without_a_time_leaves_the_refusal_of_another_node() {
    let redis = PrivateRedis::started();
    let nodes = ["node-a", "node-b"].map(|name| node(&redis, name).start());
    stays_refused_if_disconnected_elsewhere([&nodes[0], &nodes[1]]).await;
}

/// Redis comes back with what it had saved: what was asked for since then counts, and nothing happens twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_back_with_an_old_snapshot_changes_nothing() {
    let redis = PrivateRedis::started();
    let [a, b] = ["node-a", "node-b"].map(|name| node(&redis, name).start());
    let session = unique("session");
    let ask = |user, query| disconnect(&a, &session, user, query);
    ask("longer", "?for=1s");
    ask("over", "?for=1h");
    ask("refused", "?for=0s");
    ask("lifted", "?for=1h");
    ask("closed", "");
    redis.client().command(&["SAVE"]);
    ask("longer", "?for=1h");
    ask("over", "?for=1ms");
    ask("refused", "?for=1h");
    ask("lifted", "?for=0s");
    ask("new", "?for=1h");
    eventually("the other node knows it", || {
        b.metric("livechat_disconnects_total") >= 10.0
    });
    let mut open = Vec::new();
    for server in [&a, &b] {
        for user in ["closed", "lifted", "over"] {
            open.push(Client::connect(server, &session, user, "customer").await);
        }
    }
    redis.kill();
    eventually("Redis is missed", || !is_ok(&a) && !is_ok(&b));
    redis.start();
    eventually("Redis is back", || is_ok(&a) && is_ok(&b));
    let key = format!("{session}/lifted");
    eventually("the newest is there again", || {
        let entries = redis.client().command(&["XRANGE", "livechat:control", "-", "+"]);
        format!("{entries:?}").matches(&key).count() >= 2
    });
    // Who starts later agrees, and so do those who were there.
    let later = node(&redis, "node-c").start();
    for server in [&a, &b, &later] {
        disconnect(server, &session, "nobody", "");
        for (user, status) in [
            ("longer", 403),
            ("refused", 403),
            ("new", 403),
            ("lifted", 101),
            ("over", 101),
            ("closed", 101),
        ] {
            assert_eq!(knock(server, &session, user, "").await, status, "{user}");
        }
    }
    for client in &mut open {
        client.fence().await;
    }
}

/// Redis has lost everything just before a node starts: it waits for those who know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_with_an_emptied_redis_refuses_who_is_refused() {
    let redis = PrivateRedis::started();
    let known = node(&redis, "node-a").start();
    let mut refused = 0;
    for round in 0..6 {
        let session = unique("session");
        disconnect(&known, &session, "u", "?for=10m");
        redis.client().command(&["FLUSHALL"]);
        let name = format!("node-{round}");
        let late = node(&redis, &name).start();
        refused += usize::from(knock(&late, &session, "u", "").await == 403);
    }
    // On a busy machine one may be restored too late.
    assert!(refused >= 5, "{refused} of 6");
}

/// Redis answers, but the stream can't be read: health says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_cannot_be_read_shows_in_health() {
    let redis = PrivateRedis::started();
    redis
        .client()
        .command(&["SET", "livechat:control", "of another kind"]);
    let server = node(&redis, "node-a").start();
    eventually("health says so", || {
        let health = server.health();
        let detail = health["redis"]["detail"].as_str().unwrap_or_default();
        health["redis"]["status"] == "degraded" && detail.contains("refused")
    });
    server.wait_log("Redis does not give out who is refused");
    delete(&server, "/api/session/s/users/u").assert_error(503);
    redis.client().command(&["DEL", "livechat:control"]);
    eventually("and when it is over", || is_ok(&server));
    disconnect(&server, "s", "u", "?for=10m");
    assert_eq!(knock(&server, "s", "u", "").await, 403);
}
