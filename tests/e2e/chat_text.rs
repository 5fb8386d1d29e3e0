//! Text with unpaired surrogates, and which frame an `error` answers.

use serde_json::{Value, json};

use crate::chat_frames::{assert_error, unlimited};
use crate::support::{Client, Server};

/// Half of an emoji in every place of a JSON text, and what it becomes: U+FFFD for each unpaired surrogate, as Go's
/// encoding/json reads it.
const TEXTS: [(&str, &str); 14] = [
    // What `"cut 😀".slice(0, 5)` gives in JavaScript.
    (r"cut \ud83d", "cut \u{FFFD}"),
    (r"\ud83d cut", "\u{FFFD} cut"),
    (r"\ude00 low alone", "\u{FFFD} low alone"),
    (r"\uDE00\uD83D reversed", "\u{FFFD}\u{FFFD} reversed"),
    (r"\ud83d\ud83d\ude00", "\u{FFFD}😀"),
    (r"\ud83d\ude00\ude00", "😀\u{FFFD}"),
    (r"\uD83D\n\\ \/ next", "\u{FFFD}\n\\ / next"),
    (r"\ud83d\u0041", "\u{FFFD}A"),
    (r"\uDbFf and \udC00", "\u{FFFD} and \u{FFFD}"),
    (r"\ud83d\ude00 is a pair", "😀 is a pair"),
    (r"\uD83D\uDE00 is a pair", "😀 is a pair"),
    (r"\\ud83d is text", r"\ud83d is text"),
    (r"\\\ud83d", "\\\u{FFFD}"),
    (r"\ud7ff\ue000\ufffd", "\u{D7FF}\u{E000}\u{FFFD}"),
];

#[tokio::test]
async fn chat_half_an_emoji_is_a_replacement_character() {
    let server = unlimited();
    for (number, (text, meaning)) in TEXTS.into_iter().enumerate() {
        // Several mean the same, and a repeated client_message_id is one message.
        let session = format!("s{number}");
        let mut client = Client::connect(&server, &session, "u1", "customer").await;
        let mut other = Client::connect(&server, &session, "u2", "agent").await;
        client
            .send_text(format!(
                r#"{{"type":"send_message","request_id":"{text}","data":{{"message":"{text}","client_message_id":"{text}",
                "attachments":[{{"{text}":["{text}"]}}],"{text}":1}},"{text}":"{text}"}}"#
            ))
            .await;
        let answer = client
            .next_where("an answer", |frame| {
                frame["type"] == "message_sent" || frame["type"] == "error"
            })
            .await;
        assert_eq!(answer["type"], "message_sent", "{text}: {answer}");
        assert_eq!(answer["request_id"], meaning, "{text}");
        assert_eq!(answer["data"]["client_message_id"], meaning, "{text}");
        let data = &other.next("new_message").await["data"];
        assert_eq!(data["message"], meaning, "{text}");
        assert_eq!(data["client_message_id"], meaning, "{text}");
        assert_eq!(data["attachments"], json!([{meaning: [meaning]}]), "{text}");
    }
}

#[tokio::test]
async fn chat_a_broken_escape_is_still_an_error() {
    let server = unlimited();
    let mut client = Client::connect(&server, "s1", "u1", "customer").await;
    for text in [
        r"\ud83",
        r"\ud83g",
        r"\ud83d\u",
        r"\ud83d\u12",
        r"\ud83d\x",
        r"\ud83d\",
    ] {
        client
            .send_text(format!(r#"{{"type":"ping","x":"{text}"}}"#))
            .await;
        assert_error(&client.next("error").await, "invalid_json", false);
    }
    client.expect_none("pong").await;
}

/// Sends a frame that is refused, and checks that its error names it.
async fn refused(client: &mut Client, text: &str, code: &str, request_id: Value, client_message_id: Value) {
    client.send_text(text).await;
    let shown: String = text.chars().take(200).collect();
    let error = client.next("error").await;
    assert_eq!(error["data"]["code"], code, "{shown}: {error}");
    assert_eq!(error["request_id"], request_id, "{shown}: {error}");
    assert_eq!(
        error["data"]["client_message_id"], client_message_id,
        "{shown}: {error}"
    );
}

#[tokio::test]
async fn chat_an_error_names_the_message_it_refuses() {
    let server = unlimited();
    let mut client = Client::connect(&server, "s1", "u1", "customer").await;
    let deep = "[".repeat(40) + &"]".repeat(40);
    let deepest = "[".repeat(20_000);
    let long = "x".repeat(129);
    let ids = r#""request_id":"r","data":{"client_message_id":"c","message":"m""#;
    for (text, code) in [
        // The frame is valid JSON, and a field is refused.
        (
            format!(r#"{{"type":"send_message",{ids},"message":7}}}}"#),
            "invalid_field",
        ),
        (
            format!(r#"{{"type":"send_message",{ids},"message":""}}}}"#),
            "invalid_field",
        ),
        (
            format!(r#"{{"type":"send_message",{ids},"attachments":{{}}}}}}"#),
            "invalid_field",
        ),
        (
            format!(r#"{{"type":"send_message",{ids},"message_type":"{long}"}}}}"#),
            "invalid_field",
        ),
        (
            format!(r#"{{"type":"typing_start",{ids},"is_typing":1}}}}"#),
            "invalid_field",
        ),
        (format!(r#"{{"type":"dance",{ids}}}}}"#), "unknown_type"),
        (format!(r#"{{"type":7,{ids}}}}}"#), "invalid_frame"),
        (format!(r#"{{{ids}}}}}"#), "invalid_frame"),
        // It is not JSON by our rules, but what is before the fault can be read, and what is behind a number that is
        // too large or an array that is too deep.
        (
            format!(r#"{{"type":"send_message",{ids},"attachments":[1e999]}}}}"#),
            "invalid_json",
        ),
        (
            format!(r#"{{"type":"send_message","x":1e999,{ids}}}}}"#),
            "invalid_json",
        ),
        (
            format!(r#"{{"type":"send_message","x":123456789012345678901,{ids}}}}}"#),
            "invalid_json",
        ),
        (
            format!(r#"{{"type":"send_message","x":{deep},{ids}}}}}"#),
            "invalid_json",
        ),
        (
            format!(r#"{{"type":"send_message",{ids},"attachments":{deepest}"#),
            "invalid_json",
        ),
        (format!(r#"{{"type":"send_message",{ids}"#), "invalid_json"),
        (format!(r#"{{"type":"send_message",{ids}}}}} x"#), "invalid_json"),
        (format!(r#"{{"type":"send_message",{ids},}}"#), "invalid_json"),
        (
            format!(r#"{{"a":"\n\"\\ud83d",{ids},"broken":"\x"}}}}"#),
            "invalid_json",
        ),
    ] {
        refused(&mut client, &text, code, json!("r"), json!("c")).await;
    }
    for (text, code, request_id, client_message_id) in [
        // One of them is no id, and the other is read all the same.
        (
            r#"{"type":"send_message","request_id":{},"data":{"message":"m","client_message_id":"c"}}"#,
            "invalid_field",
            json!(null),
            json!("c"),
        ),
        (
            r#"{"type":"send_message","request_id":7,"data":{"message":"m","client_message_id":7}}"#,
            "invalid_field",
            json!(7),
            json!(null),
        ),
        (
            r#"{"type":"send_message","request_id":"r","data":{"message":"m","client_message_id":""}}"#,
            "invalid_field",
            json!("r"),
            json!(null),
        ),
        (
            r#"{"type":"send_message","request_id":1.5,"x":1e999,"data":{"client_message_id":"c"}}"#,
            "invalid_json",
            json!(null),
            json!("c"),
        ),
        // Half an emoji in an id.
        (
            r#"{"request_id":"\ud83d","data":{"client_message_id":"\ude00\n"}"#,
            "invalid_json",
            json!("\u{FFFD}"),
            json!("\u{FFFD}\n"),
        ),
        // Of duplicate keys the last one counts, here too.
        (
            r#"{"type":"dance","request_id":"a","request_id":"b","data":{"client_message_id":"a"},"data":{}}"#,
            "unknown_type",
            json!("b"),
            json!(null),
        ),
        (
            r#"{"request_id":"a","request_id":"b","data":{"client_message_id":"a","client_message_id":"b""#,
            "invalid_json",
            json!("b"),
            json!("b"),
        ),
        // Elsewhere they are other fields.
        (
            r#"{"client_message_id":"c","x":{"request_id":"r","data":{"client_message_id":"c"}},"data":[{"client_message_id":"c"}]"#,
            "invalid_json",
            json!(null),
            json!(null),
        ),
        (
            r#"["request_id","r",{"request_id":"r"}]"#,
            "invalid_frame",
            json!(null),
            json!(null),
        ),
    ] {
        refused(&mut client, text, code, request_id, client_message_id).await;
    }
    client.expect_none("message_sent").await;
}

#[tokio::test]
async fn chat_each_message_of_a_burst_is_answered_by_its_own_id() {
    // With a higher rate, a busy machine would let more of them pass.
    let server = Server::builder().env("RATE_LIMIT_MESSAGES", 1).start();
    let mut client = Client::connect(&server, "s1", "u1", "customer").await;
    const SENT: usize = 60;
    for n in 0..SENT {
        let data = json!({"message": format!("{n}"), "client_message_id": format!("c{n}")});
        let broken = if n % 2 == 0 { "" } else { r#","x":1e999"# };
        // Over the limit a broken frame is answered like any other.
        let broken = if n < 50 { "" } else { broken };
        client
            .send_text(format!(
                r#"{{"type":"send_message","request_id":{n},"data":{data}{broken}}}"#
            ))
            .await;
    }
    let (mut sent, mut refused) = (Vec::new(), Vec::new());
    for _ in 0..SENT {
        let answer = client
            .next_where("an answer", |frame| {
                frame["type"] == "message_sent" || frame["type"] == "error"
            })
            .await;
        let n = answer["request_id"].as_i64().expect("a request_id");
        assert_eq!(answer["data"]["client_message_id"], format!("c{n}"), "{answer}");
        if answer["type"] == "error" {
            assert_error(&answer, "rate_limited", true);
            refused.push(n);
        } else {
            sent.push(n);
        }
    }
    assert!(sent.len() >= 40 && refused.len() >= 10, "{sent:?} {refused:?}");
    sent.append(&mut refused);
    sent.sort_unstable();
    assert_eq!(
        sent,
        (0..SENT as i64).collect::<Vec<_>>(),
        "each is answered once"
    );
}
