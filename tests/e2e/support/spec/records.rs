//! Kafka records that nodes have written, by the topic's name in the tests.

use serde_json::Value;

use super::{DOCUMENTS, objections, of, shown};

/// How tests begin the names of topics, and what the documents call the channels.
const TOPICS: [(&str, &str); 4] = [
    ("messages-", "chatMessages"),
    ("typing-", "typingIndicators"),
    ("status-", "connectionStatus"),
    ("control-", "control"),
];

/// Which definition a value is to be checked against.
fn definition_for(channel: &str, value: &Value) -> &'static str {
    match (channel, value["type"].as_str()) {
        ("chatMessages", _) => "NewMessage",
        ("typingIndicators", Some("read_receipt")) => "ReadReceiptRecord",
        ("typingIndicators", _) => "TypingRecord",
        ("connectionStatus", _) => "ConnectionStatusRecord",
        _ => "ControlRecord",
    }
}

/// A record with the header of a node.
#[track_caller]
pub fn check<'a>(topic: &str, key: Option<&str>, value: &str, headers: impl Iterator<Item = &'a str>) {
    let channel = TOPICS.iter().find(|(start, _)| topic.starts_with(start));
    let Some((_, channel)) = channel else {
        panic!(
            "a record without a schema: what is the topic {topic}? {}",
            shown(value)
        );
    };
    let json: Value = serde_json::from_str(value).unwrap_or_else(|error| {
        panic!(
            "a record of a node in {topic} is no JSON: {error}: {}",
            shown(value)
        )
    });
    let name = definition_for(channel, &json);
    let objections = objections(&of(name), &json);
    assert!(
        objections.is_empty(),
        "a record of a node in {topic} against docs/spec/schemas.json#/$defs/{name}: {}: {}",
        objections.join("; "),
        shown(value)
    );
    let message = match *channel {
        "chatMessages" => "NativeRecord",
        _ => name,
    };
    let documented = &DOCUMENTS.asyncapi["components"]["messages"][message]["headers"]["properties"];
    for header in headers {
        assert!(
            documented.get(header).is_some(),
            "docs/spec/asyncapi.json#/components/messages/{message}/headers: no {header}, which a node has written"
        );
    }
    let session = json["session_id"]
        .as_str()
        .or(json["data"]["session_id"].as_str());
    assert!(
        key.is_some(),
        "a record of a node in {topic} has no key: {}",
        shown(value)
    );
    if let Some(session) = session {
        assert_eq!(key, Some(session), "the key in {topic}: {}", shown(value));
    }
}
