//! Tokens before the upgrade and on routes: where they may be, what is refused and how, and what a refusal tells.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::handshake_headers::{requests_refused, upgrades_refused};
use crate::support::raw::{HANDSHAKE, handshake_with};
use crate::support::tokens::{SECRET, Signer, base64, claims, es256, es384, hs, now, rsa};
use crate::support::{Http, RawWs, Response, Server, ServerBuilder};

const PATH: &str = "/ws/s/alice/customer";

fn on() -> ServerBuilder {
    Server::builder()
        .env("JWT_SECRET", SECRET)
        .env("ADMIN_ADDR", "127.0.0.1:0")
}

fn alice() -> Value {
    claims("alice", "customer", json!(["s"]))
}

/// A handshake with this token.
#[track_caller]
fn shake(server: &Server, path: &str, token: &str) -> Response {
    let bearer = format!("Bearer {token}");
    let headers = [&HANDSHAKE[..], &[("Authorization", bearer.as_str())]].concat();
    Http::request(server.http_addr(), "GET", path, &headers)
}

#[track_caller]
fn refused(response: &Response, status: u16, error: &str) {
    response.assert_error(status);
    let challenge = (status == 401).then_some("Bearer");
    assert_eq!(response.header("www-authenticate"), challenge, "{response:?}");
    assert_eq!(response.json()["error"], error, "{response:?}");
}

const INVALID: &str = "the token is not valid";
const NOT_YOURS: &str = "the token is not for this user, type or session";
const MISSING: &str = "this needs a valid token (Authorization: Bearer) or API key";

#[test]
fn auth_bad_tokens_are_refused_before_the_upgrade_and_on_routes() {
    let server = on().env("AUTH_FAILURES_PER_MINUTE", 0).start();
    let good = hs().token(&alice());
    let long = claims(&"u".repeat(7_000), "customer", json!("*"));
    let mut old = alice();
    old["exp"] = (now() - 31).into();
    let twice = format!(
        r#"{{"sub":"alice","sub":"alice","role":"customer","sessions":"*","exp":{}}}"#,
        now() + 60
    );
    let late = r#"{"sub":"alice","role":"customer","sessions":"*","exp":18446744073709551616}"#;
    let unsigned = format!("{}.{}.", base64(r#"{"alg":"none"}"#), base64(alice().to_string()));
    let head = r#"{"alg":"HS256"}"#;
    let bad = [
        ("no token at all".to_owned(), INVALID),
        (good[..good.len() - 4].to_owned(), INVALID),
        (
            Signer::Secret(b"another secret of 32 bytes and more".to_vec()).token(&alice()),
            INVALID,
        ),
        (unsigned, INVALID),
        (es256().token(&alice()), INVALID),
        (hs().raw(head, &twice), INVALID),
        (hs().raw(head, late), INVALID),
        (
            hs().raw(r#"{"alg":"HS256","crit":["x"],"x":1}"#, &alice().to_string()),
            INVALID,
        ),
        (hs().token(&long), INVALID),
        (hs().token(&old), "the token has expired"),
    ];
    for (token, error) in &bad {
        refused(&shake(&server, PATH, token), 401, error);
        let bearer = format!("Bearer {token}");
        for route in ["connection-status", "messages"] {
            let path = format!("/api/session/s/{route}");
            let response = Http::request(server.http_addr(), "GET", &path, &[("Authorization", &bearer)]);
            refused(&response, 401, error);
        }
    }
    // A token of 16 KiB does not even fit into the head of a request.
    let huge = hs().token(&claims(&"u".repeat(16 * 1024), "customer", json!("*")));
    assert_eq!(shake(&server, PATH, &huge).status, 431);
    // Clocks may differ by the leeway.
    let mut late = alice();
    (late["exp"], late["nbf"]) = ((now() - 20).into(), (now() + 20).into());
    assert_eq!(shake(&server, PATH, &hs().token(&late)).status, 101);
    refused(
        &Http::request(server.http_addr(), "GET", PATH, &HANDSHAKE),
        401,
        MISSING,
    );
    let invalid = bad.len() as f64 - 1.0;
    assert_eq!(upgrades_refused(&server, "token_invalid"), invalid);
    assert_eq!(requests_refused(&server, "token_invalid"), 2.0 * invalid);
    assert_eq!(upgrades_refused(&server, "token_expired"), 1.0);
    assert_eq!(upgrades_refused(&server, "token_missing"), 1.0);
}

#[test]
fn auth_a_public_key_is_no_secret() {
    for signer in [rsa(), es256(), es384()] {
        let pem = signer.pem();
        let server = Server::builder().env("JWT_PUBLIC_KEY", &pem).start();
        assert_eq!(shake(&server, PATH, &signer.token(&alice())).status, 101);
        for secret in [&*pem, pem.trim_end()] {
            let forged = Signer::Secret(secret.as_bytes().to_vec()).token(&alice());
            refused(&shake(&server, PATH, &forged), 401, INVALID);
        }
        for other in [es256(), es384()] {
            refused(&shake(&server, PATH, &other.token(&alice())), 401, INVALID);
        }
    }
}

#[test]
fn auth_the_path_must_be_what_the_token_says() {
    let server = on().start();
    let token = hs().token(&alice());
    for path in [
        "/ws/s/bob/customer",
        "/ws/s/alice/agent",
        "/ws/s/alice/admin",
        "/ws/other/alice/customer",
        "/ws/s/Alice/customer",
    ] {
        refused(&shake(&server, path, &token), 403, NOT_YOURS);
    }
    for (claims, status) in [
        (
            json!({"sub": "alice", "role": "customer", "exp": now() + 60}),
            403,
        ),
        (
            json!({"sub": "alice", "role": "customer", "sessions": null, "exp": now() + 60}),
            403,
        ),
        (
            json!({"sub": "alice", "role": "customer", "sessions": "*", "exp": now() + 60}),
            101,
        ),
        (
            json!({"sub": "alice", "role": "superuser", "sessions": "*", "exp": now() + 60}),
            403,
        ),
        (
            json!({"sub": null, "role": "customer", "sessions": "*", "exp": now() + 60}),
            403,
        ),
        (
            json!({"sub": "alice", "role": "customer", "sessions": "s", "exp": now() + 60}),
            401,
        ),
    ] {
        assert_eq!(
            shake(&server, PATH, &hs().token(&claims)).status,
            status,
            "{claims}"
        );
    }
    // UUIDs are one session in any case, and user ids are compared as they were decoded.
    let uuid = "018f4e3a-7c1e-7000-8000-00000000000a";
    let token = hs().token(&claims("José a", "agent", json!([uuid.to_uppercase()])));
    for id in [uuid.to_owned(), uuid.to_uppercase()] {
        assert_eq!(
            shake(&server, &format!("/ws/{id}/Jos%C3%A9%20a/agent"), &token).status,
            101
        );
    }
}

#[test]
fn auth_a_token_may_come_as_a_subprotocol() {
    let server = on().start();
    let token = hs().token(&alice());
    let offer = |protocols: &str, more: &[(&str, &str)]| {
        let headers = [&HANDSHAKE[..], &[("Sec-WebSocket-Protocol", protocols)], more].concat();
        Http::request(server.http_addr(), "GET", PATH, &headers)
    };
    let answer = offer(&format!("livechat.v1, livechat.bearer.{token}"), &[]);
    assert_eq!(
        (answer.status, answer.header("sec-websocket-protocol")),
        (101, Some("livechat.v1"))
    );
    assert!(!format!("{answer:?}").contains(&token));
    // A client that offers only the token is let in, and gets no answer that it did not ask for.
    let answer = offer(&format!("livechat.bearer.{token}"), &[]);
    assert_eq!(
        (answer.status, answer.header("sec-websocket-protocol")),
        (101, None)
    );
    // Basic credentials are a proxy's.
    let basic = [("Authorization", "Basic dTpw")];
    assert_eq!(
        offer(&format!("livechat.v1, livechat.bearer.{token}"), &basic).status,
        101
    );
    let other = format!("Bearer {}", hs().token(&claims("alice", "customer", json!("*"))));
    refused(
        &offer(&format!("livechat.bearer.{token}"), &[("Authorization", &other)]),
        401,
        INVALID,
    );
    refused(&offer("livechat.v1, livechat.bearer.", &[]), 401, INVALID);
    refused(&offer("livechat.v1", &[]), 401, MISSING);
    // Never in a URL.
    let path = format!("{PATH}?token={token}&access_token={token}");
    refused(
        &Http::request(server.http_addr(), "GET", &path, &HANDSHAKE),
        401,
        MISSING,
    );
    let path = format!("/api/session/s/messages?token={token}");
    let response = Http::request(
        server.http_addr(),
        "GET",
        &path,
        &[("Sec-WebSocket-Protocol", &format!("livechat.bearer.{token}"))],
    );
    refused(&response, 401, MISSING);
}

#[test]
fn auth_tokens_are_checked_after_the_origin_and_before_the_limits() {
    let server = on()
        .env("ENVIRONMENT", "production")
        .env("ALLOWED_ORIGINS", "https://a.example")
        .env("MAX_CONNECTIONS", 1)
        .start();
    let bearer = format!("Bearer {}", hs().token(&alice()));
    let valid = ("Authorization", bearer.as_str());
    let open = |path: &str, headers: &[(&str, &str)]| Http::request(server.http_addr(), "GET", path, headers);
    let bad_key = handshake_with("Sec-WebSocket-Key", Some("short"));
    // A plain GET is how browsers ask: 426 means that nothing else was wrong.
    open(PATH, &[valid]).assert_error(426);
    open(PATH, &[]).assert_error(401);
    open(PATH, &[("Authorization", "Bearer x")]).assert_error(401);
    open("/ws/other/alice/customer", &[valid]).assert_error(403);
    open("/ws/%00/alice/customer", &[("Authorization", "Bearer x")]).assert_error(400);
    open(
        PATH,
        &[("Origin", "https://evil.example"), ("Authorization", "Bearer x")],
    )
    .assert_error(403);
    open(PATH, &[&bad_key[..], &[valid]].concat()).assert_error(400);
    let mut one = RawWs::try_connect(server.http_addr(), PATH, &[valid]).expect("let in");
    one.read_json();
    open(PATH, &[]).assert_error(401);
    open(PATH, &[valid]).assert_error(503);
    // In production with tokens, everything that is off without them is there.
    for path in ["/api/session/s/messages?limit=0", "/api/session/s/messages"] {
        open(path, &[]).assert_error(401);
    }
    open("/api/session/s/messages?limit=0", &[valid]).assert_error(400);
    assert_eq!(open("/api/session/s/messages", &[valid]).status, 200);
    // Pages may read why.
    let from_page = open("/api/session/s/messages", &[("Origin", "https://a.example")]);
    from_page.assert_error(401);
    assert_eq!(
        from_page.header("access-control-allow-origin"),
        Some("https://a.example")
    );
    assert!(
        from_page
            .header("access-control-expose-headers")
            .is_some_and(|names| names.contains("WWW-Authenticate"))
    );
    let preflight = Http::request(server.http_addr(), "OPTIONS", "/api/session/s/messages", &[]);
    assert_eq!(preflight.status, 204);
}

#[test]
fn auth_a_refusal_does_not_tell_whether_a_session_exists() {
    let server = on().start();
    let token = hs().token(&claims("bob", "agent", json!(["there"])));
    let bearer = format!("Bearer {token}");
    let mut bob = RawWs::try_connect(
        server.http_addr(),
        "/ws/there/bob/agent",
        &[("Authorization", &bearer)],
    )
    .expect("let in");
    bob.read_json();
    let of_alice = format!("Bearer {}", hs().token(&alice()));
    for headers in [
        &[][..],
        &[("Authorization", "Bearer x")],
        &[("Authorization", of_alice.as_str())],
    ] {
        for (there, not_there) in [
            ("/ws/there/alice/customer", "/ws/never/alice/customer"),
            (
                "/api/session/there/connection-status",
                "/api/session/never/connection-status",
            ),
            ("/api/session/there/messages", "/api/session/never/messages"),
        ] {
            let [there, not_there] = [there, not_there].map(|path| {
                let answer = Http::request(server.http_addr(), "GET", path, headers);
                let names: Vec<_> = answer
                    .headers
                    .iter()
                    .filter(|(name, _)| name != "date")
                    .cloned()
                    .collect();
                (answer.status, names, answer.text())
            });
            assert!(there.0 == 401 || there.0 == 403, "{there:?}");
            assert_eq!(there, not_there);
        }
    }
}

#[test]
fn auth_failures_are_limited_by_address_and_valid_tokens_never() {
    let server = on()
        .env("AUTH_FAILURES_PER_MINUTE", 3)
        .env("API_KEYS", "a-key-of-tests-0123456789")
        .start();
    let from = |address: &str, headers: &[(&str, &str)]| {
        let mut http = Http::connect_from(address, server.http_addr());
        http.send("GET", "/api/session/s/connection-status", headers);
        http.read().expect("an answer")
    };
    let bad = [("Authorization", "Bearer x")];
    let bearer = format!("Bearer {}", hs().token(&alice()));
    let bad_key = [("X-API-Key", "another-key-0123456789")];
    for _ in 0..10 {
        from("127.0.0.2", &[]).assert_error(401);
    }
    from("127.0.0.2", &bad).assert_error(401);
    // A wrong key is answered as a missing one is.
    refused(&from("127.0.0.2", &bad_key), 401, MISSING);
    assert_eq!(from("127.0.0.2", &bad_key).text(), from("127.0.0.2", &[]).text());
    for headers in [&bad, &bad_key] {
        let response = from("127.0.0.2", headers);
        refused(
            &response,
            429,
            "too many refused tokens or API keys from this address",
        );
        let after: u64 = response.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&after), "{after}");
    }
    assert_eq!(from("127.0.0.2", &[("Authorization", &bearer)]).status, 200);
    assert_eq!(
        from("127.0.0.2", &[("X-API-Key", "a-key-of-tests-0123456789")]).status,
        200
    );
    from("127.0.0.2", &[]).assert_error(401);
    from("127.0.0.3", &bad).assert_error(401);
    assert_eq!(requests_refused(&server, "auth_failures"), 2.0);
}

#[test]
fn auth_production_without_tokens_warns_and_offers_less() {
    let server = Server::builder()
        .env("ENVIRONMENT", "production")
        .env("ALLOWED_ORIGINS", "https://a.example")
        .start();
    let line = server.wait_log("without tokens");
    assert!(line.contains("WARN") && line.contains("JWT_SECRET"), "{line}");
    let off = "not offered in production without tokens (JWT_SECRET and others)";
    let get = |path: &str, headers: &[(&str, &str)]| Http::request(server.http_addr(), "GET", path, headers);
    refused(&get("/api/session/s/messages", &[]), 403, off);
    refused(&get("/ws/s/alice/customer?rewind=5", &HANDSHAKE), 403, off);
    // `since` wins over `rewind`; who has an id was there.
    assert_eq!(
        get("/ws/s/alice/customer?rewind=5&since=x", &HANDSHAKE).status,
        101
    );
    assert_eq!(get("/ws/s/alice/customer", &HANDSHAKE).status, 101);
    assert_eq!(get("/api/session/s/connection-status", &[]).status, 200);
    // A token means nothing here, not even a bad one.
    assert_eq!(
        get(
            "/api/session/s/connection-status",
            &[("Authorization", "Bearer x")]
        )
        .status,
        200
    );
}

/// 1,000 wrong tokens a second: what the others get is measured while they come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_wrong_tokens_do_not_delay_the_others() {
    let signer = es256();
    let server = Server::builder()
        .env("JWT_PUBLIC_KEY", signer.pem())
        .env("RATE_LIMIT_MESSAGES", 0)
        .start();
    let addr = server.http_addr();
    let bad = es256().token(&alice());
    let flood = std::thread::spawn(move || {
        let bearer = format!("Bearer {bad}");
        let mut http = Http::connect(addr);
        let start = Instant::now();
        for number in 0..3_000 {
            http.send(
                "GET",
                "/api/session/s/connection-status",
                &[("Authorization", &bearer)],
            );
            let status = http.read().expect("an answer").status;
            assert!(matches!(status, 401 | 429), "{status}");
            let due = start + Duration::from_millis(number);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    });
    let bearer = format!("Bearer {}", signer.token(&alice()));
    let mut client = crate::support::Client::open(addr, PATH, &[("Authorization", &bearer)])
        .await
        .unwrap();
    client.greet().await;
    let mut took = Vec::new();
    while !flood.is_finished() {
        let asked = Instant::now();
        client.fence().await;
        took.push(asked.elapsed());
    }
    flood.join().unwrap();
    took.sort_unstable();
    let median = took[took.len() / 2];
    assert!(median < Duration::from_millis(500), "{median:?}");
}
