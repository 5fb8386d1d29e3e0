//! Redis answers with refusals: presence waits, chat does not.

use std::time::{Duration, Instant};

use crate::redis_cluster::fault_scenario::{FaultScenario, degraded, redis_status, rest_503, well};
use crate::redis_cluster::{Cluster, Tab, Truth};
use crate::services::{PrivateRedis, RedisClient, Resp, unique};
use crate::support::{Http, Server, eventually};

/// Asked to write, it says this.
#[track_caller]
fn refuses(client: &mut RedisClient, code: &str) {
    let answer = client.ask(&["SET", "x", "y"]);
    assert!(
        matches!(&answer, Resp::Error(error) if error.starts_with(code)),
        "{answer:?}, not {code}"
    );
}

/// It takes no more writes: people come, go and talk meanwhile.
async fn without_writes(code: &str, begins: &[&str], ends: &[&str]) {
    let redis = PrivateRedis::started();
    let mut client = redis.client();
    let mut scenario = FaultScenario::start(&redis.url()).await;

    client.command(begins);
    let since = Instant::now();
    refuses(&mut client, code);
    scenario.run_for(Duration::from_secs(2)).await;
    let told = degraded(&scenario.nodes(), since);
    scenario.assert_rest_never_wrong(Duration::from_secs(3));
    scenario.run_for(Duration::from_secs(1)).await;
    for node in scenario.nodes() {
        assert_ne!(redis_status(node), "ok", "Redis takes no writes");
    }
    scenario.assert_no_false_events();
    eprintln!("{code}: degraded after {told:.1?}");

    client.command(ends);
    scenario.await_rewritten(&mut client).await;
    scenario.assert_no_false_events();
    scenario.assert_recovered(&mut client).await;
}

/// A master that is not there: it is a replica now.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn presence_waits_for_a_redis_that_refuses_writes() {
    let begins = ["REPLICAOF", "127.0.0.1", "1"];
    without_writes("READONLY", &begins, &["REPLICAOF", "NO", "ONE"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn presence_waits_for_a_redis_that_is_out_of_memory() {
    let [begins, ends] = ["1", "0"].map(|bytes| ["CONFIG", "SET", "maxmemory", bytes]);
    without_writes("OOM", &begins, &ends).await;
}

/// What takes a while to load, saved.
fn save_much(client: &mut RedisClient) {
    let fill = "for n = 1, 2000 do redis.call('SET', 'filler:' .. n, string.rep('x', 1000)) end";
    client.command(&["CONFIG", "SET", "rdbcompression", "no"]);
    client.command(&["EVAL", fill, "0"]);
    client.command(&["SAVE"]);
}

/// Each key takes 20 ms to load, and commands are looked at after each.
fn start_loading(redis: &PrivateRedis) -> RedisClient {
    redis.start_loading("--key-load-delay 20000 --loading-process-events-interval-bytes 1024");
    let mut client = redis.client();
    refuses(&mut client, "LOADING");
    client
}

/// The rest at once, once it has been seen to be still at it.
fn finish_loading(client: &mut RedisClient) {
    refuses(client, "LOADING");
    client.command(&["CONFIG", "SET", "key-load-delay", "0"]);
    while matches!(client.ask(&["PING"]), Resp::Error(_)) {}
}

/// What it loads is old: some who are in it have gone since, and some have come.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn presence_waits_while_redis_loads_an_old_state() {
    let redis = PrivateRedis::started();
    let mut scenario = FaultScenario::start(&redis.url()).await;
    scenario.run_for(Duration::from_secs(1)).await;
    scenario.await_consistent().await;
    save_much(&mut redis.client());
    scenario.run_for(Duration::from_secs(1)).await;
    scenario.await_consistent().await;

    redis.kill();
    let since = Instant::now();
    let mut client = start_loading(&redis);
    rest_503(&scenario.nodes(), scenario.a_session());
    scenario.run_for(Duration::from_secs(2)).await;
    degraded(&scenario.nodes(), since);
    scenario.run_for(Duration::from_secs(1)).await;
    rest_503(&scenario.nodes(), scenario.a_session());
    scenario.assert_no_false_events();

    finish_loading(&mut client);
    scenario.await_rewritten(&mut client).await;
    scenario.assert_no_false_events();
    scenario.assert_recovered(&mut client).await;
}

/// A node starts while its Redis is of no use, works without it, and gets everything right when it is mended.
async fn starts_without(redis: &str, mend: impl FnOnce(&Server)) -> Server {
    let node = Cluster::on(redis).node("node-a");
    let node = node.env("LOG_LEVEL", "debug").env("ADMIN_ADDR", "127.0.0.1:0");
    let server = node.start_listening();
    let started = Instant::now();
    assert_eq!(server.get("/ready").status, 503, "Redis has not answered yet");
    server.wait_ready();
    let waited = started.elapsed();
    eprintln!("ready without Redis after {waited:.1?}");
    // The contract says 10 s; the rest is for a busy machine.
    assert!(
        waited < Duration::from_secs(40),
        "ready without Redis after {waited:?}"
    );
    degraded(&[&server], Instant::now());

    let session = unique("session");
    rest_503(&[&server], &session);
    let ann = Tab::open(&server, &session, "ann", "customer").await;
    let ben = Tab::open(&server, &session, "ben", "agent").await;
    // A node is ready after 10 s with or without Kafka.
    eventually("Kafka is ok", || server.health()["kafka"]["status"] == "ok");
    ann.say("hello").await;
    ben.until("the message", |seen| seen.has_text("hello")).await;
    mend(&server);
    well(&[&server]).await;
    let mut truth = Truth::default();
    truth.join(&session, "ann", "customer");
    truth.join(&session, "ben", "agent");
    truth.agreed(&[&server]).await;
    for tab in [&ann, &ben] {
        let all = Some(&truth.0[&session]);
        tab.until("everyone", |seen| seen.shown().as_ref() == all).await;
    }

    // Named once in a while, not with each attempt.
    let log = server.log();
    let is_warning = |line: &&String| line.contains("WARN") || line.contains("ERROR");
    let warnings = log
        .iter()
        .filter(is_warning)
        .filter(|line| line.to_lowercase().contains("redis"));
    assert!((1..=30).contains(&warnings.count()), "warnings: {log:#?}");
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_starts_after_the_node_is_filled() {
    let redis = PrivateRedis::new();
    starts_without(&redis.url(), |_| redis.start()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_can_start_while_redis_is_loading() {
    let redis = PrivateRedis::started();
    save_much(&mut redis.client());
    redis.kill();
    let mut client = start_loading(&redis);
    starts_without(&redis.url(), |_| finish_loading(&mut client)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_suspends_presence_and_is_never_logged() {
    const RIGHT: &str = "right-horse-battery";
    const WRONG: &str = "wrong-horse-staple";
    let redis = PrivateRedis::started_with("--requirepass right-horse-battery");
    let mut told = Vec::new();
    let server = starts_without(&redis.url_with(WRONG), |server| {
        told.push(Http::get(server.admin_addr(), "/metrics").text().to_owned());
        told.push(server.get("/health").text().to_owned());
        // The operator mends it: the server needs no restart.
        let mut client = redis.client();
        client.command(&["AUTH", RIGHT]);
        client.command(&["CONFIG", "SET", "requirepass", WRONG]);
    })
    .await;
    for text in server.log().iter().chain(&told) {
        for secret in [WRONG, RIGHT] {
            assert!(!text.contains(secret), "the password: {text}");
        }
    }
}
