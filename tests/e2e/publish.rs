//! `POST /api/session/{id}/messages`: a backend publishes, on a node without Kafka.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::dedup::{assert_one, messages, send};
use crate::messages::page;
use crate::support::http::head;
use crate::support::{Client, Http, Response, Server, ServerBuilder, spec};

pub const KEY: &str = "a-key-of-tests-0123456789";

pub fn with_key(server: ServerBuilder) -> ServerBuilder {
    server.env("API_KEYS", KEY)
}

pub fn path(session: &str) -> String {
    format!("/api/session/{session}/messages")
}

/// A request with a body and its length, with the key of the tests.
pub fn post(session: &str, headers: &[(&str, &str)], body: &str) -> String {
    let length = body.len().to_string();
    let common = [("X-API-Key", KEY), ("Content-Length", length.as_str())];
    head("POST", &path(session), &[&common, headers].concat()) + body
}

#[track_caller]
pub fn publish_raw(server: &Server, session: &str, headers: &[(&str, &str)], body: &str) -> Response {
    Http::exchange(server.http_addr(), post(session, headers, body).as_bytes()).expect("an answer")
}

/// Publishes a message; the data of the answer, which must be 201.
#[track_caller]
pub fn publish(server: &Server, session: &str, headers: &[(&str, &str)], body: &Value) -> Value {
    let response = publish_raw(server, session, headers, &body.to_string());
    assert_eq!(response.status, 201, "{}", response.text());
    let objections = spec::objections(&spec::of("PublishRequest"), body);
    assert!(
        objections.is_empty(),
        "docs/spec refuses it: {objections:?}: {body}"
    );
    let answer = response.json();
    assert_eq!(answer["success"], true, "{answer}");
    assert_eq!(answer["message"], "Message published successfully");
    let fields: Vec<_> = answer["data"].as_object().expect("data").keys().collect();
    assert_eq!(fields, ["message_id", "timestamp"], "{answer}");
    answer["data"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_publishes_a_message_as_a_client_would() {
    let server = with_key(Server::builder()).start();
    let mut client = Client::connect(&server, "s", "u", "customer").await;
    let sent = publish(&server, "s", &[], &json!({"message": "Hello", "unknown": 1}));
    let frame = client.next("new_message").await;
    assert_eq!(frame["success"], true);
    let expected = json!({
        "message_id": sent["message_id"], "session_id": "s", "sender_id": null, "sender_type": "system",
        "message": "Hello", "message_type": "text", "attachments": [], "timestamp": sent["timestamp"],
    });
    assert_eq!(frame["data"], expected);
    assert_eq!(page(&server, "s", "")["messages"], json!([frame]));
    // Each sender, and everything that a message may have.
    for sender_type in ["customer", "agent", "admin", "ai", "system"] {
        let body = json!({
            "message": "\u{1F600} é", "message_type": "note", "attachments": [{"a": [1, 2.5, null]}],
            "sender_type": sender_type, "sender_id": "José", "client_message_id": format!("of-{sender_type}"),
        });
        let sent = publish(&server, "s", &[("Content-Type", "application/json")], &body);
        let mut expected = body.clone();
        for (name, value) in [
            ("session_id", json!("s")),
            ("message_id", sent["message_id"].clone()),
        ] {
            expected[name] = value;
        }
        expected["timestamp"] = sent["timestamp"].clone();
        assert_eq!(client.next("new_message").await["data"], expected);
    }
    // A session that nobody is in, and one written in another way. With a client's id the answer follows the reading.
    let read = [("Idempotency-Key", "k")];
    publish(&server, "nobody", &read, &json!({"message": "a"}));
    assert_eq!(page(&server, "nobody", "")["messages"][0]["data"]["message"], "a");
    let uuid = "018F4E3A-7C1E-7000-8000-000000000000";
    publish(&server, uuid, &read, &json!({"message": "a"}));
    let stored = page(&server, &uuid.to_lowercase(), "");
    assert_eq!(stored["messages"][0]["data"]["session_id"], uuid.to_lowercase());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_publish_is_one_message_and_no_users() {
    let server = with_key(Server::builder()).start();
    let mut client = Client::connect(&server, "s", "u", "customer").await;
    let body = json!({"message": "a", "client_message_id": "c/1"});
    let first = publish(&server, "s", &[], &body);
    let header = [("Idempotency-Key", "c/1")];
    assert_eq!(publish(&server, "s", &[], &body), first);
    assert_eq!(publish(&server, "s", &header, &body), first, "both, and the same");
    let other_text = json!({"message": "b"});
    assert_eq!(
        publish(&server, "s", &header, &other_text),
        first,
        "in the header alone"
    );
    assert_ne!(publish(&server, "t", &[], &body), first, "in another session");
    let seen = messages(
        &mut client,
        &mut Client::connect(&server, "s", "x", "agent").await,
    )
    .await;
    assert_one(&seen, "a", &first);
    // The same id of a user, also of one who is named as the sender.
    let of_user = send(&mut client, "mine", "c/1").await;
    assert_ne!(of_user["message_id"], first["message_id"]);
    let named = json!({"message": "a", "sender_id": "u", "client_message_id": "c/1"});
    assert_eq!(publish(&server, "s", &[], &named), first);
    // At once: one of them is the first.
    let addr = server.http_addr();
    let request = post("s", &[("Idempotency-Key", "many")], r#"{"message":"many"}"#);
    let asked: Vec<_> = (0..8)
        .map(|_| {
            let request = request.clone();
            std::thread::spawn(move || Http::exchange(addr, request.as_bytes()).expect("an answer"))
        })
        .collect();
    let answers: Vec<_> = asked.into_iter().map(|asked| asked.join().unwrap()).collect();
    for answer in &answers {
        assert_eq!((answer.status, &answer.body), (201, &answers[0].body));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_message_is_refused_and_says_why() {
    let server = with_key(Server::builder()).env("MAX_MESSAGE_BYTES", 1000).start();
    let mut client = Client::connect(&server, "s", "u", "customer").await;
    for (body, named) in [
        ("", "JSON"),
        ("{", "JSON"),
        (r#"{"message":"a"} {}"#, "JSON"),
        (r#"["message"]"#, "object"),
        ("{}", "message"),
        (r#"{"message":""}"#, "message"),
        (r#"{"message":null}"#, "message"),
        (r#"{"message":["a"]}"#, "message"),
        (r#"{"message":"a","attachments":"b"}"#, "attachments"),
        (r#"{"message":"a","message_type":7}"#, "message_type"),
        (r#"{"message":"a","sender_type":"root"}"#, "sender_type"),
        (r#"{"message":"a","sender_id":"a/b"}"#, "sender_id"),
        (r#"{"message":"a","client_message_id":{}}"#, "client_message_id"),
    ] {
        let answer = publish_raw(&server, "s", &[], body);
        let text = answer.assert_error(400).json()["error"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(text.contains(named), "{body}: {text}");
    }
    let good = r#"{"message":"a","client_message_id":"c"}"#;
    for (header, status) in [
        (("Content-Type", "text/plain"), 415),
        (("Content-Encoding", "gzip"), 415),
        (("Idempotency-Key", "d"), 400),
        (("Idempotency-Key", ""), 400),
    ] {
        publish_raw(&server, "s", &[header], good).assert_error(status);
    }
    publish_raw(&server, "@lobby", &[], good).assert_error(400);
    publish_raw(&server, "a%2Fb", &[], good).assert_error(400);
    // Larger than a message may be: announced, and not.
    let large = json!({"message": "x".repeat(1000)}).to_string();
    publish_raw(&server, "s", &[], &large).assert_error(413);
    let chunked = head(
        "POST",
        &path("s"),
        &[("X-API-Key", KEY), ("Transfer-Encoding", "chunked")],
    ) + &format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    Http::exchange(server.http_addr(), chunked.as_bytes())
        .expect("an answer")
        .assert_error(413);
    client.fence().await;
    assert!(client.take_all("new_message").is_empty());
}

#[test]
fn a_record_that_is_too_large_is_refused() {
    let server = with_key(Server::builder()).env("MAX_RECORD_BYTES", 1024).start();
    let body = json!({"message": "x".repeat(1000)}).to_string();
    publish_raw(&server, "s", &[], &body).assert_error(413);
}

#[test]
fn only_an_api_key_may_publish() {
    let off = Server::builder().start();
    publish_raw(&off, "s", &[], r#"{"message":"a"}"#).assert_error(403);
    let on = with_key(Server::builder()).start();
    let body = r#"{"message":"a"}"#;
    let asked = |headers: &[(&str, &str)]| {
        let length = body.len().to_string();
        let headers = [&[("Content-Length", length.as_str())], headers].concat();
        let request = head("POST", &path("s"), &headers) + body;
        Http::exchange(on.http_addr(), request.as_bytes()).expect("an answer")
    };
    let (missing, wrong) = (asked(&[]), asked(&[("X-API-Key", "wrong")]));
    missing.assert_error(401);
    wrong.assert_error(401);
    assert_eq!(missing.body, wrong.body, "alike");
    assert_eq!(asked(&[("X-API-Key", KEY)]).status, 201);
}

#[test]
fn a_connection_is_kept_and_waits_for_the_body() {
    let server = with_key(Server::builder()).start();
    let mut http = Http::connect(server.http_addr());
    let good = r#"{"message":"a"}"#;
    for (body, status) in [(good, 201), ("{}", 400), (good, 201), ("[", 400)] {
        http.write(post("s", &[], body).as_bytes());
        assert_eq!(http.read().expect("an answer").status, status);
    }
    // Two at once, and one byte at a time.
    http.write((post("s", &[], good) + &post("s", &[], good)).as_bytes());
    for _ in 0..2 {
        assert_eq!(http.read().expect("an answer").status, 201);
    }
    for byte in post("s", &[], good).as_bytes() {
        http.write(&[*byte]);
    }
    assert_eq!(http.read().expect("an answer").status, 201);
    // A client that asks before it sends.
    let asks = |length: usize| {
        let length = length.to_string();
        let headers = [
            ("X-API-Key", KEY),
            ("Expect", "100-continue"),
            ("Content-Length", &length),
        ];
        head("POST", &path("s"), &headers)
    };
    http.write(asks(good.len()).as_bytes());
    assert_eq!(http.read().expect("an interim answer").status, 100);
    http.write(good.as_bytes());
    assert_eq!(http.read().expect("an answer").status, 201);
    http.write(asks(10_000_000).as_bytes());
    let refused = http.read().expect("an answer");
    assert_eq!(refused.assert_error(413).header("connection"), Some("close"));
    http.expect_closed();
}

#[test]
fn a_body_that_does_not_come_is_given_up() {
    let server = with_key(Server::builder()).start();
    let mut http = Http::connect(server.http_addr());
    http.set_read_timeout(Duration::from_secs(20));
    let request = post("s", &[], r#"{"message":"a"}"#);
    let began = Instant::now();
    http.write(&request.as_bytes()[..request.len() - 1]);
    let answer = http.read().expect("an answer");
    answer.assert_error(408);
    assert!(began.elapsed() > Duration::from_secs(9));
    http.expect_closed();
    // One that ends early leaves nothing behind.
    let mut http = Http::connect(server.http_addr());
    http.write(&request.as_bytes()[..request.len() - 1]);
    drop(http);
    assert_eq!(page(&server, "s", "")["messages"], json!([]));
}

#[test]
fn each_path_names_the_methods_that_it_answers() {
    let server = with_key(Server::builder()).start();
    let ask = |method: &str, path: &str| Http::request(server.http_addr(), method, path, &[]);
    for (path, allowed) in [
        ("/api/session/s/messages", "GET, HEAD, POST, OPTIONS"),
        ("/api/session/s/connection-status", "GET, HEAD, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
    ] {
        let options = ask("OPTIONS", path);
        assert_eq!(
            (options.status, options.header("allow")),
            (204, Some(allowed)),
            "{path}"
        );
        for method in ["PUT", "PATCH", "DELETE", "post"] {
            let refused = ask(method, path);
            refused.assert_error(405);
            assert_eq!(refused.header("allow"), Some(allowed), "{method} {path}");
        }
    }
    assert_eq!(ask("POST", "/health").status, 405);
    assert_eq!(ask("HEAD", "/api/session/s/messages").status, 200);
}
