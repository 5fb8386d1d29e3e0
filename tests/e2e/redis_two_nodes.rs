//! Presence of one session over two nodes: announced once, the same on both, and in Redis as other services read it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::redis_cluster::{Cluster, Tab, Truth, fence};
use crate::services::{RedisClient, redis_url, unique, users_key};
use crate::support::{Server, eventually_async};

/// A connection of its own for each look: nothing is kept from before.
fn redis() -> RedisClient {
    RedisClient::connect(&redis_url())
}

/// Only the side key with the version may be left of a session, and not for ever.
async fn is_gone(session: &str) {
    eventually_async("the session's keys are gone", async || {
        let mut redis = redis();
        redis
            .keys(&format!("*{session}*"))
            .iter()
            .all(|key| *key == format!("{{session:{session}:users}}:meta") && redis.ttl(key) != -1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_tabs_over_two_nodes_are_one_user() {
    let cluster = Cluster::on(&redis_url());
    let [a, b] = cluster.nodes(["node-a", "node-b"], None);
    let session = unique("session");
    let on_a = Tab::join(&a, &session, "watch-a", "agent").await;
    let on_b = Tab::join(&b, &session, "watch-b", "agent").await;
    on_a.until("the other watcher", |seen| seen.joins("watch-b") == 1)
        .await;

    let one = Tab::join(&a, &session, "ann", "customer").await;
    let two = Tab::open(&a, &session, "ann", "customer").await;
    let three = Tab::open(&b, &session, "ann", "customer").await;
    let mut truth = Truth::default();
    for (user, user_type) in [("watch-a", "agent"), ("watch-b", "agent"), ("ann", "customer")] {
        truth.join(&session, user, user_type);
    }
    truth.agreed(&[&a, &b]).await;
    let (from_a, from_b) = (a.connection_status(&session), b.connection_status(&session));
    assert_eq!(from_a, from_b, "REST of the two nodes");
    assert_eq!(
        (&from_a["total_customer"], &from_a["total_agent"]),
        (&json!(1), &json!(2))
    );

    eventually_async("Redis counts the tabs of each node", async || {
        counts(&session, "ann") == [("node-a".to_owned(), 2), ("node-b".to_owned(), 1)].into()
    })
    .await;
    let value = redis().user(&session, "ann").expect("ann in Redis");
    for field in ["user_id", "user_type", "joined_at"] {
        assert_eq!(value[field], from_a["users"]["ann"][field], "{field} of {value}");
    }

    // The first tab of each node goes: nobody hears of it, and the user stays.
    one.close().await;
    eventually_async("Redis counts one tab less", async || {
        counts(&session, "ann") == [("node-a".to_owned(), 1), ("node-b".to_owned(), 1)].into()
    })
    .await;
    two.close().await;
    eventually_async("Redis knows that the first node has none", async || {
        counts(&session, "ann") == [("node-b".to_owned(), 1)].into()
    })
    .await;
    fence(&[&a, &b], &session, &[&on_a, &on_b, &three]).await;
    for tab in [&on_a, &on_b] {
        tab.look(|seen| {
            assert_eq!(
                (seen.joins("ann"), seen.leaves("ann")),
                (1, 0),
                "before the last tab"
            )
        });
    }
    truth.still(&[&a, &b]);

    three.close().await;
    truth.leave(&session, "ann");
    for tab in [&on_a, &on_b] {
        tab.until("ann leaves", |seen| seen.leaves("ann") > 0).await;
    }
    truth.agreed(&[&a, &b]).await;
    fence(&[&a, &b], &session, &[&on_a, &on_b]).await;
    for tab in [&on_a, &on_b] {
        tab.look(|seen| assert_eq!((seen.joins("ann"), seen.leaves("ann")), (1, 1), "at the end"));
    }
    assert_eq!(redis().user(&session, "ann"), None);

    on_a.close().await;
    on_b.close().await;
    is_gone(&session).await;
    let empty = json!({"users": {}, "customer_connected": false, "agent_connected": false, "total_customer": 0, "total_agent": 0});
    assert_eq!(a.connection_status(&session), empty);
    assert_eq!(b.connection_status(&session), empty);
}

/// `nodes` of a user's value, without the boot ids.
fn counts(session: &str, user: &str) -> BTreeMap<String, u64> {
    let value = redis().user(session, user).unwrap_or_default();
    let nodes = value["nodes"].as_object().cloned().unwrap_or_default();
    let mut counts = BTreeMap::new();
    for (node, connections) in nodes {
        let name = ["node-a", "node-b"]
            .into_iter()
            .find(|name| node.starts_with(name));
        let name = name.unwrap_or_else(|| panic!("whose count is it? {value}"));
        assert!(node.len() > name.len(), "no boot id: {value}");
        *counts.entry(name.to_owned()).or_default() += connections.as_u64().expect("a number");
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_tab_on_another_node_gets_one_snapshot() {
    let cluster = Cluster::on(&redis_url());
    let [a, b] = cluster.nodes(["node-a", "node-b"], None);
    let session = unique("session");
    let on_a = Tab::join(&a, &session, "watch-a", "agent").await;
    let on_b = Tab::join(&b, &session, "watch-b", "agent").await;
    let first = Tab::join(&a, &session, "ann", "customer").await;
    for tab in [&on_a, &on_b, &first] {
        tab.until("ann and both watchers", |seen| {
            seen.shown().is_some_and(|users| users.len() == 3)
        })
        .await;
    }
    fence(&[&a, &b], &session, &[&on_a, &on_b, &first]).await;
    let before = [&on_a, &on_b, &first].map(|tab| tab.look(|seen| seen.statuses.len()));

    let second = Tab::open(&b, &session, "ann", "customer").await;
    second.until("a snapshot", |seen| !seen.statuses.is_empty()).await;
    let snapshot = second.look(|seen| seen.statuses[0].clone());
    assert_eq!(snapshot["events"], json!([]), "{snapshot}");
    for field in ["event_type", "event_user_id"] {
        assert!(snapshot.get(field).is_none(), "{field}: {snapshot}");
    }
    assert_eq!(snapshot["connection_status"], a.connection_status(&session));

    fence(&[&a, &b], &session, &[&on_a, &on_b, &first, &second]).await;
    let without_events = |statuses: &[Value]| {
        statuses
            .iter()
            .filter(|status| status["events"] == json!([]))
            .count()
    };
    assert_eq!(
        second.look(|seen| without_events(&seen.statuses)),
        1,
        "snapshots of the second tab"
    );
    for (tab, before) in [&on_a, &on_b, &first].into_iter().zip(before) {
        tab.look(|seen| {
            assert_eq!(
                without_events(&seen.statuses[before..]),
                0,
                "a snapshot that is not theirs"
            );
            assert_eq!((seen.joins("ann"), seen.leaves("ann")), (1, 0));
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_type_is_that_of_the_first_connection_on_any_node() {
    let cluster = Cluster::on(&redis_url());
    let [a, b] = cluster.nodes(["node-a", "node-b"], None);
    let session = unique("session");
    let first = Tab::join(&a, &session, "ann", "customer").await;
    let mut truth = Truth::default();
    truth.join(&session, "ann", "customer");
    truth.agreed(&[&a, &b]).await;

    let second = Tab::open(&b, &session, "ann", "agent").await;
    second.until("a snapshot", |seen| !seen.statuses.is_empty()).await;
    second.look(|seen| assert_eq!(seen.shown().unwrap()["ann"], "customer"));
    fence(&[&a, &b], &session, &[&first, &second]).await;
    truth.still(&[&a, &b]);
    for node in [&a, &b] {
        let status = node.connection_status(&session);
        assert_eq!(
            (&status["total_customer"], &status["total_agent"]),
            (&json!(1), &json!(0)),
            "{status}"
        );
    }
    assert_eq!(
        redis().user(&session, "ann").expect("ann in Redis")["user_type"],
        "customer"
    );

    // All gone: who comes then is the first again.
    first.close().await;
    second.close().await;
    is_gone(&session).await;
    let _again = Tab::join(&b, &session, "ann", "agent").await;
    truth.join(&session, "ann", "agent");
    truth.agreed(&[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_join_and_leave_of_a_crowd_is_announced_once_on_both_nodes() {
    const USERS: usize = 150;
    let cluster = Cluster::on(&redis_url());
    let [a, b] = cluster.nodes(["node-a", "node-b"], None);
    let session = unique("session");
    let on_a = Tab::join(&a, &session, "watch-a", "admin").await;
    let on_b = Tab::join(&b, &session, "watch-b", "admin").await;
    let name = |number: usize| format!("user-{number}");
    let mut truth = Truth::default();
    for watcher in ["watch-a", "watch-b"] {
        truth.join(&session, watcher, "admin");
    }

    // Ten at a time, as fast as they get in.
    let mut users = Vec::new();
    for numbers in (0..USERS).collect::<Vec<_>>().chunks(10) {
        let joins = numbers.iter().map(|number| {
            let node: &Server = if number % 2 == 0 { &a } else { &b };
            let session = &session;
            async move { Tab::open(node, session, &name(*number), "customer").await }
        });
        users.extend(futures_util::future::join_all(joins).await);
    }
    for number in 0..USERS {
        truth.join(&session, &name(number), "customer");
    }
    for tab in [&on_a, &on_b] {
        tab.until("every join", |seen| {
            (0..USERS).all(|number| seen.joins(&name(number)) > 0)
        })
        .await;
        tab.until("the exact totals", |seen| {
            seen.statuses.last().unwrap()["connection_status"]["total_customer"] == USERS
        })
        .await;
    }
    truth.agreed(&[&a, &b]).await;
    for node in [&a, &b] {
        assert_eq!(node.connection_status(&session)["total_customer"], USERS);
    }
    assert_eq!(redis().hgetall(&users_key(&session)).len(), USERS + 2);
    fence(&[&a, &b], &session, &[&on_a, &on_b]).await;
    for tab in [&on_a, &on_b] {
        tab.look(|seen| {
            for number in 0..USERS {
                let user = name(number);
                assert_eq!((seen.joins(&user), seen.leaves(&user)), (1, 0), "{user}");
            }
        });
    }

    futures_util::future::join_all(users.into_iter().map(Tab::close)).await;
    for number in 0..USERS {
        truth.leave(&session, &name(number));
    }
    for tab in [&on_a, &on_b] {
        tab.until("every leave", |seen| {
            (0..USERS).all(|number| seen.leaves(&name(number)) > 0)
        })
        .await;
    }
    truth.agreed(&[&a, &b]).await;
    fence(&[&a, &b], &session, &[&on_a, &on_b]).await;
    for tab in [&on_a, &on_b] {
        tab.look(|seen| {
            for number in 0..USERS {
                let user = name(number);
                assert_eq!((seen.joins(&user), seen.leaves(&user)), (1, 1), "{user}");
            }
            let last = &seen.statuses.last().unwrap()["connection_status"];
            assert_eq!(last["total_customer"], 0, "{last}");
            assert_eq!(seen.ended, None, "a watcher was closed");
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_typist_stays_in_redis_for_at_most_thirty_seconds() {
    let cluster = Cluster::on(&redis_url());
    let [a, b] = cluster.nodes(["node-a", "node-b"], None);
    let session = unique("session");
    let ann = Tab::join(&a, &session, "ann", "customer").await;
    let ben = Tab::join(&b, &session, "ben", "agent").await;
    for round in 0..2 {
        ann.send(json!({"type": "typing_start"})).await;
        let key = format!("session:{session}:typing:ann");
        eventually_async("the typing key", async || (1..=30).contains(&redis().ttl(&key))).await;
        let told = |is_typing: bool| {
            move |seen: &crate::redis_cluster::Seen| {
                let is_it = |frame: &&Value| {
                    frame["type"] == "typing_indicator" && frame["data"]["is_typing"] == is_typing
                };
                seen.others.iter().filter(is_it).count() == round + 1
            }
        };
        ben.until("ann types", told(true)).await;
        ann.send(json!({"type": "typing_stop"})).await;
        ben.until("ann has stopped", told(false)).await;
        eventually_async("the typing key is gone", async || redis().ttl(&key) == -2).await;
    }
    assert_eq!(redis().keys(&format!("session:{session}:typing:*")), [""; 0]);
}
