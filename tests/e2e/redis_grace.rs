//! Clients that move from node to node: that is not announced, and a user who does not return is announced once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;

use crate::redis_cluster::{Cluster, Seen, Tab, Truth, fence, leaves_in_the_log, users_of};
use crate::services::{OUTAGE, PrivateRedis, redis_url, unique};
use crate::support::{Server, eventually, eventually_async};

/// Longer than a busy machine needs for a reconnect.
const LONG: &str = "15s";

fn grace(cluster: &Cluster, name: &str, grace: &str) -> crate::support::ServerBuilder {
    cluster
        .node(name)
        .env("PRESENCE_GRACE", grace)
        .env("DRAIN_TIMEOUT", "60s")
}

/// Waits for the drain's close of each, and connects to the other node at once.
async fn move_to(node: &Server, session: &str, tabs: Vec<Tab>) -> Vec<Tab> {
    let moves = tabs.into_iter().map(async |tab| {
        tab.until("the drain", |seen| seen.ended.is_some()).await;
        assert_eq!(tab.look(|seen| seen.ended), Some(Some(1001)));
        Tab::open(node, session, &tab.user, "customer").await
    });
    join_all(moves).await
}

fn counts(tab: &Tab, user: &str) -> (usize, usize) {
    tab.look(|seen| (seen.joins(user), seen.leaves(user)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_drain_announces_only_users_who_do_not_return() {
    const MOVING: usize = 10;
    const LOST: usize = 10;
    let redis = PrivateRedis::started();
    let cluster = Cluster::on(&redis.url());
    let [a, b] = ["node-a", "node-b"].map(|name| grace(&cluster, name, LONG).start());
    let session = unique("session");
    let watcher = Tab::join(&b, &session, "watcher", "agent").await;
    let names = |kind: &str, count: usize| (0..count).map(|n| format!("{kind}-{n}")).collect::<Vec<_>>();
    let (moving, lost) = (names("moves", MOVING), names("lost", LOST));
    let open = async |users: &[String]| {
        join_all(users.iter().map(|user| Tab::join(&a, &session, user, "customer"))).await
    };
    let (tabs, lost_tabs) = (open(&moving).await, open(&lost).await);
    for user in moving.iter().chain(&lost) {
        watcher.until("all joins", |seen| seen.joins(user) == 1).await;
    }
    a.signal("TERM");
    let told = Instant::now();
    let tabs = move_to(&b, &session, tabs).await;
    let code = tokio::task::block_in_place(|| a.wait_exit(OUTAGE));
    assert_eq!(code, Some(0), "the exit status");
    // Handed over: all are still listed by the node that lives.
    let listed = users_of(&b.connection_status(&session));
    assert!(lost.iter().all(|user| listed.contains_key(user)), "{listed:?}");
    for user in &lost {
        watcher.until("who is lost", |seen| seen.leaves(user) > 0).await;
    }
    assert!(
        told.elapsed() >= Duration::from_secs(14),
        "after {:?}",
        told.elapsed()
    );
    fence(&[&b], &session, &[&watcher, &tabs[0]]).await;
    for user in &moving {
        assert_eq!(counts(&watcher, user), (1, 0), "{user} was never gone");
        let snapshots = |seen: &Seen| {
            let all = seen.statuses.iter();
            all.filter(|status| status["connection_status"]["users"][user].is_null())
                .count()
        };
        let before = watcher.look(|seen| {
            let first = seen.statuses.iter();
            first
                .take_while(|status| status["connection_status"]["users"][user].is_null())
                .count()
        });
        assert_eq!(watcher.look(snapshots), before, "{user} was always listed");
    }
    for user in &lost {
        assert_eq!(counts(&watcher, user), (1, 1), "{user}");
        assert_eq!(
            counts(&tabs[0], user).1,
            1,
            "leaves of {user} that a client that moved received"
        );
    }
    // They came to a session in which they were: one snapshot, and no events of their own.
    for tab in &tabs {
        tab.look(|seen| {
            assert_eq!(seen.statuses[0]["events"], json!([]), "{}", seen.statuses[0]);
            assert_eq!((seen.joins(&tab.user), seen.leaves(&tab.user)), (0, 0));
        });
    }
    let leaves = leaves_in_the_log(&cluster.topics);
    for user in &lost {
        let ids: BTreeSet<_> = leaves[&(session.clone(), user.clone())].iter().collect();
        assert_eq!(ids.len(), 1, "one leave of {user}: {ids:?}");
    }
    assert!(
        moving
            .iter()
            .all(|user| !leaves.contains_key(&(session.clone(), user.clone())))
    );
    let mut client = redis.client();
    eventually("nothing of the node is left", || {
        client.keys_with("node-a").is_empty()
    });
    eventually("one node", || client.zrange("livechat:nodes").len() == 1);
    drop((lost_tabs, tabs));
}

/// Each node is replaced, one after the other, under its name.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rolling_restart_of_two_nodes_announces_nothing() {
    const USERS: usize = 12;
    let cluster = Cluster::on(&redis_url());
    let [a, b] = ["node-a", "node-b"].map(|name| grace(&cluster, name, LONG).start());
    let session = unique("session");
    let mut truth = Truth::default();
    let (mut on_a, mut on_b) = (Vec::new(), Vec::new());
    for number in 0..USERS {
        let user = format!("user-{number}");
        let (node, tabs) = if number % 2 == 0 {
            (&a, &mut on_a)
        } else {
            (&b, &mut on_b)
        };
        tabs.push(Tab::join(node, &session, &user, "customer").await);
        truth.join(&session, &user, "customer");
    }
    truth.agreed(&[&a, &b]).await;
    let joined_at = a.connection_status(&session);
    for tab in on_a.iter().chain(&on_b) {
        let all = Some(&truth.0[&session]);
        tab.until("everyone", |seen| seen.shown().as_ref() == all).await;
    }

    a.signal("TERM");
    on_b.extend(move_to(&b, &session, on_a).await);
    tokio::task::block_in_place(|| a.wait_exit(OUTAGE));
    assert_eq!(b.connection_status(&session), joined_at, "without the first");
    let a = grace(&cluster, "node-a", LONG).start();
    assert_eq!(a.connection_status(&session), joined_at, "with the first again");
    b.signal("TERM");
    let tabs = move_to(&a, &session, on_b).await;
    tokio::task::block_in_place(|| b.wait_exit(OUTAGE));
    let b = grace(&cluster, "node-b", LONG).start();
    assert_eq!(b.connection_status(&session), joined_at, "with both again");

    let tabs: Vec<_> = tabs.iter().collect();
    // What the first node handed over is taken back by now, or will be behind the next one's fence.
    eventually_async("one node holds each", async || {
        let mut redis = crate::services::RedisClient::connect(&redis_url());
        (0..USERS).all(|number| {
            let user = redis.user(&session, &format!("user-{number}")).expect("a user");
            user["nodes"].as_object().is_some_and(|nodes| nodes.len() == 1)
        })
    })
    .await;
    fence(&[&a, &b], &session, &tabs).await;
    for tab in &tabs {
        for number in 0..USERS {
            assert_eq!(
                counts(tab, &format!("user-{number}")),
                (0, 0),
                "received by {}",
                tab.user
            );
        }
    }
    truth.still(&[&a, &b]);
}

/// Nobody is left to wait for anybody: nothing stays in Redis, whichever node is the last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_nodes_stop_nobody_stays_in_redis() {
    let redis = PrivateRedis::started();
    let cluster = Cluster::on(&redis.url());
    let nodes = ["node-a", "node-b", "node-c"].map(|name| grace(&cluster, name, "60s").start());
    let session = unique("session");
    let mut tabs = Vec::new();
    for (number, node) in nodes.iter().enumerate() {
        tabs.push(Tab::join(node, &session, &format!("user-{number}"), "customer").await);
    }
    nodes.iter().for_each(|node| node.signal("TERM"));
    for node in &nodes {
        let code = tokio::task::block_in_place(|| node.wait_exit(OUTAGE));
        assert_eq!(code, Some(0), "the exit status");
    }
    assert_eq!(redis.client().keys("*"), ["{livechat:nodes}:epoch"]);
    let leaves = leaves_in_the_log(&cluster.topics);
    assert_eq!(leaves.len(), 3, "each is announced: {leaves:?}");
}

/// Redis stands still for longer than the grace: who has come back to the other node meanwhile was never gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grace_is_paused_while_redis_is_unavailable() {
    let redis = PrivateRedis::started();
    let cluster = Cluster::on(&redis.url());
    let [a, b] = ["node-a", "node-b"].map(|name| grace(&cluster, name, "4s").start());
    let session = unique("session");
    let watcher = Tab::join(&b, &session, "watcher", "agent").await;
    let back = Tab::join(&a, &session, "back", "customer").await;
    let gone = Tab::join(&a, &session, "gone", "customer").await;
    for user in ["back", "gone"] {
        watcher.until("both joins", |seen| seen.joins(user) == 1).await;
    }
    redis.pause();
    back.close().await;
    gone.close().await;
    tokio::time::sleep(Duration::from_secs(6)).await; // longer than the grace
    let _back = Tab::open(&b, &session, "back", "customer").await;
    redis.resume();
    watcher.until("who is gone", |seen| seen.leaves("gone") > 0).await;
    fence(&[&a, &b], &session, &[&watcher]).await;
    assert_eq!(counts(&watcher, "back"), (1, 0));
    assert_eq!(counts(&watcher, "gone"), (1, 1));
}

/// It forgets everything while somebody's grace is pending.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grace_survives_a_loss_of_data() {
    let redis = PrivateRedis::started();
    let cluster = Cluster::on(&redis.url());
    let [a, b] = ["node-a", "node-b"].map(|name| grace(&cluster, name, "10s").start());
    let session = unique("session");
    let watcher = Tab::join(&b, &session, "watcher", "agent").await;
    let back = Tab::join(&a, &session, "back", "customer").await;
    let gone = Tab::join(&a, &session, "gone", "customer").await;
    for user in ["back", "gone"] {
        watcher.until("both joins", |seen| seen.joins(user) == 1).await;
    }
    back.close().await;
    gone.close().await;
    redis.kill();
    redis.start();
    let mut client = redis.client();
    eventually("it is filled again", || {
        client.hgetall(&crate::services::users_key(&session)).len() == 3
    });
    let _back = Tab::open(&b, &session, "back", "customer").await;
    watcher.until("who is gone", |seen| seen.leaves("gone") > 0).await;
    fence(&[&a, &b], &session, &[&watcher]).await;
    assert_eq!(counts(&watcher, "back"), (1, 0));
    assert_eq!(counts(&watcher, "gone"), (1, 1));
}

/// What one is in the grace says nothing against what one is now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_returns_on_another_node_as_another_type_has_that_type() {
    let cluster = Cluster::on(&redis_url());
    let [a, b] = ["node-a", "node-b"].map(|name| grace(&cluster, name, LONG).start());
    let session = unique("session");
    let watcher = Tab::join(&a, &session, "watcher", "admin").await;
    let ann = Tab::join(&a, &session, "ann", "customer").await;
    ann.close().await;
    eventually("her grace is in Redis", || {
        let user = crate::services::RedisClient::connect(&redis_url()).user(&session, "ann");
        let user = user.expect("ann");
        user["nodes"]
            .as_object()
            .is_some_and(|nodes| nodes.values().all(|count| *count == 0))
    });
    let mut truth = Truth::default();
    truth.join(&session, "watcher", "admin");
    truth.join(&session, "ann", "agent");
    let ann = Tab::open(&b, &session, "ann", "agent").await;
    truth.agreed(&[&a, &b]).await;
    let status = a.connection_status(&session);
    assert_eq!(
        (&status["total_customer"], &status["total_agent"]),
        (&json!(0), &json!(1))
    );
    // Those on the other node are shown it, though nobody has come or gone.
    let all = Some(&truth.0[&session]);
    watcher
        .until("her new type", |seen| seen.shown().as_ref() == all)
        .await;
    fence(&[&a, &b], &session, &[&watcher, &ann]).await;
    assert_eq!(counts(&watcher, "ann"), (1, 0));
}

/// A node without a grace takes its users out at once, also where others have one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_grace_a_drain_is_announced_at_once() {
    let cluster = Cluster::on(&redis_url());
    let [a, b] =
        [("node-a", "0s"), ("node-b", LONG)].map(|(name, length)| grace(&cluster, name, length).start());
    let session = unique("session");
    let watcher = Tab::join(&b, &session, "watcher", "agent").await;
    let _tab = Tab::join(&a, &session, "ann", "customer").await;
    watcher.until("her join", |seen| seen.joins("ann") == 1).await;
    a.signal("TERM");
    tokio::task::block_in_place(|| a.wait_exit(OUTAGE));
    assert!(!users_of(&b.connection_status(&session)).contains_key("ann"));
    watcher.until("her leave", |seen| seen.leaves("ann") == 1).await;
}
