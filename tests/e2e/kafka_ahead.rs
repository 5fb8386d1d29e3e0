//! Clients that have more than the node that they come to: it has yet to read that. They bring cursors of another node,
//! which the tests make as nodes do, from the topic's id.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use livechat_ws::protocol::cursor::{Cursor, CursorKey};
use serde_json::json;

use crate::messages::{of, page};
use crate::resume::{cursor_of_pong, open, replayed, say, texts};
use crate::services::Topics;
use crate::support::{Client, Http, Server};

/// A node whose topic has one partition, and the key of its cursors.
fn node(topics: &Topics, timeout: &str) -> (Server, CursorKey) {
    topics.kafka.create(&topics.messages, 1);
    let server = topics.node("node-a").env("RESUME_TIMEOUT", timeout).start();
    let id = topics.kafka.topic_id(&topics.messages);
    let id = URL_SAFE_NO_PAD.decode(id).expect("base64");
    (server, CursorKey::of_log(&id))
}

/// A cursor that is this much further.
fn ahead(key: &CursorKey, session: &str, cursor: &str, records: i64) -> String {
    let cursor = Cursor::decode(cursor).expect("a cursor");
    assert!(
        key.has_signed(session, &cursor),
        "nodes derive the key from the topic's id"
    );
    let mut position = cursor.position;
    position.offset += records;
    key.cursor(session, &position)
}

fn since(cursor: &str) -> String {
    format!("since={cursor}")
}

#[tokio::test]
async fn a_client_that_is_ahead_waits_and_gets_its_answers_meanwhile() {
    let topics = Topics::new();
    let (server, key) = node(&topics, "8s");
    let ahead = |cursor: &str, records| ahead(&key, "s", cursor, records);
    let mut agent = Client::connect(&server, "s", "agent", "agent").await;
    let cursor = cursor_of_pong(&mut agent).await;
    let mut client = open(&server, "s", "u", &since(&ahead(&cursor, 3))).await;
    let mut near = open(&server, "s", "v", &since(&ahead(&cursor, 2))).await;
    agent.say_acked("a").await;
    client.send(json!({"type": "ping", "request_id": 1})).await;
    let pong = client.next("pong").await;
    assert!(
        pong["data"]["cursor"].is_null(),
        "what it has is not known: {pong}"
    );
    assert!(client.take_all("resumed").is_empty() && client.take_all("new_message").is_empty());
    assert_eq!(client.next("resumed").await["data"]["reason"], "unavailable");
    assert_eq!(client.next("new_message").await["data"]["message"], "a");
    drop(near);
    // This one has its first two messages already.
    near = open(&server, "s", "v", &since(&ahead(&cursor, 2))).await;
    agent.say_acked("b").await;
    agent.say_acked("c").await;
    let (mut missed, resumed) = replayed(&mut near).await;
    assert_eq!(resumed["recovered"], true, "{resumed}");
    let reached = Cursor::decode(resumed["cursor"].as_str().unwrap())
        .unwrap()
        .position;
    assert!(reached.offset >= Cursor::decode(&cursor).unwrap().position.offset + 2);
    if missed.is_empty() {
        missed = texts(&[near.next("new_message").await]);
    }
    assert_eq!(missed, ["c"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_wait_for_what_the_node_has_not_read_yet() {
    let topics = Topics::new();
    let (server, key) = node(&topics, "5s");
    let mut agent = Client::connect(&server, "s", "agent", "agent").await;
    let here = page(&server, "s", "");
    let cursor = ahead(&key, "s", here["cursor"].as_str().unwrap(), 1);
    let (addr, path) = (
        server.http_addr(),
        format!("/api/session/s/messages?since={cursor}"),
    );
    let ask = || {
        let path = path.clone();
        tokio::task::spawn_blocking(move || Http::get(addr, &path))
    };
    let began = Instant::now();
    let asked = ask();
    assert_eq!(asked.await.unwrap().status, 503);
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    let asked = ask();
    // Kafka acknowledges a message before the node has read it.
    say(&mut agent, &["the one that the client has", "missed"]).await;
    let first = asked.await.unwrap().json()["data"].clone();
    assert_eq!(first["recovered"], true, "{first}");
    // It may have been answered between the two.
    let rest = format!("?since={}", first["cursor"].as_str().unwrap());
    let rest = page(&server, "s", &rest);
    assert_eq!([of(&first), of(&rest)].concat(), ["missed"], "{first} {rest}");
}
