//! `GET /api/session/{id}/messages` from the nodes of a cluster.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::messages::{all_pages, of, page};
use crate::resume::say;
use crate::services::{Record, Topics, start_well, unique};
use crate::support::{Client, Http, Server};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_the_same_on_every_node() {
    let topics = Topics::new();
    let (a, b) = topics.two_nodes();
    let session = unique("session");
    let mut agent = Client::connect(&a, &session, "agent", "agent").await;
    let mut there = Client::connect(&b, &session, "there", "customer").await;
    let start = agent.greeting["cursor"].as_str().unwrap().to_owned();
    let all: Vec<String> = (0..25).map(|n| n.to_string()).collect();
    let each: Vec<&str> = all.iter().map(String::as_str).collect();
    let ids = say(&mut agent, &each).await;
    there
        .next_where("the last message", |frame| {
            frame["data"]["message_id"] == *ids[24]
        })
        .await;
    let later = topics.node("node-c").start();
    for node in [&a, &b, &later] {
        let last = page(node, &session, "?limit=5");
        assert_eq!((of(&last), &last["has_more"]), (all[20..].to_vec(), &json!(true)));
        assert_eq!(
            of(&page(node, &session, &format!("?since={}", ids[22]))),
            all[23..]
        );
        assert_eq!(page(node, &unique("nobody"), "")["messages"], json!([]));
    }
    // From node to node.
    let (messages, _) = all_pages(&[&a, &b, &later], &session, &start, 4);
    assert_eq!(crate::resume::texts(&messages), all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_all_producers_are_as_they_were_delivered_and_each_comes_once() {
    let topics = Topics::new();
    let server = start_well(topics.node("node-a"));
    let session = unique("session");
    let mut watcher = Client::connect(&server, &session, "watcher", "agent").await;
    let start = watcher.greeting["cursor"].as_str().unwrap().to_owned();
    let old = |n: usize| {
        let value = json!({"id": n, "session_id": session, "message": n.to_string(), "created_at": "x", "extra": [1]});
        Record::old(value.to_string())
    };
    // Old ones without a key, in any partition; native ones, of which some are not JSON.
    let mut records: Vec<_> = (0..40).map(old).collect();
    for n in 40..60 {
        let value = format!(r#"{{ "type":"new_message", "data":{{"message":"{n}"}} }}"#);
        records.push(Record::native(&session, value));
    }
    records.push(Record::native(
        &session,
        r#"{"type":"session_update","data":{"message":"60"}}"#,
    ));
    topics.kafka.produce(&topics.messages, &records);
    for _ in 0..60 {
        watcher.next("new_message").await;
    }
    watcher
        .next_where("an update", |frame| frame["type"] == "session_update")
        .await;
    let delivered = watcher.log.clone();
    watcher.close().await;
    let other = ["not JSON", "{\"a\":1", "{} {}", ""].map(|value| Record::native(&session, value));
    topics.kafka.produce(&topics.messages, &other);
    let later = topics.node("node-b").env("ADMIN_ADDR", "127.0.0.1:0").start();
    let texts = |messages: &[Value]| {
        crate::resume::texts(messages)
            .into_iter()
            .collect::<BTreeSet<_>>()
    };
    let expected: BTreeSet<String> = (0..=60).map(|n| n.to_string()).collect();
    for limit in [3, 100] {
        let (messages, _) = all_pages(&[&server, &later], &session, &start, limit);
        assert_eq!(messages.len(), 61, "each once");
        assert_eq!(texts(&messages), expected);
        for message in &messages {
            assert!(delivered.contains(message), "{message}");
        }
    }
    let last = page(&later, &session, "?limit=61");
    assert_eq!((of(&last).len(), &last["has_more"]), (61, &json!(false)));
    assert!(later.metric("livechat_messages_left_out_total") >= 4.0);
    // Byte for byte.
    let body = Http::get(later.http_addr(), &format!("/api/session/{session}/messages")).text();
    assert!(
        body.contains(r#"{ "type":"new_message", "data":{"message":"59"} }"#),
        "{body}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_unavailable_while_the_log_is_not_known() {
    // Nobody listens there.
    let server = Server::builder()
        .env("KAFKA_BROKERS", "127.0.0.1:1")
        .env("RESUME_TIMEOUT", "300ms")
        .start_listening();
    let response = Http::get(server.http_addr(), "/api/session/s/messages");
    response.assert_error(503);
    assert_eq!(response.json()["message"], "Failed to get messages");
    let seconds: u32 = response
        .header("retry-after")
        .expect("Retry-After")
        .parse()
        .unwrap();
    assert!((1..=5).contains(&seconds));
}
