//! Read receipts and typing over nodes: Kafka carries them, Redis keeps how far users have read.

use serde_json::json;

use crate::receipts::{is, read, receipt, said};
use crate::redis_cluster::Cluster;
use crate::services::{PrivateRedis, RedisClient, Topics, redis_url, unique};
use crate::support::{Client, Server, eventually, eventually_async};

fn two_nodes(topics: &Topics, redis: &str) -> [Server; 2] {
    ["node-a", "node-b"].map(|name| topics.node(name).env("REDIS_URL", redis).start())
}

fn key(session: &str) -> String {
    format!("{{session:{session}:users}}:read")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_receipts_reach_all_nodes_once_and_never_go_back() {
    let topics = Topics::new();
    let [a, b] = two_nodes(&topics, &redis_url());
    let session = unique("session");
    let mut author = Client::connect(&a, &session, "alice", "customer").await;
    let mut on_b = Client::connect(&b, &session, "carol", "admin").await;
    let mut reader = Client::connect(&a, &session, "bob", "agent").await;
    let mut tab = Client::connect(&b, &session, "bob", "agent").await;
    // What Redis had when they joined has been read by then.
    for client in [&mut author, &mut on_b, &mut reader, &mut tab] {
        client.next("connection_status_update").await;
    }
    let first = said(&mut author, "one").await;
    let second = said(&mut author, "two").await;
    let third = said(&mut author, "three").await;

    read(&mut reader, second.as_str()).await;
    for client in [&mut author, &mut on_b] {
        assert_eq!(receipt(client).await, is("bob", &second));
    }
    // The other tab is behind: on its node, too, that is no news.
    read(&mut tab, first.as_str()).await;
    read(&mut tab, second.as_str()).await;
    read(&mut tab, third.as_str()).await;
    for client in [&mut author, &mut on_b] {
        assert_eq!(receipt(client).await, is("bob", &third));
    }
    let mut redis = RedisClient::connect(&redis_url());
    let stored = redis.hget(&key(&session), "bob").expect("how far bob has read");
    assert!(stored.ends_with(&third), "{stored}");
    let days = redis.ttl(&key(&session)) / 86_400;
    assert!((6..=7).contains(&days), "{days}");

    // A node that starts now knows it, and a client that is behind does not take it back.
    let c = topics.node("node-c").env("REDIS_URL", redis_url()).start();
    let mut late = Client::connect(&c, &session, "dave", "agent").await;
    let state = late.next("read_state").await;
    assert_eq!(
        state["data"],
        json!({"session_id": session, "read": {"bob": third}})
    );
    let mut behind = Client::connect(&c, &session, "bob", "agent").await;
    behind.next("read_state").await;
    late.next("connection_status_update").await;
    read(&mut behind, first.as_str()).await;
    read(&mut late, third.as_str()).await;
    for client in [&mut author, &mut on_b] {
        assert_eq!(receipt(client).await, is("dave", &third));
    }
    for client in [&mut reader, &mut tab] {
        assert_eq!(receipt(client).await, is("dave", &third));
        client.expect_none("read_receipt").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_who_joins_on_another_node_is_told_who_is_typing() {
    let topics = Topics::new();
    let [a, b] = two_nodes(&topics, &redis_url());
    let session = unique("session");
    let mut customer = Client::connect(&a, &session, "cust", "customer").await;
    customer.send(json!({"type": "typing_start"})).await;
    // Nobody of this session is on the other node until it has read the record, or the start is repeated.
    eventually_async("the agent is told", async || {
        let mut agent = Client::connect(&b, &session, "agent", "agent").await;
        agent.fence().await;
        let shown = agent.take_all("typing_indicator");
        agent.close().await;
        shown
            .iter()
            .any(|frame| frame["data"]["user_id"] == "cust" && frame["data"]["is_typing"] == true)
    })
    .await;
    let mut agent = Client::connect(&b, &session, "agent", "agent").await;
    assert_eq!(agent.next("typing_indicator").await["data"]["is_typing"], true);
    customer.send(json!({"type": "typing_stop"})).await;
    assert_eq!(agent.next("typing_indicator").await["data"]["is_typing"], false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_receipts_wait_while_it_is_down_and_foreign_keys_are_replaced() {
    let redis = PrivateRedis::started();
    let cluster = Cluster::on(&redis.url());
    let node = cluster.node("node-a").start();
    let session = unique("session");
    redis.client().command(&["SET", &key(&session), "foreign"]);
    let mut author = Client::connect(&node, &session, "alice", "customer").await;
    let mut reader = Client::connect(&node, &session, "bob", "agent").await;
    let first = said(&mut author, "one").await;
    let second = said(&mut author, "two").await;
    read(&mut reader, first.as_str()).await;
    assert_eq!(receipt(&mut author).await, is("bob", &first));

    redis.stop();
    eventually("the loss is seen", || node.health()["status"] == "degraded");
    read(&mut reader, second.as_str()).await;
    // Connections go on.
    reader.fence().await;
    redis.start();
    assert_eq!(receipt(&mut author).await, is("bob", &second));
    let mut late = Client::connect(&node, &session, "carol", "agent").await;
    let state = late.next("read_state").await;
    assert_eq!(state["data"]["read"], json!({"bob": second}));
}
