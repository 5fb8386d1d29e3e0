//! The console at `/demo`: where it is served, with which headers, and what its figures show.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::services::PrivateRedis;
use crate::support::{Client, Http, Response, Server, eventually, tokens};

const STATS: &str = "/demo/stats.json";

#[track_caller]
fn get(server: &Server, path: &str) -> Response {
    Http::get(server.http_addr(), path)
}

/// The files that the page and its scripts name.
fn files(server: &Server) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut unread = vec!["/demo".to_owned()];
    while let Some(path) = unread.pop() {
        let text = get(server, &path).text();
        let absolute = text.split('"').filter(|part| part.starts_with("/demo/"));
        let relative = text
            .split("from \"./")
            .skip(1)
            .filter_map(|rest| Some(format!("/demo/{}", rest.split_once('"')?.0)));
        for file in absolute.map(str::to_owned).chain(relative) {
            let is_file = !file.contains('?') && file != STATS;
            if is_file && found.insert(file.clone()) {
                unread.push(file);
            }
        }
    }
    found
}

#[test]
fn demo_is_served_in_development() {
    let server = Server::start();
    let page = get(&server, "/demo");
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(page.text().starts_with("<!doctype html>"));
    assert_eq!(get(&server, "/demo/").body, page.body, "with a slash at its end");

    let files = files(&server);
    assert!(
        files.len() >= 10 && files.contains("/demo/livechat.mjs"),
        "{files:?}"
    );
    let mut bytes = page.body.len();
    for file in &files {
        let response = get(&server, file);
        assert_eq!(response.status, 200, "{file}");
        let expected = match file.rsplit_once('.').expect("a name with an ending").1 {
            "js" | "mjs" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "svg" => "image/svg+xml",
            other => panic!("{file}: no type is expected for {other}"),
        };
        assert_eq!(response.header("content-type"), Some(expected), "{file}");
        bytes += response.body.len();
    }
    assert!(bytes < 100_000, "{bytes} bytes");
    for path in [
        "/demo/nothing.js",
        "/demo/../demo",
        "/demo/index.html",
        "/demo/%2e%2e",
        "/demo/console.js/x",
    ] {
        get(&server, path).assert_error(404);
    }
}

#[test]
fn demo_pages_are_closed_to_foreign_code_and_frames() {
    let server = Server::start();
    let mut paths = files(&server);
    paths.extend(["/demo".to_owned(), STATS.to_owned()]);
    for path in paths {
        let response = get(&server, &path);
        let policy = response
            .header("content-security-policy")
            .unwrap_or_else(|| panic!("{path}: no policy"));
        let directives: BTreeSet<_> = policy.split(';').map(str::trim).collect();
        for expected in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(directives.contains(expected), "{path}: no {expected} in {policy}");
        }
        assert!(
            !policy.contains("unsafe") && !policy.contains("http"),
            "{path}: {policy}"
        );
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(response.header(name), Some(value), "{path}: {name}");
        }
    }
    // What the policy forbids is not there.
    let page = get(&server, "/demo").text();
    assert!(!page.contains("<style") && !page.contains(" style=") && !page.contains(" onclick="));
    assert!(!page.contains("://"), "another host");
}

#[test]
fn demo_answers_head_and_options_and_nothing_else() {
    let server = Server::start();
    for path in ["/demo", "/demo/console.css", STATS] {
        let whole = get(&server, path);
        let head = Http::request(server.http_addr(), "HEAD", path, &[]);
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        assert_eq!(head.header("content-type"), whole.header("content-type"));
        assert_eq!(
            Http::request(server.http_addr(), "OPTIONS", path, &[]).status,
            204
        );
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let response = Http::request(server.http_addr(), method, path, &[]);
            response.assert_error(405);
            assert_eq!(
                response.header("allow"),
                Some("GET, HEAD, OPTIONS"),
                "{method} {path}"
            );
        }
    }
}

#[test]
fn demo_that_is_off_is_like_any_unknown_path() {
    let production = || Server::builder().env("ENVIRONMENT", "production");
    let servers = [
        production().start(),
        production().env("DEMO", "false").start(),
        Server::builder().env("DEMO", "false").start(),
    ];
    for server in servers {
        for path in ["/demo", "/demo/", "/demo/console.js", "/demo/livechat.mjs", STATS] {
            for method in ["GET", "HEAD", "OPTIONS", "POST"] {
                let ask = |path| Http::request(server.http_addr(), method, path, &[]);
                let (response, unknown) = (ask(path), ask("/nothing"));
                assert_eq!(response.status, 404, "{method} {path}");
                assert_eq!(response.body, unknown.body, "{method} {path}");
                let names = |response: &Response| -> BTreeSet<String> {
                    response.headers.iter().map(|(name, _)| name.clone()).collect()
                };
                assert_eq!(names(&response), names(&unknown), "{method} {path}");
            }
        }
    }
}

#[test]
fn demo_in_production_is_asked_for_and_warned_of() {
    let server = Server::builder()
        .env("ENVIRONMENT", "production")
        .env("DEMO", "true")
        .start();
    assert_eq!(get(&server, "/demo").status, 200);
    assert_eq!(get(&server, STATS).json()["environment"], "production");
    // Nothing else is opened by it.
    assert_eq!(get(&server, "/api/sessions").status, 403);
    assert_eq!(get(&server, "/ws/@lobby/bob/agent").status, 403);
    server.wait_log("DEMO=true with ENVIRONMENT=production");
}

#[test]
fn demo_is_not_on_the_admin_port() {
    let server = Server::builder().env("ADMIN_ADDR", "127.0.0.1:0").start();
    for path in ["/demo", STATS] {
        Http::get(server.admin_addr(), path).assert_error(404);
    }
}

fn names(value: &Value) -> Vec<&str> {
    let object = value.as_object().expect("an object");
    object.keys().map(String::as_str).collect()
}

#[tokio::test]
async fn demo_figures_are_those_of_the_server_and_name_nobody() {
    let server = Server::builder()
        .env("JWT_SECRET", tokens::SECRET)
        .env("NODE_ID", "a-node-of-ours")
        .env("API_KEYS", "a-key-of-a-backend")
        .start();
    let stats = || get(&server, STATS).json();
    let before = stats();
    let open = async |user: &str, role: &str| {
        let token = tokens::hs().token(&tokens::claims(user, role, json!(["secret-session"])));
        let bearer = format!("Bearer {token}");
        let path = format!("/ws/secret-session/{user}/{role}");
        let headers = [("Authorization", bearer.as_str())];
        let mut client = Client::open(server.http_addr(), &path, &headers)
            .await
            .expect("let in");
        client.greet().await;
        client
    };
    let mut alice = open("alice-the-customer", "customer").await;
    let mut bob = open("bob-the-agent", "agent").await;
    for text in ["one", "two", "three"] {
        alice
            .send(json!({"type": "send_message", "data": {"message": text}}))
            .await;
        bob.next("new_message").await;
    }
    // Deliveries are counted when they are made.
    eventually("three messages are counted", || {
        let totals = &stats()["totals"];
        totals["messages"] == 3 && totals["deliveries"].as_u64() >= Some(6) && totals["delays"] != 0
    });
    let response = get(&server, STATS);
    assert_eq!(response.header("content-type"), Some("application/json"));
    let (text, now) = (response.text(), response.json());
    assert_eq!(
        names(&now),
        [
            "connections",
            "environment",
            "is_draining",
            "kafka",
            "needs_token",
            "nodes",
            "redis",
            "sessions",
            "totals",
            "uptime_ms",
            "version"
        ]
    );
    assert_eq!(
        names(&now["totals"]),
        ["delays", "delays_us", "deliveries", "messages"]
    );
    assert_eq!((&now["connections"], &now["sessions"]), (&json!(2), &json!(1)));
    assert_eq!((&now["nodes"], &now["needs_token"]), (&json!(1), &json!(true)));
    assert_eq!(now["kafka"], json!({"mode": "embedded", "status": "ok"}));
    assert!(now["uptime_ms"].as_u64() > before["uptime_ms"].as_u64());
    let total = |name: &str| now["totals"][name].as_u64().expect("a number");
    assert!(
        (1..=3).contains(&total("delays")) && total("delays_us") > 0,
        "{text}"
    );
    for secret in [
        "alice",
        "bob",
        "secret-session",
        "a-node-of-ours",
        "a-key-of-a-backend",
        tokens::SECRET,
        "127.0.0.1",
    ] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

/// The nodes that Redis knows, on both, and one less within its lease after one has died.
#[test]
fn redis_counts_the_live_nodes() {
    let redis = PrivateRedis::started();
    let node = |name: &str| {
        let node = Server::builder()
            .env("REDIS_URL", redis.url())
            .env("NODE_ID", name);
        let node = node.env("PRESENCE_TTL", "4s").env("PRESENCE_GRACE", "0s");
        node.env("ADMIN_ADDR", "127.0.0.1:0").start()
    };
    let knows = |node: &Server, count: u64| {
        eventually(&format!("{count} nodes"), || {
            get(node, STATS).json()["nodes"] == count && node.metric("livechat_nodes") == count as f64
        });
    };
    let a = node("a");
    knows(&a, 1);
    let (b, c) = (node("b"), node("c"));
    for node in [&a, &b, &c] {
        knows(node, 3);
    }
    drop(c);
    knows(&a, 2);
    b.signal("TERM");
    knows(&a, 1);
}
