//! Frames that are invalid JSON, or invalid for their type: an `error` frame, and the connection stays open.

use serde_json::json;

use crate::chat_frames::{assert_error, unlimited};
use crate::support::{Client, Server};

#[tokio::test]
async fn chat_an_unknown_type_is_named() {
    let server = Server::start();
    let mut client = Client::connect(&server, "s1", "u1", "customer").await;
    for kind in [
        "dance",
        "",
        "PING",
        "join_session ",
        "message_read_",
        "Ünïcode \"quoted\"",
    ] {
        client.send(json!({"type": kind, "request_id": "r1"})).await;
        let error = client.next("error").await;
        assert_error(&error, "unknown_type", false);
        assert_eq!(error["error"], format!("Unknown message type: {kind}"));
        assert_eq!(error["request_id"], "r1");
    }
    client.expect_none("error").await;
}

#[tokio::test]
async fn chat_a_frame_that_is_not_a_json_object_gets_an_error() {
    let server = unlimited();
    let mut client = Client::connect(&server, "s1", "u1", "customer").await;
    let deep_array = "[".repeat(10_000) + &"]".repeat(10_000);
    let deep_object = format!(
        r#"{{"type":"ping","x":{}1{}}}"#,
        r#"{"a":"#.repeat(10_000),
        "}".repeat(10_000)
    );
    let deep_open = format!(r#"{{"type":"ping","data":{}"#, "[".repeat(10_000));
    let inputs = [
        "",
        " ",
        "null",
        "true",
        "7",
        "\"ping\"",
        "[]",
        r#"[{"type":"ping"}]"#,
        "{}",
        "{",
        "}",
        r#"{"type":"ping""#,
        r#"{"type":"ping",}"#,
        r#"{"type":"ping"} x"#,
        r#"{"type":"ping"}{"type":"ping"}"#,
        r#"{'type':'ping'}"#,
        r#"{type:"ping"}"#,
        r#"{"type":}"#,
        r#"{"type":null}"#,
        r#"{"type":7}"#,
        r#"{"type":["ping"]}"#,
        r#"{"type":{"a":1}}"#,
        r#"{"data":{}}"#,
        "{\"type\":\"pi\nng\"}",
        r#"{"type":"ping","x":NaN}"#,
        r#"{"type":"ping","x":01}"#,
        r#"{"type":"ping","x":"\x"}"#,
        "\u{feff}{\"type\":\"ping\"}",
        &deep_array,
        &deep_object,
        &deep_open,
        "not json at all",
    ];
    for input in inputs {
        let shown: String = input.chars().take(60).collect();
        client.send_text(input).await;
        let error = client.next_any().await;
        // The first status frame may arrive in between.
        let error = if error["type"] == "connection_status_update" {
            client.next_any().await
        } else {
            error
        };
        assert_eq!(error["type"], "error", "{shown:?}: {error}");
        let code = error["data"]["code"].as_str().expect("a code").to_owned();
        assert!(
            code == "invalid_json" || code == "invalid_frame",
            "{shown:?}: {error}"
        );
        assert_error(&error, &code, false);
    }
    client.fence().await;
}

#[tokio::test]
async fn chat_fields_of_the_wrong_type_get_an_error_with_the_request_id() {
    let server = unlimited();
    let mut client = Client::connect(&server, "s1", "u1", "customer").await;
    let long = "x".repeat(129);
    for data in [
        json!(null),
        json!([]),
        json!("text"),
        json!({}),
        json!({"message": null}),
        json!({"message": 7}),
        json!({"message": ["a"]}),
        json!({"message": ""}),
        json!({"message": "a", "attachments": {}}),
        json!({"message": "a", "attachments": "a.png"}),
        json!({"message": "a", "message_type": 1}),
        json!({"message": "a", "client_message_id": {}}),
        json!({"message": "a", "client_message_id": long}),
    ] {
        client
            .send(json!({"type": "send_message", "data": data, "request_id": "r1"}))
            .await;
        let error = client
            .next_where("an error", |frame| frame["request_id"] == "r1")
            .await;
        assert_error(&error, "invalid_field", false);
    }
    client
        .send(json!({"type": "send_message", "request_id": "r1"}))
        .await;
    assert_error(&client.next("error").await, "invalid_field", false);
    client.expect_none("new_message").await;
}

#[tokio::test]
async fn chat_the_last_of_duplicate_keys_wins() {
    let server = Server::start();
    let mut client = Client::connect(&server, "s1", "u1", "customer").await;
    client
        .send_text(r#"{"type":"dance","type":"ping","request_id":"a","request_id":"b"}"#)
        .await;
    assert_eq!(client.next("pong").await["request_id"], "b");
    client
        .send_text(r#"{"type":"send_message","data":{"message":"a"},"data":{"message":"b","message":"c"}}"#)
        .await;
    assert_eq!(client.next("new_message").await["data"]["message"], "c");
    client.send_text(r#"{"type":"ping","type":"dance"}"#).await;
    assert_eq!(client.next("error").await["error"], "Unknown message type: dance");
}

#[tokio::test]
async fn chat_unusual_json_is_refused_or_passed_on_by_value() {
    let server = unlimited();
    let mut client = Client::connect(&server, "s1", "u1", "customer").await;
    let mut other = Client::connect(&server, "s1", "u2", "agent").await;
    // A text, and what it means where it is accepted; None: it is no JSON, or has no value in 64 bits, so it is
    // refused.
    let texts = [
        (r#""a\u0000b""#, Some(json!("a\0b"))),
        (r#""\ud83d\ude00""#, Some(json!("\u{1F600}"))),
        (r#""\ud800""#, Some(json!("\u{FFFD}"))),
        (r#""\ud80""#, None),
    ];
    let attachments = [
        ("[9007199254740993]", Some(json!([9007199254740993i64]))),
        ("[18446744073709551615]", Some(json!([18446744073709551615u64]))),
        ("[-9223372036854775808]", Some(json!([i64::MIN]))),
        ("[1.5e300]", Some(json!([1.5e300]))),
        ("[1e999]", None),
        ("[-1e999]", None),
        (
            "[123456789012345678901234567890123456789012345678901234567890]",
            None,
        ),
        (
            r#"[{"a":{"b":{"c":[[[["deep"]]]]}}}]"#,
            Some(json!([{"a": {"b": {"c": [[[["deep"]]]]}}}])),
        ),
        (r#"["</script>\u2028"]"#, Some(json!(["</script>\u{2028}"]))),
    ];
    let frames = texts
        .map(|(text, meaning)| (format!(r#"{{"message":{text}}}"#), "message", meaning))
        .into_iter()
        .chain(attachments.map(|(text, meaning)| {
            (
                format!(r#"{{"message":"m","attachments":{text}}}"#),
                "attachments",
                meaning,
            )
        }));
    for (data, field, meaning) in frames {
        client
            .send_text(format!(
                r#"{{"type":"send_message","request_id":"r","data":{data}}}"#
            ))
            .await;
        let answer = client
            .next_where("an answer", |f| {
                f["type"] == "message_sent" || f["type"] == "error"
            })
            .await;
        match meaning {
            Some(meaning) => {
                assert_eq!(answer["type"], "message_sent", "{data}: {answer}");
                assert_eq!(other.next("new_message").await["data"][field], meaning, "{data}");
            }
            None => assert_error(&answer, "invalid_json", false),
        }
    }
    // The same rule on every path: an unread field is held to it, too.
    for ignored in [r#""\ud80""#, "1e999"] {
        client
            .send_text(format!(
                r#"{{"type":"ping","request_id":"r","unread":{ignored}}}"#
            ))
            .await;
        assert_error(&client.next("error").await, "invalid_json", false);
    }
    client.expect_none("pong").await;
    other.expect_none("new_message").await;
}

#[tokio::test]
async fn chat_request_ids_are_echoed_unchanged() {
    let server = unlimited();
    let mut client = Client::connect(&server, "s1", "u1", "customer").await;
    for id in [
        json!("r"),
        json!(""),
        json!("é\"\\\n"),
        json!("x".repeat(128)),
        json!(0),
        json!(-7),
        json!(9007199254740993i64),
    ] {
        client.send(json!({"type": "ping", "request_id": id})).await;
        assert_eq!(client.next("pong").await["request_id"], id);
    }
    client.send(json!({"type": "ping", "request_id": null})).await;
    assert!(client.next("pong").await.get("request_id").is_none());
    for id in [json!({}), json!([1]), json!(true), json!("x".repeat(10_000))] {
        client.send(json!({"type": "ping", "request_id": id})).await;
        assert_eq!(
            client.next("error").await["data"]["code"],
            "invalid_field",
            "{id}"
        );
    }
}
