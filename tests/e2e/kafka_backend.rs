//! What backends publish and whom they disconnect, on the nodes of a cluster.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::dedup::messages;
use crate::disconnect::{
    delete, disconnect, everyone_is_disconnected_soon, knock, stays_refused_if_disconnected_elsewhere,
};
use crate::publish::{publish, publish_raw, with_key};
use crate::services::{PrivateBroker, Record, Topics, at_last, unique};
use crate::support::{Client, Http, Server, ServerBuilder, eventually};

fn node(topics: &Topics, name: &str) -> ServerBuilder {
    with_key(topics.node(name)).env("ADMIN_ADDR", "127.0.0.1:0")
}

fn is_ok(server: &Server) -> bool {
    server.health()["kafka"]["status"] == "ok"
}

fn nodes(topics: &Topics) -> [Server; 2] {
    let nodes = ["node-a", "node-b"].map(|name| node(topics, name).spawn());
    for node in &nodes {
        node.wait_ready();
        eventually("Kafka is ok", || is_ok(node));
    }
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_that_is_repeated_on_another_node_is_one_message() {
    let topics = Topics::new();
    let [a, b] = nodes(&topics);
    let session = unique("session");
    let mut client = Client::connect(&b, &session, "u", "customer").await;
    let body = json!({"message": "Hello", "client_message_id": "c"});
    let first = publish(&a, &session, &[], &body);
    for server in [&b, &a] {
        let key = [("Idempotency-Key", "c")];
        assert_eq!(publish(server, &session, &key, &body), first);
    }
    let frame = client.next("new_message").await;
    assert_eq!(frame["data"]["message_id"], first["message_id"]);
    assert_eq!(frame["data"]["sender_id"], Value::Null);
    let stored = topics.kafka.consume(&topics.messages);
    let record = stored.iter().find(|record| record.key_text() == Some(&session));
    let record = record.expect("the record");
    assert_eq!(record.json(), frame, "as it was delivered");
    assert_eq!(record.headers["livechat-client-id"], b"/c");
    // After a restart of all nodes, too.
    drop((a, b, client));
    let later = node(&topics, "node-c").start();
    let mut client = Client::connect(&later, &session, "u", "customer").await;
    assert_eq!(publish(&later, &session, &[], &body), first);
    let mut sender = Client::connect(&later, &session, "x", "agent").await;
    assert_eq!(messages(&mut client, &mut sender).await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_disconnected_on_every_node_and_stays_refused() {
    let topics = Topics::new();
    let [a, b] = nodes(&topics);
    let session = unique("session");
    let mut other = Client::connect(&b, &session, "other", "agent").await;
    everyone_is_disconnected_soon(&a, &b, &session).await;
    other.fence().await;
    let mut there = Client::connect(&b, &session, "u", "customer").await;
    let cursor = there.greeting["cursor"].as_str().unwrap().to_owned();
    disconnect(&a, &session, "u", "?for=10m");
    assert_eq!(knock(&a, &session, "u", "").await, 403, "where it was asked for");
    assert_eq!(there.expect_close().await, 4403);
    other.say_acked("what is missed").await;
    let since = format!("?since={cursor}");
    for query in ["", &since] {
        assert_eq!(knock(&b, &session, "u", query).await, 403);
    }
    // It stays so when the user is disconnected once more, elsewhere, and when nodes come and go.
    disconnect(&b, &session, "u", "");
    stays_refused_if_disconnected_elsewhere([&a, &b]).await;
    let gone = unique("gone");
    disconnect(&b, &gone, "v", "");
    drop((a, b));
    let later = node(&topics, "node-a").start();
    for query in ["", &since] {
        assert_eq!(knock(&later, &session, "u", query).await, 403);
    }
    assert_eq!(knock(&later, &gone, "v", "").await, 101, "it only closed");
    eventually("they are counted", || later.metric("livechat_refusals") == 11.0);
    disconnect(&later, &session, "u", "?for=0s");
    assert_eq!(knock(&later, &session, "u", "").await, 101);
    let last = node(&topics, "node-d").start();
    assert_eq!(knock(&last, &session, "u", "").await, 101, "the last one counts");
    // What the topic has: it is bounded, and one partition is one order.
    assert_eq!(topics.kafka.partitions(&topics.control), Some(1));
    let stored = topics.kafka.consume(&topics.control);
    let key = format!("{session}/u");
    let ours: Vec<_> = stored
        .iter()
        .filter(|record| record.key_text() == Some(&key))
        .collect();
    assert_eq!(
        ours.len(),
        2,
        "compaction never removes a refusal for a record without one"
    );
    assert!(ours[0].json()["until"].is_string());
    assert_eq!(ours[1].json()["until"], Value::Null);
    let closes = format!("{session}/u/close");
    let closes = stored.iter().filter(|record| record.key_text() == Some(&closes));
    // One for each attempt of the first part, and one more.
    assert!(closes.count() >= 2);
}

/// Records of others: what is no record is skipped, and a refusal may be theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_records_of_others_are_read_and_poison_is_skipped() {
    let topics = Topics::new();
    let server = node(&topics, "node-a").start();
    let session = unique("session");
    let mut user = Client::connect(&server, &session, "u", "customer").await;
    let record = |key: &str, value: Option<&str>| Record {
        key: Some(key.into()),
        value: value.map(Into::into),
        headers: Vec::new(),
        partition: None,
    };
    let key = format!("{session}/u");
    let poison = [
        ("no slash", "{}"),
        (&key, "no JSON"),
        (&key, "{}"),
        ("@lobby/u", "{}"),
    ];
    let mut records: Vec<_> = poison.map(|(key, value)| record(key, Some(value))).into();
    let refused = r#"{"at":"2026-01-01T00:00:00Z","until":"2999-01-01T00:00:00Z","more":1}"#;
    records.push(record(&key, Some(refused)));
    topics.kafka.produce(&topics.control, &records);
    assert_eq!(user.expect_close().await, 4403);
    assert_eq!(knock(&server, &session, "u", "").await, 403);
    let page = Http::get(server.admin_addr(), "/metrics").text();
    for (reason, count) in [("bad_key", 2), ("not_json", 1), ("missing_field", 1)] {
        let series = format!("livechat_poison_records_total{{reason=\"{reason}\"}} {count}\n");
        assert!(page.contains(&series), "{series}{page}");
    }
    server.wait_log("poison record skipped topic=\"control\"");
    topics.kafka.produce(&topics.control, &[record(&key, None)]);
    eventually("a tombstone ends it", || {
        server.get(&format!("/ws/{session}/u/customer")).status == 426
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_log_is_away_backends_are_told_and_refusals_stand() {
    let broker = PrivateBroker::started();
    let topics = Topics::on(&broker.kafka());
    let server = node(&topics, "node-a").start();
    eventually("Kafka is ok", || is_ok(&server));
    let session = unique("session");
    disconnect(&server, &session, "u", "?for=10m");
    broker.stop();
    let began = Instant::now();
    let body = json!({"message": "a", "client_message_id": "c"}).to_string();
    let published = publish_raw(&server, &session, &[], &body);
    let deleted = delete(&server, &format!("/api/session/{session}/users/v?for=10m"));
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    for answer in [&published, &deleted] {
        assert!([503, 504].contains(&answer.status), "{}", answer.text());
        answer.assert_error(answer.status);
        let is_unknown = answer.text().contains("outcome_unknown");
        assert_eq!(is_unknown, answer.status == 504, "{}", answer.text());
        assert_eq!(answer.header("retry-after").is_some(), answer.status == 503);
    }
    assert_eq!(knock(&server, &session, "u", "").await, 403);
    // A node that starts now can't know it, and says so; it learns it as soon as it can.
    let blind = node(&topics, "node-b").start();
    eventually("health says what the node does not know", || {
        let kafka = blind.health()["kafka"].clone();
        let detail = kafka["detail"].as_str().unwrap_or_default();
        kafka["status"] != "ok" && detail.contains("refused users may be let in")
    });
    let mut user = Client::connect(&blind, &session, "u", "customer").await;
    broker.start();
    at_last("Kafka is ok", || is_ok(&server) && is_ok(&blind));
    assert_eq!(user.expect_close().await, 4403);
    assert_eq!(knock(&blind, &session, "u", "").await, 403);
    // The outcome of the first attempt may still be unknown.
    let mut answer = published;
    at_last("the message is published", || {
        answer = publish_raw(&server, &session, &[], &body);
        answer.status == 201
    });
    let key = [("Idempotency-Key", "c")];
    let repeated = publish(&blind, &session, &key, &json!({"message": "a"}));
    assert_eq!(repeated, answer.json()["data"]);
    disconnect(&blind, &session, "u", "?for=0s");
    assert_eq!(knock(&blind, &session, "u", "").await, 101);
}
