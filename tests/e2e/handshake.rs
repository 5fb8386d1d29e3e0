//! From an HTTP request to a WebSocket: which handshakes are accepted, and how others are refused.

use std::io::{Read, Write};
use std::net::TcpStream;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use sha1::{Digest, Sha1};

use crate::http_routes::{BAD_IDS, BAD_SESSION_IDS, GOOD_IDS, is_utc};
use crate::support::http::head;
use crate::support::raw::{ACCEPT, HANDSHAKE, KEY, handshake, handshake_with};
use crate::support::{Frame, Http, RawWs, Response, Server};

const PATH: &str = "/ws/s1/u1/customer";

#[track_caller]
fn open(server: &Server, path: &str, headers: &[(&str, &str)]) -> Response {
    Http::request(server.http_addr(), "GET", path, headers)
}

#[test]
fn handshake_answers_with_the_right_key() {
    let server = Server::start();
    let response = open(&server, PATH, &HANDSHAKE);
    assert_eq!(response.status, 101);
    assert_eq!(response.header("sec-websocket-accept"), Some(ACCEPT));
    assert!(
        response
            .header("upgrade")
            .is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
    );
    assert!(
        response
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("upgrade"))
    );

    for seed in 0..5u8 {
        let key = BASE64_STANDARD.encode([seed.wrapping_mul(37); 16]);
        let digest = Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
        let response = open(&server, PATH, &handshake_with("Sec-WebSocket-Key", Some(&key)));
        assert_eq!(
            response.header("sec-websocket-accept"),
            Some(&*BASE64_STANDARD.encode(digest))
        );
    }
}

#[test]
fn handshake_accepts_the_headers_of_browsers_and_proxies() {
    let server = Server::start();
    for (name, value) in [
        ("Connection", "keep-alive, Upgrade"),
        ("Connection", "upgrade"),
        ("Connection", "UPGRADE"),
        ("Connection", "close, Upgrade"),
        ("Upgrade", "WebSocket"),
        ("Upgrade", "WEBSOCKET"),
    ] {
        let response = open(&server, PATH, &handshake_with(name, Some(value)));
        assert_eq!(response.status, 101, "{name}: {value}");
    }
    assert_eq!(
        open(&server, &format!("{PATH}?token=a%20b"), &HANDSHAKE).status,
        101
    );
}

#[test]
fn handshake_negotiates_no_extension_and_no_protocol() {
    let server = Server::start();
    let offers = [
        (
            "Sec-WebSocket-Extensions",
            "permessage-deflate; client_max_window_bits",
        ),
        ("Sec-WebSocket-Protocol", "chat, superchat"),
    ];
    let response = open(&server, PATH, &[&HANDSHAKE[..], &offers].concat());
    assert_eq!(response.status, 101);
    assert_eq!(response.header("sec-websocket-extensions"), None);
    assert_eq!(response.header("sec-websocket-protocol"), None);
    // A client that compresses in spite of it breaks the protocol.
    let mut ws = RawWs::try_connect(server.http_addr(), PATH, &offers).expect("an upgrade");
    ws.send(Frame::text([0xaa, 0x56, 0x2a]).rsv(4));
    assert_eq!(ws.expect_close(), 1002);
}

#[test]
fn handshake_is_followed_by_the_greeting_first() {
    let server = Server::start();
    for (id, meaning) in GOOD_IDS {
        for user_type in ["customer", "agent", "admin"] {
            let mut ws = RawWs::connect_path(server.http_addr(), &format!("/ws/{id}/{id}/{user_type}"));
            let mut greeting = ws.read_json();
            assert!(is_utc(&greeting["data"]["timestamp"].take()));
            assert!(greeting["data"]["cursor"].take().is_string());
            let data = json!({
                "session_id": meaning,
                "user_id": meaning,
                "user_type": user_type,
                "timestamp": null,
                "message": "Successfully connected to chat session",
                "cursor": null,
            });
            assert_eq!(
                greeting,
                json!({"type": "connection_established", "success": true, "data": data})
            );
            // The next user of the loop must be the first again.
            ws.send(Frame::close(1000, ""));
            assert_eq!(ws.expect_close(), 1000);
            drop(ws);
            crate::support::eventually("nobody is there", || server.health()["connections"] == 0);
        }
    }
}

/// One write of the server is one read here: it halves the packets of a connect storm.
#[test]
fn handshake_and_greeting_are_sent_in_one_write() {
    let server = Server::start();
    let mut socket = TcpStream::connect(server.http_addr()).expect("a connection");
    socket
        .write_all(handshake(PATH, &[]).as_bytes())
        .expect("a request");
    let mut buffer = [0; 4096];
    let read = socket.read(&mut buffer).expect("an answer");
    let answer = buffer[..read].escape_ascii().to_string();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(answer.contains("connection_established"), "{answer}");
}

#[test]
fn handshake_refuses_bad_ids_and_types_with_400() {
    let server = Server::start();
    let longer = "x".repeat(200);
    for (id, why) in BAD_IDS.into_iter().chain([(&*longer, "200 characters")]) {
        for path in [format!("/ws/{id}/u1/customer"), format!("/ws/s1/{id}/customer")] {
            let response = open(&server, &path, &HANDSHAKE);
            assert_eq!(response.status, 400, "{path} ({why}): {response:?}");
            response.assert_error(400);
            // Also before the upgrade headers are checked.
            open(&server, &path, &[]).assert_error(400);
        }
    }
    // The lobby is no session, but has a handshake of its own.
    for (id, why) in BAD_SESSION_IDS.into_iter().filter(|(id, _)| *id != "@lobby") {
        let response = open(&server, &format!("/ws/{id}/u1/customer"), &HANDSHAKE);
        assert_eq!(response.status, 400, "{id} ({why}): {response:?}");
        response.assert_error(400);
    }
    for user_type in [
        "",
        "Customer",
        "AGENT",
        "ai",
        "system",
        "bot",
        "customer%00",
        "customer%20",
        "%zz",
        "..",
    ] {
        open(&server, &format!("/ws/s1/u1/{user_type}"), &HANDSHAKE).assert_error(400);
        open(&server, &format!("/ws/s1/u1/{user_type}"), &[]).assert_error(400);
    }
    assert_eq!(server.health()["connections"], 0);
}

#[test]
fn handshake_can_restrict_session_ids_to_uuids() {
    let server = Server::builder().env("SESSION_ID_FORMAT", "uuid").start();
    open(&server, "/ws/s1/u1/customer", &HANDSHAKE).assert_error(400);
    let path = "/ws/018f4e3a-7c1e-7000-8000-000000000000/u1/customer";
    assert_eq!(open(&server, path, &HANDSHAKE).status, 101);
}

#[test]
fn handshake_refuses_requests_without_an_upgrade_with_426() {
    let server = Server::start();
    let plain = open(&server, PATH, &[]);
    plain.assert_error(426);
    assert!(
        plain
            .header("upgrade")
            .is_some_and(|value| value.eq_ignore_ascii_case("websocket")),
        "{plain:?}"
    );

    for version in ["8", "7", "14", "x", ""] {
        let response = open(
            &server,
            PATH,
            &handshake_with("Sec-WebSocket-Version", Some(version)),
        );
        response.assert_error(426);
        assert_eq!(
            response.header("sec-websocket-version"),
            Some("13"),
            "version {version:?}"
        );
    }
    for (name, value) in [
        ("Connection", None),
        ("Connection", Some("close")),
        ("Connection", Some("keep-alive")),
        ("Upgrade", None),
        ("Upgrade", Some("h2c")),
        ("Sec-WebSocket-Version", None),
    ] {
        let response = open(&server, PATH, &handshake_with(name, value));
        assert!(
            matches!(response.status, 400 | 426),
            "{name}: {value:?}: {response:?}"
        );
        response.assert_error(response.status);
    }
    // HTTP/1.0 knows no upgrade.
    let old = handshake(PATH, &[]).replacen("HTTP/1.1", "HTTP/1.0", 1);
    let response = Http::exchange(server.http_addr(), old.as_bytes());
    assert!(response.is_none_or(|response| matches!(response.status, 400 | 426 | 505)));
}

#[test]
fn handshake_refuses_bad_keys_with_400() {
    let server = Server::start();
    let bytes = |count: usize| BASE64_STANDARD.encode(vec![7u8; count]);
    let keys = [
        "",
        "short",
        &bytes(15),
        &bytes(17),
        &bytes(18),
        &bytes(32),
        "dGhlIHNhbXBsZSBub25jZQ",
        "!!!!!!!!!!!!!!!!!!!!!!==",
        "dGhlIHNhbXBsZSBub25j!Q==",
    ];
    for key in keys {
        let response = open(&server, PATH, &handshake_with("Sec-WebSocket-Key", Some(key)));
        assert_eq!(response.status, 400, "{key:?}: {response:?}");
        response.assert_error(400);
    }
    open(&server, PATH, &handshake_with("Sec-WebSocket-Key", None)).assert_error(400);
    let twice = [&HANDSHAKE[..], &[("Sec-WebSocket-Key", KEY)]].concat();
    open(&server, PATH, &twice).assert_error(400);
}

#[test]
fn handshake_refuses_other_methods_with_405() {
    let server = Server::start();
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let response = Http::request(server.http_addr(), method, PATH, &HANDSHAKE);
        response.assert_error(405);
        assert!(
            response
                .header("allow")
                .is_some_and(|allow| allow.contains("GET")),
            "{response:?}"
        );
    }
    assert_eq!(server.health()["connections"], 0);
}

#[test]
fn handshake_checks_the_origin_in_production() {
    let server = Server::builder()
        .env("ENVIRONMENT", "production")
        .env("ALLOWED_ORIGINS", "https://a.example")
        .start();
    let with = |origin| [&HANDSHAKE[..], &[("Origin", origin)]].concat();
    assert_eq!(open(&server, PATH, &with("https://a.example")).status, 101);
    assert_eq!(
        open(&server, PATH, &HANDSHAKE).status,
        101,
        "a request without Origin is no browser's"
    );
    for origin in [
        "https://evil.example",
        "http://a.example",
        "https://a.example.evil",
        "https://a.example:444",
        "null",
        "",
    ] {
        let response = open(&server, PATH, &with(origin));
        assert_eq!(response.status, 403, "{origin:?}: {response:?}");
        response.assert_error(403);
    }
    // Ids are checked before, the upgrade's headers after it.
    open(&server, "/ws/%00/u1/customer", &with("https://evil.example")).assert_error(400);
    open(&server, PATH, &[("Origin", "https://evil.example")]).assert_error(403);
    open(&server, PATH, &[("Origin", "https://a.example")]).assert_error(426);
}

#[test]
fn handshake_accepts_any_origin_in_development_or_with_a_star() {
    let origin = [&HANDSHAKE[..], &[("Origin", "https://anything.example")]].concat();
    let development = Server::builder()
        .env("ALLOWED_ORIGINS", "https://a.example")
        .start();
    assert_eq!(open(&development, PATH, &origin).status, 101);
    let star = Server::builder()
        .env("ENVIRONMENT", "production")
        .env("ALLOWED_ORIGINS", "*")
        .start();
    assert_eq!(open(&star, PATH, &origin).status, 101);
}

#[test]
fn handshake_origin_comes_before_capacity() {
    let server = Server::builder()
        .env("ENVIRONMENT", "production")
        .env("ALLOWED_ORIGINS", "https://a.example");
    let server = server.env("MAX_CONNECTIONS", 1).start();
    let _one = RawWs::connect(&server, "s1", "u1", "customer");
    let evil = [&HANDSHAKE[..], &[("Origin", "https://evil.example")]].concat();
    open(&server, PATH, &evil).assert_error(403);
    open(&server, PATH, &HANDSHAKE).assert_error(503);
}

#[test]
fn handshake_frames_in_the_same_segment_are_processed_in_order() {
    let server = Server::start();
    let mut bytes = handshake(PATH, &[]).into_bytes();
    for number in 0..10 {
        bytes.extend(Frame::text(json!({"type": "ping", "request_id": number}).to_string()).encode());
    }
    // Big enough that the frames span hyper's first read buffer.
    let padding = " ".repeat(20_000);
    bytes.extend(Frame::text(json!({"type": "ping", "request_id": 10}).to_string() + &padding).encode());
    bytes.extend(Frame::ping("at the end").encode());
    let mut http = Http::connect(server.http_addr());
    http.write(&bytes);
    let mut ws = RawWs::upgraded(http).expect("an upgrade");
    assert_eq!(ws.read_json()["type"], "connection_established");
    for number in 0..=10 {
        let pong = ws.next("pong");
        assert_eq!(pong["request_id"], number);
    }
    ws.expect_alive();
}

#[test]
fn handshake_may_be_split_anywhere() {
    let server = Server::start();
    let mut bytes = handshake(PATH, &[]).into_bytes();
    let head = bytes.len();
    bytes.extend(Frame::text(json!({"type": "ping", "request_id": "cut"}).to_string()).encode());
    for cut in [
        1,
        20,
        head - 4,
        head - 2,
        head - 1,
        head,
        head + 1,
        head + 2,
        head + 6,
        bytes.len() - 1,
    ] {
        let mut http = Http::connect(server.http_addr());
        http.write(&bytes[..cut]);
        std::thread::sleep(std::time::Duration::from_millis(20)); // so that the server reads the parts apart
        http.write(&bytes[cut..]);
        let mut ws = RawWs::upgraded(http).expect("an upgrade");
        assert_eq!(ws.read_json()["type"], "connection_established", "cut at {cut}");
        assert_eq!(ws.next("pong")["request_id"], "cut", "cut at {cut}");
    }
}

#[test]
fn handshake_after_other_requests_of_the_connection() {
    let server = Server::start();
    let mut http = Http::connect(server.http_addr());
    assert!(http.still_answers());
    http.write(handshake("/ws/s1/u1/boss", &[]).as_bytes());
    http.read().expect("a refusal").assert_error(400);
    http.write((head("GET", "/live", &[]) + &handshake(PATH, &[])).as_bytes());
    assert_eq!(http.read().expect("an answer").status, 200);
    let mut ws = RawWs::upgraded(http).expect("an upgrade");
    assert_eq!(ws.read_json()["type"], "connection_established");
    ws.expect_alive();
}

#[test]
fn handshake_works_on_the_second_listener_too() {
    let port = crate::config::free_port();
    let server = Server::builder().env("WS_PORT", port).start();
    assert_eq!(server.ws_addr().port(), port);
    let mut first = RawWs::connect(&server, "s1", "u1", "customer");
    let mut second = RawWs::connect_path(server.ws_addr(), "/ws/s1/u2/agent");
    assert_eq!(second.read_json()["type"], "connection_established");
    second.send_json(&json!({"type": "send_message", "data": {"message": "across"}}));
    assert_eq!(first.next("new_message")["data"]["message"], "across");
    for path in ["/health", "/live", "/ready", "/api/session/s1/connection-status"] {
        assert_eq!(Http::get(server.ws_addr(), path).status, 200, "{path}");
    }
    Http::get(server.ws_addr(), "/nothing").assert_error(404);
}

/// A request before the handshake makes the server read in larger portions: what is behind the handshake is then more
/// than the WebSocket's reader takes at once.
#[test]
fn handshake_followed_by_many_frames_on_a_kept_connection() {
    const FRAMES: usize = 400;
    let server = Server::builder().env("RATE_LIMIT_MESSAGES", 0).start();
    let mut http = Http::connect(server.http_addr());
    let health = |filler: usize| head("GET", "/live", &[("X-Filler", &"x".repeat(filler))]);
    let bare = health(0).len();
    http.write(health(8_192 - bare).as_bytes());
    assert_eq!(http.read().expect("an answer").status, 200);
    let mut bytes = handshake("/ws/s/u/customer", &[]).into_bytes();
    // 64 bytes each: a portion of 8 KiB ends where a frame does.
    for number in 0..FRAMES {
        bytes.extend(Frame::ping(format!("{number:058}")).encode());
    }
    http.write(&bytes);
    let mut ws = RawWs::upgraded(http).expect("an upgrade");
    for number in 0..FRAMES {
        // Pongs that wait for the socket are one; here nothing waits.
        let payload = ws.next_pong_payload();
        assert_eq!(payload, format!("{number:058}").as_bytes());
    }
}
