//! What each client frame does, who receives what, and what is never logged.

use serde_json::{Value, json};

use crate::http_routes::is_utc;
use crate::support::{Client, Server};

/// A server without a rate limit.
pub fn unlimited() -> Server {
    Server::builder().env("RATE_LIMIT_MESSAGES", 0).start()
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

#[track_caller]
pub fn assert_error(frame: &Value, code: &str, retryable: bool) {
    assert_eq!(frame["type"], "error", "{frame}");
    assert_eq!(frame["success"], false, "{frame}");
    assert!(
        frame["error"].as_str().is_some_and(|text| !text.is_empty()),
        "{frame}"
    );
    assert_eq!(frame["data"]["code"], code, "{frame}");
    assert_eq!(frame["data"]["retryable"], retryable, "{frame}");
}

#[tokio::test]
async fn chat_join_session_and_ping_are_answered() {
    let server = Server::start();
    let mut client = Client::connect(&server, "s1", "u1", "agent").await;
    client
        .send(json!({"type": "join_session", "request_id": "r1"}))
        .await;
    let mut joined = client.next("session_joined").await;
    assert!(is_utc(&joined["data"]["timestamp"].take()));
    let data = json!({"session_id": "s1", "user_id": "u1", "user_type": "agent", "timestamp": null});
    assert_eq!(
        joined,
        json!({"type": "session_joined", "success": true, "data": data, "request_id": "r1"})
    );

    client.send(json!({"type": "ping"})).await;
    let mut pong = client.next("pong").await;
    assert!(is_utc(&pong["data"]["timestamp"].take()));
    assert!(pong["data"]["cursor"].take().is_string());
    assert_eq!(
        pong,
        json!({"type": "pong", "success": true, "data": {"timestamp": null, "cursor": null}})
    );
    client
        .send(json!({"request_id": 7, "data": {}, "type": "ping", "unknown": [1, {"a": null}]}))
        .await;
    assert_eq!(client.next("pong").await["request_id"], 7);
}

#[tokio::test]
async fn chat_the_sender_is_taken_from_the_path_not_the_body() {
    let server = Server::start();
    let mut victim = Client::connect(&server, "theirs", "victim", "agent").await;
    let mut other = Client::connect(&server, "s1", "other", "agent").await;
    let mut client = Client::connect(&server, "s1", "u1", "customer").await;
    let lie = |kind: &str, id: &str| {
        json!({
            "type": kind, "request_id": id,
            "session_id": "theirs", "user_id": "victim", "user_type": "agent", "timestamp": "1999-01-01T00:00:00Z",
            "data": {
                "message": "a lie", "session_id": "theirs", "sender_id": "victim", "user_id": "victim",
                "sender_type": "agent", "user_type": "agent", "message_id": "mine", "timestamp": "1999-01-01T00:00:00Z",
            },
        })
    };
    client.send(lie("join_session", "1")).await;
    let joined = client.next("session_joined").await["data"].clone();
    assert_eq!(
        (&joined["session_id"], &joined["user_id"]),
        (&json!("s1"), &json!("u1"))
    );
    assert_eq!(joined["user_type"], "customer");

    client.send(lie("send_message", "2")).await;
    client.next("message_sent").await;
    let message = other.next("new_message").await["data"].clone();
    assert_eq!(
        (&message["session_id"], &message["sender_id"]),
        (&json!("s1"), &json!("u1"))
    );
    assert_eq!(message["sender_type"], "customer");
    assert_ne!(message["message_id"], "mine");
    assert!(
        !message["timestamp"].as_str().unwrap().starts_with("1999"),
        "{message}"
    );

    client.send(lie("typing_start", "3")).await;
    let typing = other.next("typing_indicator").await["data"].clone();
    assert_eq!(
        (&typing["session_id"], &typing["user_id"]),
        (&json!("s1"), &json!("u1"))
    );
    assert_eq!(typing["sender_type"], "customer");
    victim.fence_own_session().await;
    victim.expect_none("new_message").await;
    victim.expect_none("typing_indicator").await;
}

#[tokio::test]
async fn chat_a_message_reaches_everyone_with_all_fields() {
    let server = Server::start();
    let mut customer = Client::connect(&server, "s1", "cust", "customer").await;
    let mut tab = Client::connect(&server, "s1", "cust", "customer").await;
    let mut agent = Client::connect(&server, "s1", "agent", "agent").await;
    let mut admin = Client::connect(&server, "s1", "boss", "admin").await;
    let mut elsewhere = Client::connect(&server, "s2", "agent", "agent").await;
    let attachments = json!([{"url": "https://files.example/a.png", "size": 12345678901i64, "deep": {"a": [1, 2.5, null, true, "é"]}}, "b", 3]);
    let data = json!({"message": "Grüße, \"you\" \\ \n\t\u{1F600}", "message_type": "image", "attachments": attachments, "client_message_id": "c-1"});
    customer
        .send(json!({"type": "send_message", "request_id": "r1", "data": data}))
        .await;

    let sent = customer.next("message_sent").await;
    assert_eq!(
        (&sent["success"], &sent["request_id"]),
        (&json!(true), &json!("r1"))
    );
    assert_eq!(
        keys(&sent["data"]),
        ["client_message_id", "message_id", "timestamp"]
    );
    assert_eq!(sent["data"]["client_message_id"], "c-1");
    assert!(is_utc(&sent["data"]["timestamp"]), "{sent}");
    let id = sent["data"]["message_id"].as_str().expect("an id").to_owned();
    assert_eq!((id.len(), &id[14..15]), (36, "7"), "a UUIDv7: {id}");

    let expected = json!({
        "message_id": id, "session_id": "s1", "sender_id": "cust", "sender_type": "customer",
        "message": data["message"], "message_type": "image", "attachments": attachments,
        "timestamp": sent["data"]["timestamp"], "client_message_id": "c-1",
    });
    for client in [&mut customer, &mut tab, &mut agent, &mut admin] {
        let frame = client.next("new_message").await;
        assert_eq!(
            frame,
            json!({"type": "new_message", "success": true, "data": expected})
        );
    }
    // A duplicate, or an answer to the wrong client, would arrive before the next message.
    customer.say_acked("fence").await;
    for client in [&mut customer, &mut tab, &mut agent, &mut admin] {
        assert_eq!(client.next("new_message").await["data"]["message"], "fence");
        assert_eq!(client.take_all("message_sent"), Vec::<Value>::new());
    }
    elsewhere.fence_own_session().await;
    elsewhere.expect_none("new_message").await;
}

#[tokio::test]
async fn chat_a_message_has_defaults() {
    let server = Server::start();
    let mut client = Client::connect(&server, "s1", "u1", "agent").await;
    for data in [
        json!({"message": "hi"}),
        json!({"message": "hi", "attachments": null, "client_message_id": null, "message_type": null}),
    ] {
        client.send(json!({"type": "send_message", "data": data})).await;
        let sent = client.next("message_sent").await;
        assert_eq!(keys(&sent), ["data", "success", "type"]);
        assert_eq!(keys(&sent["data"]), ["message_id", "timestamp"]);
        let message = client.next("new_message").await["data"].clone();
        assert_eq!(message["message_type"], "text");
        assert_eq!(message["attachments"], json!([]));
        let expected = [
            "attachments",
            "message",
            "message_id",
            "message_type",
            "sender_id",
            "sender_type",
            "session_id",
            "timestamp",
        ];
        assert_eq!(keys(&message), expected);
    }
}

#[tokio::test]
async fn chat_messages_reach_everyone_in_the_same_order() {
    let server = unlimited();
    let mut senders = Vec::new();
    for number in 0..4 {
        senders.push(Client::connect(&server, "s1", &format!("u{number}"), "agent").await);
    }
    let mut reader = Client::connect(&server, "s1", "reader", "customer").await;
    for round in 0..50 {
        for (number, sender) in senders.iter_mut().enumerate() {
            sender.say(&format!("{number}:{round}"), "r").await;
        }
    }
    let mut order = Vec::new();
    for _ in 0..200 {
        order.push(reader.next("new_message").await["data"].clone());
    }
    for number in 0..4 {
        let own: Vec<_> = order
            .iter()
            .map(|data| data["message"].as_str().unwrap())
            .filter(|text| text.starts_with(&format!("{number}:")))
            .collect();
        assert_eq!(
            own,
            (0..50)
                .map(|round| format!("{number}:{round}"))
                .collect::<Vec<_>>(),
            "a sender's own order"
        );
    }
    for sender in &mut senders {
        for expected in &order {
            assert_eq!(
                &sender.next("new_message").await["data"],
                expected,
                "everyone sees one order"
            );
        }
    }
}

#[tokio::test]
async fn chat_a_message_that_makes_too_large_a_record_is_refused() {
    let server = Server::builder().env("MAX_RECORD_BYTES", 1024).start();
    let mut client = Client::connect(&server, "s1", "u1", "customer").await;
    let data = json!({"message": "x".repeat(2_000), "client_message_id": "c1"});
    client
        .send(json!({"type": "send_message", "request_id": "r1", "data": data}))
        .await;
    let error = client.next("error").await;
    assert_error(&error, "record_too_large", false);
    assert_eq!(
        (&error["request_id"], &error["data"]["client_message_id"]),
        (&json!("r1"), &json!("c1"))
    );
    client.say_acked("short").await;
    assert_eq!(client.next("new_message").await["data"]["message"], "short");
}

#[tokio::test]
async fn chat_an_error_reaches_only_its_sender() {
    let server = unlimited();
    let mut client = Client::connect(&server, "s1", "u1", "customer").await;
    let mut other = Client::connect(&server, "s1", "u2", "agent").await;
    for text in [
        "nonsense",
        r#"{"type":"dance"}"#,
        r#"{"type":"send_message","data":{}}"#,
    ] {
        client.send_text(text).await;
        client.next("error").await;
    }
    other.expect_none_before("error", &mut client).await;
}

#[tokio::test]
async fn chat_no_message_text_is_ever_logged() {
    let server = Server::builder().env("LOG_LEVEL", "trace").start();
    let mut client = Client::connect(&server, "s1", "u1", "customer").await;
    client.say_acked("a-very-private-word").await;
    client.next("new_message").await;
    client
        .send_text(r#"{"type":"send_message","data":{"message":"a-very-private-word","attachments":1}}"#)
        .await;
    client.next("error").await;
    client.send_text(r#"{"type":"a-very-private-word"#).await;
    client.next("error").await;
    client.close().await;
    server.wait_log("WebSocket client disconnected: u1 (customer)");
    let leak = server
        .log()
        .into_iter()
        .find(|line| line.contains("a-very-private-word"));
    assert!(leak.is_none(), "{leak:?}");
}

#[tokio::test]
async fn chat_no_token_is_ever_logged() {
    let server = Server::builder().env("LOG_LEVEL", "trace").start();
    let headers = [
        ("Authorization", "Bearer a-secret"),
        ("Cookie", "session=a-secret"),
        ("X-API-Key", "a-secret"),
    ];
    let mut client = Client::open(server.http_addr(), "/ws/s1/u1/agent?token=a-secret", &headers)
        .await
        .expect("an upgrade");
    client.greet().await;
    for path in [
        "/health?api_key=a-secret",
        "/nothing?a-secret",
        "/api/session/%00/connection-status?t=a-secret",
    ] {
        crate::support::Http::request(server.http_addr(), "GET", path, &headers);
    }
    client.close().await;
    server.wait_log("WebSocket client disconnected: u1 (agent)");
    let leak = server.log().into_iter().find(|line| line.contains("a-secret"));
    assert!(leak.is_none(), "{leak:?}");
}

#[tokio::test]
async fn chat_the_old_servers_log_lines_are_kept() {
    let server = Server::builder().env("LOG_LEVEL", "debug").start();
    let mut client = Client::connect(&server, "s1", "u1", "customer").await;
    server.wait_log("WebSocket client connected: u1 (customer) to session s1");
    client.say_acked("hello").await;
    server.wait_log("Broadcasted message to session s1: 1/1 clients received");
    client.close().await;
    server.wait_log_where("a disconnect", |line| {
        line.contains("WebSocket client disconnected: u1 (customer)")
    });
}
