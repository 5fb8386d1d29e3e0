//! A repeated `client_message_id` is one message: a node without Kafka.

use serde_json::{Value, json};

use crate::support::{Client, Server};

/// Sends a message without waiting for its answer.
pub async fn attempt(client: &mut Client, text: &str, client_message_id: &str, request: &str) {
    let data = json!({"message": text, "client_message_id": client_message_id});
    client
        .send(json!({"type": "send_message", "request_id": request, "data": data}))
        .await;
}

/// The data of the `message_sent` that answers a request.
pub async fn sent(client: &mut Client, request: &str) -> Value {
    let answer = client
        .next_where(&format!("the answer to {request}"), |frame| {
            frame["request_id"] == request
        })
        .await;
    assert_eq!(answer["type"], "message_sent", "{answer}");
    answer["data"].clone()
}

/// Sends a message and returns the data of its `message_sent`.
pub async fn send(client: &mut Client, text: &str, client_message_id: &str) -> Value {
    let request = crate::services::unique("request");
    attempt(client, text, client_message_id, &request).await;
    sent(client, &request).await
}

/// A client's messages up to one that is sent now, as text and id.
pub async fn messages(client: &mut Client, sender: &mut Client) -> Vec<(String, String)> {
    let last = crate::services::unique("last");
    sender.say_acked(&last).await;
    client
        .next_where("the last message", |frame| frame["data"]["message"] == *last)
        .await;
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let frames = client.take_all("new_message");
    let data = frames.iter().map(|frame| &frame["data"]);
    data.map(|data| (text(&data["message"]), text(&data["message_id"])))
        .filter(|(message, _)| !message.starts_with("last-"))
        .collect()
}

/// One message with the id of this answer.
pub fn assert_one(messages: &[(String, String)], text: &str, answer: &Value) {
    let expected = (text.to_owned(), answer["message_id"].as_str().unwrap().to_owned());
    assert_eq!(messages, [expected]);
}

#[tokio::test]
async fn a_repeat_is_one_message_before_and_after_the_answer_and_from_another_connection() {
    let server = Server::builder().env("ADMIN_ADDR", "127.0.0.1:0").start();
    let mut first = Client::connect(&server, "s", "u", "customer").await;
    let mut second = Client::connect(&server, "s", "u", "customer").await;
    let mut agent = Client::connect(&server, "s", "agent", "agent").await;
    for request in ["1", "2", "3"] {
        attempt(&mut first, "a", "c/1", request).await;
    }
    attempt(&mut second, "a", "c/1", "4").await;
    let answer = sent(&mut first, "1").await;
    assert_eq!(answer["client_message_id"], "c/1");
    for request in ["2", "3"] {
        assert_eq!(sent(&mut first, request).await, answer);
    }
    assert_eq!(sent(&mut second, "4").await, answer);
    assert_eq!(send(&mut first, "another text", "c/1").await, answer);
    first.close().await;
    let mut back = Client::connect(&server, "s", "u", "customer").await;
    assert_eq!(send(&mut back, "a", "c/1").await, answer);
    let seen = messages(&mut agent, &mut back).await;
    assert_one(&seen, "a", &answer);
    assert_eq!(
        server.metric("livechat_records_published_total"),
        2.0,
        "and the last one"
    );
    assert_eq!(server.metric("livechat_repeats_answered_total"), 5.0);
}

#[tokio::test]
async fn an_answer_has_the_timestamp_of_the_message_and_follows_it() {
    let server = Server::start();
    let mut client = Client::connect(&server, "s", "u", "customer").await;
    let answer = send(&mut client, "a", "c").await;
    let message = &client.take_all("new_message")[0]["data"];
    for field in ["message_id", "timestamp", "client_message_id"] {
        assert_eq!(message[field], answer[field]);
    }
    let plain = client.say_acked("b").await;
    let is_it = |frame: &Value| frame["data"]["message"] == "b" && frame["type"] == "new_message";
    let message = client.next_where("one's own message", is_it).await;
    assert_eq!(message["data"]["timestamp"], plain["timestamp"]);
}

#[tokio::test]
async fn another_user_or_session_or_id_is_another_message() {
    let server = Server::start();
    let mut agent = Client::connect(&server, "s", "agent", "agent").await;
    let mut ids = Vec::new();
    for (session, user, id) in [
        ("s", "u", "c"),
        ("s", "José", "c"),
        ("t", "u", "c"),
        ("s", "u", "d"),
        ("s", "u", "100% é\n"),
    ] {
        let mut client = Client::connect(&server, session, user, "customer").await;
        let answer = send(&mut client, "a", id).await;
        assert_eq!(answer, send(&mut client, "a", id).await);
        ids.push(answer["message_id"].as_str().unwrap().to_owned());
    }
    let mut distinct = ids.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), ids.len());
    let mut sender = Client::connect(&server, "s", "sender", "agent").await;
    let seen = messages(&mut agent, &mut sender).await;
    ids.remove(2);
    assert_eq!(seen.into_iter().map(|(_, id)| id).collect::<Vec<_>>(), ids);
}

#[tokio::test]
async fn after_the_window_it_is_another_message() {
    let server = Server::builder().env("DEDUP_WINDOW", "5s").start();
    let mut client = Client::connect(&server, "s", "u", "customer").await;
    let first = send(&mut client, "a", "c").await;
    tokio::time::sleep(std::time::Duration::from_millis(2_600)).await;
    assert_eq!(send(&mut client, "a", "c").await, first);
    // Counted from the first one.
    tokio::time::sleep(std::time::Duration::from_millis(2_600)).await;
    let second = send(&mut client, "a", "c").await;
    assert_ne!(second["message_id"], first["message_id"]);
    let mut other = Client::connect(&server, "s", "other", "agent").await;
    let seen = messages(&mut client, &mut other).await;
    assert_eq!(seen.len(), 2, "{seen:?}");
}

#[tokio::test]
async fn a_message_that_cannot_be_sent_is_refused_each_time() {
    let server = Server::builder().env("MAX_RECORD_BYTES", 1024).start();
    let mut client = Client::connect(&server, "s", "u", "customer").await;
    for request in ["1", "2"] {
        attempt(&mut client, &"x".repeat(2_000), "c", request).await;
        let error = client.next("error").await;
        assert_eq!(error["data"]["code"], "record_too_large");
    }
    let answer = send(&mut client, "short", "c").await;
    assert!(answer["message_id"].is_string());
}
