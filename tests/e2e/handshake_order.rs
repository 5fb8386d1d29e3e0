//! The order in which a handshake's faults are found, that each is counted, and routes with a slash at their end.

use crate::handshake_headers::{requests_refused, upgrades_refused};
use crate::support::raw::{HANDSHAKE, handshake, handshake_with};
use crate::support::{Http, RawWs, Response, Server};

#[track_caller]
fn open(server: &Server, path: &str, headers: &[(&str, &str)]) -> Response {
    Http::request(server.http_addr(), "GET", path, headers)
}

const EVIL: (&str, &str) = ("Origin", "https://evil.example");

/// A browser can't see why a handshake failed: it asks the same path by a plain GET, and 426 says that nothing else
/// was wrong.
#[test]
fn handshake_checks_are_made_in_the_documented_order() {
    let server = Server::builder()
        .envs([
            ("ADMIN_ADDR", "127.0.0.1:0"),
            ("ENVIRONMENT", "production"),
            ("ALLOWED_ORIGINS", "https://a.example"),
            ("MAX_CONNECTIONS", "1"),
        ])
        .start();
    let one = RawWs::connect(&server, "s1", "u1", "customer");
    let bad_key = handshake_with("Sec-WebSocket-Key", Some("short"));
    let bad_version = handshake_with("Sec-WebSocket-Version", Some("12"));
    let body = [&HANDSHAKE[..], &[("Content-Length", "1")]].concat();
    let faulty = [&[][..], &bad_key, &bad_version, &body];
    for headers in faulty {
        let evil = [headers, &[EVIL]].concat();
        // Each request also has all of the later faults.
        open(&server, "/ws/%00/%00/nobody/more", &evil).assert_error(404);
        let posted = Http::request(server.http_addr(), "POST", "/ws/%00/%00/nobody", &evil);
        posted.assert_error(405);
        assert!(posted.header("allow").is_some_and(|allow| allow.contains("GET")));
        for (path, message) in [
            ("/ws/%00/%00/nobody", "Invalid session ID"),
            ("/ws/s/%00/nobody", "Invalid user ID"),
            ("/ws/s/u/nobody", "Invalid user type"),
        ] {
            let response = open(&server, path, &evil);
            response.assert_error(400);
            assert_eq!(response.json()["message"], message, "{path}");
        }
        open(&server, "/ws/s/u/agent", &evil).assert_error(403);
        // The node is full.
        let full = open(&server, "/ws/s/u/agent", headers);
        full.assert_error(503);
        assert!(full.header("retry-after").is_some());
    }
    drop(one);
    crate::support::eventually("a place is free", || server.health()["connections"] == 0);
    open(&server, "/ws/s/u/agent", &[]).assert_error(426);
    open(&server, "/ws/s/u/agent", &bad_version).assert_error(426);
    open(&server, "/ws/s/u/agent", &bad_key).assert_error(400);
    open(&server, "/ws/s/u/agent", &body).assert_error(400);

    let asked = faulty.len() as f64;
    for reason in ["session_id", "user_id", "user_type", "origin", "capacity"] {
        assert_eq!(upgrades_refused(&server, reason), asked, "{reason}");
    }
    for reason in ["no_upgrade", "version", "key", "body"] {
        assert_eq!(upgrades_refused(&server, reason), 1.0, "{reason}");
    }
    for reason in ["not_found", "method"] {
        assert_eq!(requests_refused(&server, reason), asked, "{reason}");
    }
    // Who was refused holds no place.
    let _next = RawWs::connect(&server, "s1", "u1", "customer");
}

#[test]
fn handshake_limits_are_checked_before_the_upgrade_headers() {
    let server = Server::builder()
        .envs([("ADMIN_ADDR", "127.0.0.1:0"), ("MAX_CONNECTIONS_PER_IP", "1")])
        .start();
    // A plain GET takes no place.
    for _ in 0..3 {
        open(&server, "/ws/s/u/agent", &[]).assert_error(426);
    }
    let _one = RawWs::connect(&server, "s", "u", "agent");
    open(&server, "/ws/s/u/agent", &[]).assert_error(429);
    assert_eq!(upgrades_refused(&server, "per_ip"), 1.0);
    assert_eq!(upgrades_refused(&server, "no_upgrade"), 3.0);
}

#[test]
fn http_each_refusal_is_counted_with_its_reason() {
    let server = Server::builder().env("ADMIN_ADDR", "127.0.0.1:0").start();
    let send = |bytes: &str| Http::exchange(server.http_addr(), bytes.as_bytes());
    let long = "a".repeat(9_000);
    let refusals: [(&str, u16, String); 7] = [
        ("uri_too_long", 414, handshake(&format!("/ws/{long}/u/agent"), &[])),
        ("host", 400, "GET /live HTTP/1.1\r\n\r\n".to_owned()),
        ("session_id", 400, "GET /api/session/%00/connection-status HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
        ("malformed", 400, "GET /he lth HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
        ("head_too_big", 431, format!("GET /live HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", long.repeat(2))),
        ("head_too_big", 431, format!("GET /live HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(64))),
        ("ambiguous_length", 400, "GET /live HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned()),
    ];
    for (reason, status, bytes) in refusals {
        let before = requests_refused(&server, reason);
        let response = send(&bytes).unwrap_or_else(|| panic!("{reason}: no answer"));
        assert_eq!(response.status, status, "{reason}: {response:?}");
        crate::support::eventually(reason, || requests_refused(&server, reason) == before + 1.0);
    }
}

#[test]
fn http_one_slash_at_the_end_is_accepted_on_every_route() {
    let server = Server::builder().env("ADMIN_ADDR", "127.0.0.1:0").start();
    for path in ["/health", "/live", "/ready", "/api/session/s1/connection-status"] {
        for suffix in ["", "/", "?a=/", "/?a=b"] {
            assert_eq!(
                open(&server, &format!("{path}{suffix}"), &[]).status,
                200,
                "{path}{suffix}"
            );
        }
        for suffix in ["//", "/%2f", "/.", "///"] {
            open(&server, &format!("{path}{suffix}"), &[]).assert_error(404);
        }
        let posted = Http::request(server.http_addr(), "POST", &format!("{path}/"), &[]);
        posted.assert_error(405);
    }
    for path in ["/metrics", "/live", "/ready"] {
        assert_eq!(
            Http::get(server.admin_addr(), &format!("{path}/")).status,
            200,
            "{path}/"
        );
        assert_eq!(
            Http::get(server.admin_addr(), &format!("{path}//")).status,
            404,
            "{path}//"
        );
    }
    let mut ws = RawWs::connect_path(server.http_addr(), "/ws/s1/u1/agent/?x=y");
    assert_eq!(ws.read_json()["data"]["user_type"], "agent");
    open(&server, "/ws/s1/u1/agent//", &HANDSHAKE).assert_error(404);
    open(&server, "/ws/s1/u1/agent/", &[]).assert_error(426);
    // An empty segment is an empty id, not a slash at the end.
    for path in [
        "/ws/s1/u1/",
        "/ws/s1/u1//",
        "/ws///",
        "/ws////",
        "/ws//u1/agent/",
        "/api/session//connection-status/",
    ] {
        open(&server, path, &HANDSHAKE).assert_error(400);
    }
}
