//! Frames of both directions, by their type.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

use super::{definition, foreign, is_valid, objections, of, referred, shown};

/// The definitions of each type, as `ClientFrame` and `ServerFrame` list them.
type ByType = HashMap<&'static str, Vec<&'static str>>;

static CLIENT: LazyLock<ByType> = LazyLock::new(|| by_type("ClientFrame"));
static SERVER: LazyLock<ByType> = LazyLock::new(|| by_type("ServerFrame"));

/// Made from another service's record: only where a test has written one.
const CONVERTED: [&str; 2] = ["ConvertedMessage", "ForeignStatusUpdate"];

fn by_type(union: &str) -> ByType {
    let mut by_type = ByType::new();
    for member in definition(union)["anyOf"].as_array().expect("a union") {
        let name = referred(member).expect("a reference");
        // `OtherFrame` has none.
        if let Some(kind) = definition(name)["properties"]["type"]["const"].as_str() {
            by_type.entry(kind).or_default().push(name);
        }
    }
    by_type
}

/// A text frame of the server: its value, if it is JSON. What another producer wrote need not be.
#[track_caller]
pub fn received(text: &str) -> Option<Value> {
    if foreign::is_payload(text.as_bytes()) {
        return serde_json::from_str(text).ok();
    }
    let frame: Value = serde_json::from_str(text)
        .unwrap_or_else(|error| panic!("no JSON from the server: {error}: {}", shown(text)));
    check_received(&frame);
    Some(frame)
}

/// A frame of the server that no other producer wrote.
#[track_caller]
pub fn check_received(frame: &Value) {
    let kind = frame["type"].as_str().unwrap_or_default();
    let names = SERVER.get(kind).map_or(&[][..], Vec::as_slice);
    let session = frame["data"]["session_id"].as_str().unwrap_or_default();
    let mut names = names
        .iter()
        .filter(|name| !CONVERTED.contains(name) || foreign::has_records(session));
    let text = frame.to_string();
    let Some(first) = names.next() else {
        panic!(
            "a frame without a schema: docs/spec/schemas.json has no frame of the server with the type {kind:?}: {}",
            shown(&text)
        );
    };
    let objections = objections(&of(first), frame);
    if !objections.is_empty() && !names.any(|name| is_valid(&of(name), frame)) {
        panic!(
            "a frame of the server against docs/spec/schemas.json#/$defs/{first}: {}: {}",
            objections.join("; "),
            shown(&text)
        );
    }
}

/// What `ClientFrame` has against a frame that a client sends.
pub fn objections_to_sent(frame: &Value) -> Vec<String> {
    let kind = frame["type"].as_str().unwrap_or_default();
    match CLIENT.get(kind).and_then(|names| names.first()) {
        None => vec![format!("no frame of a client has the type {kind:?}")],
        Some(name) => objections(&of(name), frame)
            .into_iter()
            .map(|objection| format!("{name}: {objection}"))
            .collect(),
    }
}

/// Compares what the server made of a frame with what the schemas say of it: it takes what is valid, and refuses as
/// invalid what is not.
#[track_caller]
pub fn check_answer(sent: &str, answer: &Value) {
    // The server reads unpaired surrogates, serde_json does not.
    let Ok(frame) = serde_json::from_str::<Value>(sent) else {
        return;
    };
    let objections = objections_to_sent(&frame);
    let (kind, code) = (answer["type"].as_str(), answer["data"]["code"].as_str());
    let is_taken = matches!(
        kind,
        Some("message_sent" | "pong" | "session_joined" | "authenticated")
    );
    let is_refused = matches!(code, Some("invalid_frame" | "unknown_type" | "invalid_field"));
    if is_taken {
        assert!(
            objections.is_empty(),
            "the server takes a frame that docs/spec/schemas.json refuses: {}: {}",
            objections.join("; "),
            shown(sent)
        );
    }
    // Schemas count characters where the server counts bytes, and know no clock.
    let is_beyond_schemas = !sent.is_ascii() || sent.contains("\\u") || frame["type"] == "message_read";
    if is_refused && !is_beyond_schemas {
        assert!(
            !objections.is_empty(),
            "the server refuses a frame that docs/spec/schemas.json allows: {answer}: {}",
            shown(sent)
        );
    }
}
