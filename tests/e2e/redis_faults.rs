//! Redis dies, hangs or loses data: chat goes on, no false leave is announced, and presence soon recovers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::redis_cluster::fault_scenario::{FaultScenario, degraded, median, redis_status, rest_503};
use crate::redis_cluster::{Cluster, Seen, Tab, Truth, fence, users_of};
use crate::services::{OUTAGE, PrivateRedis, Service, unique, users_key};
use crate::support::eventually;

async fn outage(begins: fn(&Service), ends: fn(&Service), length: Duration) {
    let redis = PrivateRedis::started();
    let mut scenario = FaultScenario::start(&redis.url()).await;
    let mut before = scenario.run_for(Duration::from_secs(4)).await;
    scenario.await_consistent().await;

    begins(&redis);
    let down = Instant::now();
    rest_503(&scenario.nodes(), scenario.a_session());
    let mut during = scenario.run_for(Duration::from_secs(1)).await;
    let told = degraded(&scenario.nodes(), down);
    while down.elapsed() < length {
        during.extend(scenario.run_for(Duration::from_secs(1)).await);
        for node in scenario.nodes() {
            assert_ne!(redis_status(node), "ok", "Redis is still away");
        }
    }
    rest_503(&scenario.nodes(), scenario.a_session());
    scenario.assert_no_false_events();
    let (number, before, during) = (during.len(), median(&mut before), median(&mut during));
    eprintln!(
        "down for {:.1?}, degraded after {told:.1?}; a message took {before:.1?} before, {during:.1?} during ({number})",
        down.elapsed()
    );
    assert!(
        during < 3 * before + Duration::from_millis(600),
        "a message (the median) took {before:?} before the outage, {during:?} during it"
    );

    ends(&redis);
    let mut client = redis.client();
    scenario.await_rewritten(&mut client).await;
    scenario.assert_no_false_events();
    scenario.assert_recovered(&mut client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_killed_redis_that_restarts_empty_is_refilled() {
    outage(Service::kill, Service::start, Duration::from_secs(20)).await;
}

/// For longer than PRESENCE_TTL: when it goes on, every lease has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn presence_resumes_after_redis_was_stopped() {
    outage(Service::pause, Service::resume, Duration::from_secs(8)).await;
}

/// The nodes come back to it at different times, some of them a whole retry after the other: who is first must not show what only
/// it has written.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn repeated_losses_of_data_announce_no_false_leave() {
    let redis = PrivateRedis::started();
    let mut scenario = FaultScenario::start(&redis.url()).await;
    for _ in 0..6 {
        redis.kill();
        scenario
            .run_for(Duration::from_millis(fastrand::u64(1_500..2_500)))
            .await;
        redis.start();
        scenario.await_rewritten(&mut redis.client()).await;
        scenario.await_consistent().await;
        scenario.assert_no_false_events();
    }
    scenario.assert_recovered(&mut redis.client()).await;
}

/// When a Redis that was stopped goes on, the lease of every node has ended: who is the first to speak to it must not take the
/// others for dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_reconnects_late_is_not_declared_dead() {
    let redis = PrivateRedis::started();
    let mut client = redis.client();
    // Longer than the outage, for a busy machine; a lease is half of it.
    let mut scenario = FaultScenario::start_with_ttl(&redis.url(), "8s").await;
    let [early, late] = scenario.nodes();
    // Now, not later: a Redis that goes on reads first what was sent to it while it was stopped, and a heartbeat is a heartbeat.
    late.signal("STOP");
    redis.pause();
    let paused = Instant::now();
    degraded(&[early], paused);
    tokio::time::sleep(Duration::from_secs(5).saturating_sub(paused.elapsed())).await;
    redis.resume();
    eventually("the first is well", || redis_status(early) == "ok");
    late.signal("CONT");
    scenario.await_rewritten(&mut client).await;
    scenario.assert_no_false_events();
    scenario.assert_recovered(&mut client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flushed_redis_is_refilled() {
    let redis = PrivateRedis::started();
    let mut client = redis.client();
    let mut scenario = FaultScenario::start(&redis.url()).await;
    for _ in 0..3 {
        client.flushall();
        let flushed = Instant::now();
        scenario.await_consistent().await;
        let right = flushed.elapsed();
        assert!(
            right < Duration::from_secs(40),
            "right again only {right:?} after FLUSHALL"
        );
        scenario.assert_no_false_events();
    }
    // Forgotten in the middle of changes.
    for _ in 0..3 {
        scenario.run_for(Duration::from_millis(500)).await;
        client.flushall();
    }
    scenario.run_for(Duration::from_secs(1)).await;
    scenario.assert_recovered(&mut client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_removes_the_nodes_users_and_lease_from_redis() {
    const USERS: usize = 20;
    let redis = PrivateRedis::started();
    let cluster = Cluster::on(&redis.url());
    let name = unique("node-leaving");
    // PRESENCE_TTL is a minute: what is gone at the exit was not reaped.
    let leaving = cluster
        .node(&name)
        .env("DRAIN_TIMEOUT", "30s")
        .env("PRESENCE_GRACE", "0s")
        .start();
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

    // A user whose join it has not seen yet would not be announced as leaving.
    let joins = |seen: &Seen| (0..USERS).all(|number| seen.joins(&format!("user-{number}")) > 0);
    watcher.until("every join", joins).await;
    leaving.signal("TERM");
    let code = tokio::task::block_in_place(|| leaving.wait_exit(OUTAGE));
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
    assert_eq!(users_of(&staying.connection_status(&own)), BTreeMap::new());
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
