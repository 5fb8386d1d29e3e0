//! What an attacker tries around tokens: floods, junk keys, tokens in paths, users of the same id in another role.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::issuer::Issuer;
use crate::support::raw::HANDSHAKE;
use crate::support::tokens::{SECRET, Signer, claims, es256, hs, set};
use crate::support::{Client, Http, Response, Server, eventually};

fn bob() -> Value {
    claims("bob", "agent", Value::Null)
}

async fn open(server: &Server, path: &str, token: &str) -> Client {
    let bearer = format!("Bearer {token}");
    let mut client = Client::open(server.http_addr(), path, &[("Authorization", &bearer)])
        .await
        .unwrap_or_else(|error| panic!("{path}: {error}"));
    client.greet().await;
    client
}

#[track_caller]
fn shake(server: &Server, token: &str) -> Response {
    let bearer = format!("Bearer {token}");
    let headers = [&HANDSHAKE[..], &[("Authorization", bearer.as_str())]].concat();
    Http::request(server.http_addr(), "GET", "/ws/s/bob/agent", &headers)
}

async fn authenticate(client: &mut Client, token: &str) -> String {
    let frame = json!({"type": "auth", "request_id": "asked", "data": {"token": token}});
    client.send(frame).await;
    let answer = client
        .next_where("the answer", |frame| frame["request_id"] == "asked")
        .await;
    answer["data"]["code"].as_str().unwrap_or("").to_owned()
}

/// A browser or a proxy that keeps what was for one user would show it to the next.
#[test]
fn auth_nothing_of_the_api_and_no_refusal_is_stored() {
    let server = Server::builder()
        .env("JWT_SECRET", SECRET)
        .env("AUTH_FAILURES_PER_MINUTE", 2)
        .env("ENVIRONMENT", "production")
        .env("ALLOWED_ORIGINS", "https://a.example")
        .start();
    let bearer = format!("Bearer {}", hs().token(&bob()));
    let good = ("Authorization", bearer.as_str());
    let bad = ("Authorization", "Bearer x");
    let mut seen = Vec::new();
    for (method, path, headers) in [
        ("GET", "/api/session/s/messages", &[good][..]),
        ("GET", "/api/session/s/connection-status", &[good]),
        ("HEAD", "/api/session/s/connection-status", &[good]),
        ("OPTIONS", "/api/session/s/connection-status", &[]),
        ("GET", "/api/session/s/messages?limit=0", &[good]),
        ("GET", "/api/session/%00/messages", &[good]),
        ("GET", "/api/nothing", &[]),
        ("POST", "/api/session/s/connection-status", &[good]),
        ("GET", "/api/session/s/messages", &[]),
        ("GET", "/ws/s/bob/agent", &[]),
        ("GET", "/ws/s/alice/agent", &[good]),
        ("GET", "/ws/s/bob/agent", &[("Origin", "https://evil.example")]),
        ("GET", "/api/session/s/messages", &[bad]),
        ("GET", "/ws/s/bob/agent", &[bad]),
        ("GET", "/ws/s/bob/agent", &[bad]),
    ] {
        let response = Http::request(server.http_addr(), method, path, headers);
        seen.push(response.status);
        assert_eq!(
            response.header("cache-control"),
            Some("no-store"),
            "{method} {path}: {response:?}"
        );
    }
    for status in [200, 204, 400, 401, 403, 404, 405, 429] {
        assert!(seen.contains(&status), "{status}: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_refused_frames_are_limited_by_address_and_a_flood_ends_the_connection() {
    let server = Server::builder()
        .env("JWT_SECRET", SECRET)
        .env("AUTH_FAILURES_PER_MINUTE", 3)
        .env("RATE_LIMIT_MESSAGES", 0)
        .start();
    let good = hs().token(&bob());
    let mut client = open(&server, "/ws/s/bob/agent", &good).await;
    let mut other = open(&server, "/ws/s/bob/agent", &good).await;
    for _ in 0..3 {
        assert_eq!(authenticate(&mut client, "x").await, "invalid_token");
    }
    assert_eq!(authenticate(&mut client, "x").await, "rate_limited");
    // A good token is never refused for that, and who brings one is no flood.
    assert_eq!(authenticate(&mut client, &good).await, "");
    assert_eq!(authenticate(&mut other, "x").await, "rate_limited");
    let mut refused = 0;
    loop {
        client
            .send(json!({"type": "auth", "request_id": "flood", "data": {"token": "x"}}))
            .await;
        let answer = client.next_or_end(|frame| frame["request_id"] == "flood").await;
        let Some(answer) = answer else { break };
        assert_eq!(answer["data"]["code"], "rate_limited", "{answer}");
        assert_eq!(answer["data"]["retryable"], true, "{answer}");
        refused += 1;
        assert!(refused < 100, "it is never closed");
    }
    assert!(refused >= 5, "{refused}");
    assert_eq!(client.expect_close().await, 1008);
    other.fence().await;
}

/// The older one waits for the key set; the newer one does not have to, and must still be the last that counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_frames_count_in_the_order_in_which_they_were_sent() {
    let signer = es256();
    let issuer = Issuer::http(&set(&[signer.jwk("k")]));
    issuer.delays(Duration::from_secs(3));
    let began = Instant::now();
    let server = Server::builder()
        .env("JWT_SECRET", SECRET)
        .env("JWKS_URL", issuer.url())
        .start_listening();
    let mut client = open(&server, "/ws/s/bob/agent", &hs().token(&bob())).await;
    let frame = |id: &str, token: &str| json!({"type": "auth", "request_id": id, "data": {"token": token}});
    let elsewhere = claims("bob", "agent", json!(["s"]));
    client.send(frame("r1", &signer.token_of("k", &bob()))).await;
    client.send(frame("r2", &hs().token(&elsewhere))).await;
    client.send(frame("r3", "x")).await;
    // Answers to anything else do not wait.
    client.fence().await;
    let has_issuer_answered = began.elapsed() >= Duration::from_secs(3);
    assert!(has_issuer_answered || client.take_all("authenticated").is_empty());
    let mut order = Vec::new();
    while order.len() < 3 {
        let is_answer = |frame: &Value| frame["request_id"].as_str().is_some_and(|id| id.starts_with('r'));
        let answer = client.next_where("an answer", is_answer).await;
        order.push(format!("{} {}", answer["request_id"], answer["type"]));
    }
    assert_eq!(
        order,
        [
            "\"r1\" \"authenticated\"",
            "\"r2\" \"authenticated\"",
            "\"r3\" \"error\""
        ]
    );
}

#[test]
fn auth_junk_keys_do_not_keep_out_a_new_one() {
    let (first, second) = (es256(), es256());
    let issuer = Issuer::http(&set(&[first.jwk("k1")]));
    let server = Server::builder()
        .env("JWKS_URL", issuer.url())
        .env("AUTH_FAILURES_PER_MINUTE", 2)
        .start();
    assert_eq!(shake(&server, &first.token_of("k1", &bob())).status, 101);
    issuer.answers(200, &set(&[first.jwk("k1"), second.jwk("k2")]));
    let new = second.token_of("k2", &bob());
    let started = Instant::now();
    let mut junk = 0;
    let mut is_known = false;
    while !is_known {
        // Of one key and of many.
        for kid in ["junk", &format!("junk-{junk}")] {
            let response = shake(&server, &es256().token_of(kid, &bob()));
            assert!(matches!(response.status, 401 | 429 | 503), "{}", response.status);
        }
        junk += 1;
        let response = shake(&server, &new);
        is_known = response.status == 101;
        if !is_known {
            // Nobody's fault: it is not counted, and says when to come back.
            response.assert_error(503);
            let after: u64 = response
                .header("retry-after")
                .expect("a time")
                .parse()
                .expect("seconds");
            assert!((1..=11).contains(&after), "{after}");
        }
        assert!(
            started.elapsed() < Duration::from_secs(40),
            "the new key is not found"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(
        started.elapsed() < Duration::from_secs(18),
        "{:?}",
        started.elapsed()
    );
    // What a fetch has not found is refused, and counted again.
    eventually("a key that does not exist is refused", || {
        matches!(
            shake(&server, &es256().token_of("junk", &bob())).status,
            401 | 429
        )
    });
    assert!(issuer.requests() <= 1 + started.elapsed().as_secs() as usize / 10 + 1);
}

/// Tokens end up in paths by mistake: they stay out of the log.
#[test]
fn auth_a_token_in_a_path_is_not_logged() {
    let long = format!("canary{}", "y".repeat(400));
    let token = Signer::Secret(SECRET.as_bytes().to_vec()).token(&bob());
    let escaped: String = token.bytes().map(|byte| format!("%{byte:02x}")).collect();
    for (level, format) in [("trace", "text"), ("debug", "json"), ("info", "text")] {
        let server = Server::builder()
            .env("LOG_LEVEL", level)
            .env("LOG_FORMAT", format)
            .env("ADMIN_ADDR", "127.0.0.1:0")
            .start();
        for segment in [&token, &escaped, &format!("livechat.bearer.{token}"), &long] {
            for path in [
                format!("/ws/{segment}"),
                format!("/{segment}"),
                format!("/ws/{segment}/bob/agent"),
                format!("/ws/s/{segment}/agent"),
                format!("/ws/s/bob/{segment}"),
                format!("/ws/s/bob/agent/{segment}?token={segment}"),
                format!("/api/session/{segment}/messages"),
                format!("/api/session/s/messages/{segment}"),
            ] {
                for address in [server.http_addr(), server.admin_addr()] {
                    assert_ne!(Http::request(address, "GET", &path, &[]).status, 200, "{path}");
                }
            }
        }
        server.get("/api/session/plain-session/connection-status");
        if level != "info" {
            server.wait_log("plain-session");
        }
        let metrics = Http::get(server.admin_addr(), "/metrics").text();
        let told = format!("{}\n{metrics}", server.log().join("\n"));
        assert!(!told.contains("canary"), "{level}");
        for part in token.split('.') {
            assert!(!told.contains(part), "{part} at {level}");
        }
        assert!(!told.contains(&escaped[..60]), "{level}");
    }
}

/// Two issuers' users, or two tables of one backend, may share an id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_a_user_of_another_type_does_not_replace_ones_connections() {
    let server = Server::builder()
        .env("JWT_SECRET", SECRET)
        .env("MAX_CONNECTIONS_PER_USER", 1)
        .start();
    let agent = hs().token(&claims("42", "agent", Value::Null));
    let customer = hs().token(&claims("42", "customer", json!(["s"])));
    let mut of_agent = open(&server, "/ws/s/42/agent", &agent).await;
    let mut of_customer = Vec::new();
    for _ in 0..3 {
        of_customer.push(open(&server, "/ws/s/42/customer", &customer).await);
    }
    assert_eq!(of_customer[0].expect_close().await, 4009);
    of_agent.fence().await;
    let mut second = open(&server, "/ws/s/42/agent", &agent).await;
    assert_eq!(of_agent.expect_close().await, 4009);
    second.fence().await;
    of_customer[2].fence().await;
}

#[test]
fn auth_settings_that_leave_tokens_off_by_mistake_are_reported() {
    for name in [
        "JWT_SECRET",
        "JWT_SECRET_FILE",
        "JWT_PUBLIC_KEY",
        "JWT_PUBLIC_KEY_FILE",
        "JWKS_FILE",
        "JWKS_URL",
        "API_KEYS",
        "API_KEYS_FILE",
    ] {
        let exit = Server::builder().env(name, "").arg("--check-config").run();
        assert_eq!(exit.code, Some(0), "{name}: {}", exit.stderr);
        assert!(
            exit.stderr.contains(&format!("{name} is set but empty")),
            "{name}: {}",
            exit.stderr
        );
    }
    // What only means something with a key.
    for (name, value) in [
        ("JWT_LEEWAY", "10s"),
        ("JWT_CLAIM_USER", "uid"),
        ("JWT_CLAIM_ROLE", "kind"),
        ("JWT_CLAIM_SESSIONS", "rooms"),
    ] {
        let exit = Server::builder().env(name, value).arg("--check-config").run();
        assert_eq!(exit.code, Some(64), "{name}");
        assert!(
            exit.stderr.contains(name) && exit.stderr.contains("needs a key"),
            "{}",
            exit.stderr
        );
    }
    // Whoever else the issuer signs for is let in.
    let url = "https://id.example.com/jwks";
    let warned = |builder: crate::support::ServerBuilder| {
        let exit = builder.env("JWKS_URL", url).arg("--check-config").run();
        assert_eq!(exit.code, Some(0), "{}", exit.stderr);
        exit.stderr.contains("JWKS_URL without JWT_AUDIENCE")
    };
    assert!(warned(Server::builder()));
    assert!(!warned(Server::builder().env("JWT_AUDIENCE", "chat")));
}

#[test]
fn auth_an_error_about_a_key_set_shows_neither_user_nor_query() {
    for url in [
        "http://id.example.com/jwks?key=canary",
        "ftp://id.example.com/jwks?canary#canary",
        "https://bob:canary@id.example.com/jwks",
        "https://canary:canary@id.example.com/jwks?canary=1@x",
        "bob:canary@id.example.com/jwks",
        "https:/bob:can/ary@id.example.com?canary",
        "https://id.example.com:x/jwks?key=canary",
    ] {
        let exit = Server::builder().env("JWKS_URL", url).arg("--check-config").run();
        assert_eq!(exit.code, Some(64), "{url}");
        let told = exit.stdout + &exit.stderr;
        assert!(told.contains("JWKS_URL"), "{told}");
        assert!(!told.contains("canary") && !told.contains("can/ary"), "{told}");
    }
}
