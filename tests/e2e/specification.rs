//! The specifications in docs/spec: they agree with the code's own tables and routes, refuse what is wrong, describe the
//! examples in the pages, and are served whole.

use std::collections::BTreeSet;

use livechat_ws::protocol::code::{CloseCode, ErrorCode};
use livechat_ws::protocol::resume::NotResumed;
use serde_json::{Value, json};

use crate::docs::{examples, pages, routes};
use crate::support::spec::{
    DOCUMENTS, definition, definitions, frames, is_valid, objections, of, records, referred,
};
use crate::support::{Http, Server};

fn names(list: &Value) -> BTreeSet<&str> {
    let list = list.as_array().expect("a list").iter();
    list.map(|name| name.as_str().expect("a name")).collect()
}

#[test]
fn specification_codes_are_those_of_the_server() {
    let codes: BTreeSet<_> = ErrorCode::ALL.into_iter().map(ErrorCode::as_str).collect();
    assert_eq!(names(&definition("ErrorCode")["enum"]), codes);
    let reasons: BTreeSet<_> = NotResumed::ALL.into_iter().map(NotResumed::name).collect();
    assert_eq!(names(&definition("NotRecovered")["enum"]), reasons);
    let closes = DOCUMENTS.asyncapi["channels"]["session"]["x-close-codes"].as_array();
    let closes = closes.expect("close codes").iter();
    let closes: BTreeSet<_> = closes
        .map(|close| (close["code"].as_u64().unwrap(), close["name"].as_str().unwrap()))
        .collect();
    let sent: BTreeSet<_> = CloseCode::ALL
        .into_iter()
        .map(|code| (u64::from(code.code()), code.name()))
        .collect();
    assert_eq!(closes, sent);
}

#[test]
fn specification_routes_and_version_are_those_of_the_server() {
    let paths = DOCUMENTS.openapi["paths"].as_object().expect("paths");
    let paths: BTreeSet<_> = paths.keys().cloned().collect();
    assert_eq!(paths, routes().into_iter().collect());
    for document in [&DOCUMENTS.openapi, &DOCUMENTS.asyncapi] {
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}

/// Every definition has examples, which it allows.
#[test]
fn specification_definitions_have_examples() {
    for name in definitions() {
        let examples = definition(name)["examples"].as_array();
        let examples = examples.unwrap_or_else(|| panic!("{name} has no examples"));
        assert!(!examples.is_empty(), "{name} has no examples");
        for example in examples {
            let objections = objections(&of(name), example);
            assert!(objections.is_empty(), "{name}: {objections:?}: {example}");
        }
    }
}

/// What is left of a value without one of its fields, for each field of it and of its `data`.
fn lacking(value: &Value) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for place in ["", "/data"] {
        let Some(fields) = value.pointer(place).and_then(Value::as_object) else {
            continue;
        };
        for name in fields.keys() {
            let mut lacking = value.clone();
            let fields = lacking.pointer_mut(place).and_then(Value::as_object_mut);
            fields.expect("an object").remove(name);
            all.push((format!("{place}/{name}"), lacking));
        }
    }
    all
}

/// A schema that allowed anything would hold nothing against the wire.
#[test]
fn specification_closed_definitions_refuse_what_is_wrong() {
    let mut closed = 0;
    for name in definitions() {
        let schema = definition(name);
        if schema["additionalProperties"] != false {
            continue;
        }
        closed += 1;
        let example = &schema["examples"][0];
        for place in ["", "/data"] {
            // Only of another service's records is the data open.
            let is_open = name == "ConvertedMessage" && place == "/data";
            let mut wrong = example.clone();
            let Some(fields) = wrong.pointer_mut(place).and_then(Value::as_object_mut) else {
                continue;
            };
            fields.insert("surprise".into(), json!(1));
            assert!(is_open || !is_valid(&of(name), &wrong), "{name} allows {wrong}");
        }
        let optional = [
            "/request_id",
            "/data/cursor",
            "/data/client_message_id",
            "/data/show_escalation_offer",
        ];
        for (field, wrong) in lacking(example) {
            let is_refused = !is_valid(&of(name), &wrong);
            assert!(
                is_refused || optional.contains(&field.as_str()),
                "{name} allows it without {field}: {wrong}"
            );
        }
    }
    assert!(closed > 30, "only {closed} definitions are closed");
    for (name, wrong) in [
        (
            "Pong",
            json!({"type": "pong", "success": true, "data": {"timestamp": "2026-11-22T21:43:47Z"}}),
        ),
        ("Timestamp", json!("2026-13-22T21:43:47.561Z")),
        ("UserId", json!(" alice")),
        ("UserId", json!("a/b")),
        ("UserId", json!("a\u{200b}b")),
        ("SessionId", json!("..")),
        ("UuidV7", json!("8f14e45f-ceea-467f-a0e6-0c2f8b1d3a10")),
        (
            "SendMessage",
            json!({"type": "send_message", "data": {"message": ""}}),
        ),
        (
            "SendMessage",
            json!({"type": "send_message", "data": {"message": "", "attachments": []}}),
        ),
        ("OtherFrame", json!({"type": "pong"})),
        (
            "ServerFrame",
            json!({"type": "new_message", "success": true, "data": {"message": "a"}}),
        ),
    ] {
        assert!(!is_valid(&of(name), &wrong), "{name} allows {wrong}");
    }
}

/// A frame that no schema knows fails the test that reads it, and the message says where to look.
#[test]
fn specification_a_frame_without_a_schema_is_a_failure() {
    let failure = |frame: Value| {
        let caught = std::panic::catch_unwind(|| frames::check_received(&frame)).expect_err("a failure");
        *caught.downcast::<String>().expect("a message")
    };
    let unknown = failure(json!({"type": "surprise", "success": true, "data": {}}));
    assert!(
        unknown.contains("schemas.json") && unknown.contains("\"surprise\""),
        "{unknown}"
    );
    let wrong = failure(json!({"type": "pong", "success": true, "data": {"timestamp": 7}}));
    assert!(
        wrong.contains("#/$defs/Pong") && wrong.contains("/data/timestamp"),
        "{wrong}"
    );
}

/// The definitions that an example in a page may be of.
fn definitions_for(example: &Value) -> Vec<&'static str> {
    let is_record = example.get("session_id").is_some();
    match (example.get("type"), example.get("success")) {
        (Some(_), Some(_)) => vec!["ServerFrame"],
        (Some(_), None) if is_record => vec!["TypingRecord", "ReadReceiptRecord", "ConnectionStatusRecord"],
        (Some(_), None) => vec!["ClientFrame"],
        (None, Some(_)) => definitions()
            .filter(|name| *name == "Failure" || name.ends_with("Answer"))
            .collect(),
        (None, None) => vec![
            "Health",
            "DemoStats",
            "Live",
            "Ready",
            "ListedSession",
            "OldMessage",
            "ControlRecord",
            "PublishRequest",
        ],
    }
}

#[test]
fn specification_the_examples_in_the_pages_are_valid() {
    let mut checked = BTreeSet::<String>::new();
    // API is rendered from the definitions, whose examples have a test of their own.
    for path in pages().keys().filter(|path| *path != "docs/API.md") {
        for example in examples(path) {
            let names = definitions_for(&example);
            let Some(name) = names.iter().find(|name| is_valid(&of(name), &example)) else {
                let objections: Vec<_> = names
                    .iter()
                    .map(|name| (name, objections(&of(name), &example)))
                    .collect();
                panic!("{path}: an example without a schema: {objections:?}: {example}");
            };
            checked.insert((*name).to_owned());
            checked.extend(example["type"].as_str().map(str::to_owned));
        }
    }
    // Every type of a frame, and every body and record, has an example in some page.
    for union in ["ClientFrame", "ServerFrame"] {
        for member in definition(union)["anyOf"].as_array().expect("a union") {
            let kind = &definition(referred(member).expect("a reference"))["properties"]["type"]["const"];
            let is_shown = kind.as_str().is_none_or(|kind| checked.contains(kind));
            assert!(is_shown, "no page has an example of {kind}");
        }
    }
    for name in [
        "Failure",
        "Health",
        "MessagesAnswer",
        "SessionsAnswer",
        "PublishAnswer",
        "DisconnectAnswer",
        "ConnectionStatusAnswer",
        "OldMessage",
        "TypingRecord",
        "ReadReceiptRecord",
        "ControlRecord",
    ] {
        assert!(checked.contains(name), "no page has an example of {name}");
    }
}

#[test]
fn specification_records_of_nodes_are_checked_by_topic() {
    let example = |name: &str| definition(name)["examples"][0].to_string();
    let check = |topic: &str, name: &str, header: &'static str| {
        records::check(
            topic,
            Some("demo"),
            &example(name),
            ["livechat-node", header].into_iter(),
        );
    };
    check("messages-1", "NewMessage", "livechat-frame");
    check("typing-1", "TypingRecord", "livechat-node");
    check("typing-1", "ReadReceiptRecord", "livechat-node");
    check("status-1", "ConnectionStatusRecord", "livechat-node");
    check("control-1", "ControlRecord", "livechat-node");
    for (topic, name, header) in [
        ("messages-1", "TypingRecord", "livechat-frame"),
        ("typing-1", "TypingRecord", "livechat-surprise"),
        ("other-1", "TypingRecord", "livechat-node"),
    ] {
        let caught = std::panic::catch_unwind(|| check(topic, name, header));
        assert!(caught.is_err(), "{topic}, {name}, {header}");
    }
}

#[test]
fn specification_documents_are_served_whole() {
    let server = Server::builder().env("ADMIN_ADDR", "127.0.0.1:0").start();
    for (path, key) in [("/openapi.json", "openapi"), ("/asyncapi.json", "asyncapi")] {
        let response = server.get(path);
        assert_eq!(
            (response.status, response.header("cache-control")),
            (200, Some("no-cache"))
        );
        assert_eq!(response.header("access-control-allow-origin"), Some("*"));
        let served = response.json();
        let source = match key {
            "openapi" => &DOCUMENTS.openapi,
            _ => &DOCUMENTS.asyncapi,
        };
        for part in [key, "info", "servers"] {
            assert_eq!(served[part], source[part], "{path}: {part}");
        }
        let schemas = served["components"]["schemas"].as_object().expect("schemas");
        let text = response.text();
        for target in text
            .split("\"$ref\":\"#")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap())
        {
            assert!(served.pointer(target).is_some(), "{path}: nothing is at {target}");
        }
        assert!(schemas.len() > 20 && !text.contains("schemas.json"), "{path}");

        let etag = response.header("etag").expect("an ETag");
        let again = Http::request(server.http_addr(), "GET", path, &[("If-None-Match", etag)]);
        assert_eq!((again.status, again.body.len()), (304, 0));
        assert_eq!(again.header("etag"), Some(etag));
        let head = Http::request(server.http_addr(), "HEAD", path, &[]);
        assert_eq!((head.status, head.header("etag")), (200, Some(etag)));
        let post = Http::request(server.http_addr(), "POST", path, &[]);
        post.assert_error(405);
        assert_eq!(post.header("allow"), Some("GET, HEAD, OPTIONS"));
        assert_eq!(
            Http::request(server.http_addr(), "OPTIONS", path, &[]).status,
            204
        );
        Http::get(server.admin_addr(), path).assert_error(404);
    }
}

/// As in production: they describe the server, not who uses it.
#[test]
fn specification_documents_are_served_in_production() {
    let server = Server::builder()
        .env("ENVIRONMENT", "production")
        .env("ALLOWED_ORIGINS", "https://a.example.com")
        .start();
    let response = Http::request(
        server.http_addr(),
        "GET",
        "/openapi.json",
        &[("Origin", "https://a.example.com")],
    );
    assert_eq!(response.status, 200);
    assert_eq!(
        response.header("access-control-allow-origin"),
        Some("https://a.example.com")
    );
}
