//! Routes, methods and ids of the HTTP interface, and the bodies they answer with.

use serde_json::{Value, json};

use crate::support::http::head;
use crate::support::raw::handshake;
use crate::support::{Client, Http, Response, Server, eventually};

/// Ids as they stand in a path that neither a session nor a user may have, and why.
pub const BAD_IDS: [(&str, &str); 17] = [
    ("", "empty"),
    (".", "a path segment with a meaning"),
    ("..", "a path segment with a meaning"),
    ("%2e", "the same, encoded"),
    ("%2e%2e", "the same, encoded"),
    (".%2E", "the same, half encoded"),
    ("a%2fb", "an encoded slash"),
    ("a%2Fb", "an encoded slash"),
    ("%2e%2e%2fetc", "a way out"),
    ("a%5cb", "a backslash"),
    ("a%00", "NUL"),
    ("a%0d%0ab", "a line break"),
    ("%zz", "not an encoding"),
    ("a%", "an encoding cut short"),
    ("a%4", "an encoding cut short"),
    ("%2561", "encoded twice: decoded once, a percent sign is left"),
    ("%ff", "not UTF-8"),
];

/// And those that only a session may not have.
pub const BAD_SESSION_IDS: [(&str, &str); 6] = [
    ("a%20b", "a space"),
    ("%C3%A9", "beyond ASCII"),
    ("a:b", "a separator of Redis keys"),
    ("%7Ba%7D", "a hash tag of Redis keys"),
    ("a*b", "a pattern"),
    ("@lobby", "reserved"),
];

/// Ids in a path and their decoded values, for sessions and users.
pub const GOOD_IDS: [(&str, &str); 7] = [
    ("session_123", "session_123"),
    ("123", "123"),
    (
        "018f4e3a-7c1e-7000-8000-000000000000",
        "018f4e3a-7c1e-7000-8000-000000000000",
    ),
    ("%61bc", "abc"),
    ("a+b", "a+b"),
    ("...", "..."),
    ("A.b_c%40d%2Be=f~g-h", "A.b_c@d+e=f~g-h"),
];

fn status_path(id: &str) -> String {
    format!("/api/session/{id}/connection-status")
}

#[track_caller]
fn request(server: &Server, method: &str, path: &str) -> Response {
    Http::request(server.http_addr(), method, path, &[])
}

#[test]
fn http_unknown_paths_are_404_for_every_method() {
    let server = Server::start();
    let paths = [
        "/",
        "/nothing",
        "/Health",
        "/health//",
        "/health/x",
        "/api",
        "/api/session",
        "/api/session/s1",
        "/api/session/s1/",
        "/api/session/s1/connection-status/x",
        "/api/session/s1/connection-status//",
        "/api/session/s1/connection_status",
        "/ws",
        "/ws/s",
        "/ws/s/u",
        "/ws/s/u/customer/more",
        "/ws/s/u/customer//",
        "/metrics",
        "//health",
    ];
    for path in paths {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            let response = request(&server, method, path);
            assert_eq!(response.status, 404, "{method} {path}: {response:?}");
            response.assert_error(404);
        }
        let response = request(&server, "HEAD", path);
        assert_eq!((response.status, response.body.len()), (404, 0), "HEAD {path}");
    }
}

#[test]
fn http_wrong_methods_are_405_with_allow() {
    let server = Server::start();
    // The bad ids and types show that the method is checked before them.
    let paths = [
        "/health",
        "/live",
        "/ready",
        &status_path("s1"),
        &status_path("a%00"),
        "/ws/s/u/customer",
        "/ws/s/%zz/boss",
    ];
    for path in paths {
        for method in ["POST", "PUT", "DELETE", "PATCH", "TRACE", "FLY"] {
            let response = request(&server, method, path);
            response.assert_error(405);
            let allow = response
                .header("allow")
                .unwrap_or_else(|| panic!("{method} {path}: no Allow"));
            let allowed: Vec<_> = allow.split(',').map(str::trim).collect();
            assert!(allowed.contains(&"GET"), "{method} {path}: {allow}");
            assert!(!allowed.contains(&method), "{method} {path}: {allow}");
        }
    }
}

#[test]
fn http_head_is_answered_like_get_without_a_body() {
    let server = Server::start();
    for path in [
        "/health",
        "/live",
        "/ready",
        &status_path("s1"),
        &status_path("a%00"),
        "/nothing",
    ] {
        let get = request(&server, "GET", path);
        let mut http = Http::connect(server.http_addr());
        http.send("HEAD", path, &[]);
        let head = http.read_for("HEAD").expect("an answer to HEAD");
        assert_eq!(head.status, get.status, "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        assert!(http.still_answers(), "{path}: bytes of a body followed a HEAD");
    }
}

#[test]
fn http_options_answers_204_on_every_route() {
    let server = Server::start();
    for path in [
        "/health",
        "/live",
        "/ready",
        &status_path("s1"),
        "/ws/s/u/customer",
    ] {
        let response = request(&server, "OPTIONS", path);
        assert_eq!(response.status, 204, "{path}: {response:?}");
        assert!(response.body.is_empty());
    }
}

#[test]
fn http_bad_ids_are_400() {
    let server = Server::start();
    let long = "x".repeat(129);
    let longer = "x".repeat(200);
    for (id, why) in BAD_IDS
        .into_iter()
        .chain(BAD_SESSION_IDS)
        .chain([(&*long, "129 characters"), (&*longer, "200 characters")])
    {
        let response = request(&server, "GET", &status_path(id));
        assert_eq!(response.status, 400, "{id:?} ({why}): {response:?}");
        response.assert_error(400);
        assert_eq!(response.json()["message"], "Invalid session ID", "{id:?} ({why})");
    }
    assert_eq!(server.health()["status"], "ok");
}

#[test]
fn http_good_ids_are_decoded_once() {
    let server = Server::start();
    let longest = "x".repeat(128);
    for (id, _) in GOOD_IDS.into_iter().chain([(&*longest, "")]) {
        let response = request(&server, "GET", &status_path(id));
        assert_eq!(response.status, 200, "{id}: {response:?} {}", response.text());
    }
    // A query is no part of the path.
    assert_eq!(
        request(&server, "GET", &(status_path("s1") + "?a=%zz&b=../..")).status,
        200
    );
    assert_eq!(request(&server, "GET", "/health?x=1").status, 200);
}

#[tokio::test]
async fn http_encoded_and_plain_ids_are_the_same_session() {
    let server = Server::start();
    let _client = Client::connect(&server, "%61b%63", "%75ser", "customer").await;
    eventually("the user is listed", || {
        server.connection_status("abc")["total_customer"] == 1
    });
    assert_eq!(
        server.connection_status("abc")["users"]["user"]["user_id"],
        "user"
    );
    assert_eq!(server.connection_status("%61bc")["total_customer"], 1);
}

#[test]
fn http_session_ids_can_be_restricted_to_uuids() {
    let server = Server::builder().env("SESSION_ID_FORMAT", "uuid").start();
    for id in [
        "session_123",
        "123",
        "018f4e3a7c1e70008000000000000000",
        "018f4e3a-7c1e-7000-8000-00000000000g",
    ] {
        request(&server, "GET", &status_path(id)).assert_error(400);
    }
    for id in [
        "018f4e3a-7c1e-7000-8000-000000000000",
        "018F4E3A-7C1E-4000-8000-000000000000",
    ] {
        assert_eq!(request(&server, "GET", &status_path(id)).status, 200, "{id}");
    }
}

#[test]
fn http_health_contains_the_old_servers_fields() {
    let server = Server::builder().env("NODE_ID", "node-a").start();
    let health = server.health();
    assert_eq!(health["status"], "ok", "{health}");
    assert_eq!(health["message"], "LiveChat WebSocket server is running");
    assert_eq!(health["environment"], "development");
    assert!(
        health["port"]
            .as_str()
            .is_some_and(|port| port.parse::<u16>().is_ok()),
        "{health}"
    );
    assert_eq!(health["cors_origins"], "*");
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(health["node_id"], "node-a");
    assert!(health["uptime_seconds"].is_number(), "{health}");
    assert_eq!(
        (&health["connections"], &health["sessions"]),
        (&json!(0), &json!(0))
    );
    for dependency in ["kafka", "redis"] {
        let keys: Vec<_> = health[dependency]
            .as_object()
            .expect("an object")
            .keys()
            .cloned()
            .collect();
        assert_eq!(keys, ["mode", "status"], "{health}");
        assert!(
            health[dependency]["mode"].is_string() && health[dependency]["status"].is_string(),
            "{health}"
        );
    }
}

#[tokio::test]
async fn http_health_counts_connections_and_sessions() {
    let server = Server::start();
    let first = Client::connect(&server, "s1", "a", "customer").await;
    let second = Client::connect(&server, "s1", "b", "agent").await;
    let third = Client::connect(&server, "s2", "a", "customer").await;
    let counts = || {
        let health = server.health();
        (
            health["connections"].as_u64().unwrap(),
            health["sessions"].as_u64().unwrap(),
        )
    };
    eventually("three connections in two sessions", || counts() == (3, 2));
    first.close().await;
    eventually("two connections in two sessions", || counts() == (2, 2));
    second.close().await;
    third.close().await;
    eventually("nobody", || counts() == (0, 0));
}

#[test]
fn http_live_and_ready_are_on_every_port() {
    let server = Server::builder().env("ADMIN_ADDR", "127.0.0.1:0").start();
    for addr in [server.http_addr(), server.admin_addr()] {
        assert_eq!(Http::get(addr, "/live").status, 200);
        assert_eq!(Http::get(addr, "/ready").status, 200);
        assert_eq!(Http::get(addr, "/nothing").status, 404);
    }
    let metrics = Http::get(server.admin_addr(), "/metrics");
    assert_eq!(metrics.status, 200);
    assert!(
        metrics.text().lines().any(|line| line.starts_with("# TYPE ")),
        "{}",
        metrics.text()
    );
    // Clients have no business on the admin port.
    let mut http = Http::connect(server.admin_addr());
    http.write(handshake("/ws/s/u/customer", &[]).as_bytes());
    assert_eq!(http.read().expect("an answer").status, 404);
}

#[test]
fn http_an_unknown_session_is_an_empty_one() {
    let server = Server::start();
    let response = server.get(&status_path("nobody"));
    assert_eq!(response.status, 200);
    assert_eq!(
        response.json(),
        json!({
            "success": true,
            "message": "Connection status retrieved successfully",
            "data": {
                "users": {},
                "customer_connected": false,
                "agent_connected": false,
                "total_customer": 0,
                "total_agent": 0,
            },
        })
    );
}

/// Whether the text is a time in UTC as RFC 3339 writes it: `2026-01-31T12:00:00.123Z`.
pub fn is_utc(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    let shape: String = text
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    let Some(rest) = shape.strip_prefix("0000-00-00T00:00:00") else {
        return false;
    };
    let rest = rest.strip_suffix('Z').or_else(|| rest.strip_suffix("+00:00"));
    rest.is_some_and(|fraction| fraction.is_empty() || fraction.trim_end_matches('0') == ".")
}

#[tokio::test]
async fn http_a_live_session_lists_its_users() {
    let server = Server::start();
    let _customer = Client::connect(&server, "s1", "cust-1", "customer").await;
    let _agent = Client::connect(&server, "s1", "agent-1", "agent").await;
    let _admin = Client::connect(&server, "s1", "boss", "admin").await;
    let _elsewhere = Client::connect(&server, "s2", "cust-2", "customer").await;
    eventually("three are listed", || {
        server.connection_status("s1")["users"].as_object().unwrap().len() == 3
    });
    let mut status = server.connection_status("s1");
    for user in ["cust-1", "agent-1", "boss"] {
        let joined_at = status["users"][user]["joined_at"].take();
        assert!(is_utc(&joined_at), "{joined_at}");
    }
    let user = |id: &str, user_type: &str| json!({"user_id": id, "user_type": user_type, "joined_at": null});
    assert_eq!(
        status,
        json!({
            "users": {
                "cust-1": user("cust-1", "customer"),
                "agent-1": user("agent-1", "agent"),
                "boss": user("boss", "admin"),
            },
            "customer_connected": true,
            "agent_connected": true,
            "total_customer": 1,
            "total_agent": 1,
        })
    );
}

#[test]
fn http_a_connection_serves_many_requests_even_pipelined() {
    let server = Server::start();
    let mut http = Http::connect(server.http_addr());
    for _ in 0..20 {
        assert!(http.still_answers());
    }
    let three = head("GET", "/live", &[]) + &head("GET", "/nothing", &[]) + &head("GET", "/ready", &[]);
    http.write(three.as_bytes());
    let statuses: Vec<_> = (0..3).map(|_| http.read().expect("an answer").status).collect();
    assert_eq!(statuses, [200, 404, 200]);
    http.send("GET", "/live", &[("Connection", "close")]);
    assert_eq!(http.read().expect("an answer").status, 200);
    http.expect_closed();
}

#[test]
fn http_requests_are_logged_at_debug_level() {
    let server = Server::builder().env("LOG_LEVEL", "debug").start();
    server.get("/health");
    server.wait_log("200 - GET /health");
    server.get("/nothing");
    server.wait_log("404 - GET /nothing");
}

/// The old server's `/health` had the variable's value, not a list.
#[test]
fn http_health_shows_the_configured_origins() {
    for origins in [
        "https://a.example.com,https://b.example.com:8443",
        "https://a.example.com , https://b.example.com",
        "*",
    ] {
        for environment in ["development", "production"] {
            let server = Server::builder().env("ALLOWED_ORIGINS", origins);
            let health = server.env("ENVIRONMENT", environment).start().health();
            assert_eq!(health["cors_origins"], origins, "{environment}");
        }
    }
}
