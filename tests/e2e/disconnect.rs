//! `DELETE /api/session/{id}/users/{uid}`: a backend disconnects a user, on a node without Kafka and Redis.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Error;

use crate::publish::{KEY, with_key};
use crate::services::unique;
use crate::support::tokens::{SECRET, claims, hs};
use crate::support::{Client, Http, Response, Server, eventually, one_is_within};

#[track_caller]
pub fn delete(server: &Server, path: &str) -> Response {
    Http::request(server.http_addr(), "DELETE", path, &[("X-API-Key", KEY)])
}

/// Disconnects a user; the data of the answer, which must be 202.
#[track_caller]
pub fn disconnect(server: &Server, session: &str, user: &str, query: &str) -> Value {
    let response = delete(server, &format!("/api/session/{session}/users/{user}{query}"));
    assert_eq!(response.status, 202, "{}", response.text());
    let body = response.json();
    assert_eq!(
        (&body["success"], &body["message"]),
        (&json!(true), &json!("User disconnected"))
    );
    body["data"].clone()
}

/// The connections of user `u` on two nodes are closed within a second.
pub async fn everyone_is_disconnected_soon(a: &Server, b: &Server, session: &str) {
    one_is_within(Duration::from_secs(1), async || {
        let mut here = Client::connect(a, session, "u", "customer").await;
        let mut there = Client::connect(b, session, "u", "customer").await;
        disconnect(a, session, "u", "");
        let began = Instant::now();
        assert_eq!(here.expect_close().await, 4403);
        assert_eq!(there.expect_close().await, 4403);
        began.elapsed()
    })
    .await;
}

/// The status of a handshake, 101 if it is accepted.
pub async fn knock(server: &Server, session: &str, user: &str, query: &str) -> u16 {
    let path = format!("/ws/{session}/{user}/customer{query}");
    match Client::open(server.http_addr(), &path, &[]).await {
        Ok(_) => 101,
        Err(Error::Http(response)) => response.status().as_u16(),
        Err(error) => panic!("{path}: {error}"),
    }
}

/// The second node is asked before it need know the refusal.
pub async fn stays_refused_if_disconnected_elsewhere([a, b]: [&Server; 2]) {
    let sessions: Vec<_> = (0..10).map(|_| unique("elsewhere")).collect();
    for session in &sessions {
        disconnect(a, session, "u", "?for=10m");
        disconnect(b, session, "u", "");
    }
    for session in &sessions {
        // Each node has read the second record once it has read one of its own.
        for server in [a, b] {
            let until = disconnect(server, session, "u", "")["refused_until"].clone();
            assert!(until.is_string(), "{until}");
            assert_eq!(knock(server, session, "u", "").await, 403);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnected_user_is_closed_in_that_session_alone_and_may_come_back() {
    let server = with_key(Server::builder()).start();
    let mut tabs = Vec::new();
    for user_type in ["customer", "customer", "agent"] {
        tabs.push(Client::connect(&server, "s", "Jos%C3%A9", user_type).await);
    }
    let mut other = Client::connect(&server, "s", "other", "agent").await;
    let mut elsewhere = Client::connect(&server, "t", "Jos%C3%A9", "customer").await;
    let data = disconnect(&server, "s", "Jos%C3%A9", "");
    assert_eq!(
        data,
        json!({"session_id": "s", "user_id": "José", "refused_until": null})
    );
    for tab in &mut tabs {
        assert_eq!(tab.expect_close().await, 4403);
    }
    other.fence().await;
    elsewhere.fence().await;
    Client::connect(&server, "s", "Jos%C3%A9", "customer").await;
    // Nobody is there, and that is no error.
    disconnect(&server, "nobody", "u", "");
    server.wait_log("Disconnected \"José\" from session s for a backend: 3 connections");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_user_stays_out_until_it_ends() {
    let server = with_key(Server::builder()).start();
    let mut agent = Client::connect(&server, "s", "agent", "agent").await;
    let mut user = Client::connect(&server, "s", "u", "customer").await;
    let since = user.greeting["cursor"].as_str().unwrap().to_owned();
    let until = disconnect(&server, "s", "u", "?for=10m")["refused_until"].clone();
    assert!(until.as_str().is_some_and(|at| at.ends_with('Z')), "{until}");
    assert_eq!(user.expect_close().await, 4403);
    agent.say_acked("what is missed").await;
    for query in ["", &format!("?since={since}"), "?rewind=5"] {
        assert_eq!(knock(&server, "s", "u", query).await, 403, "{query}");
    }
    let plain = server.get("/ws/s/u/customer");
    assert!(plain.assert_error(403).text().contains("refused"));
    assert_eq!(knock(&server, "t", "u", "").await, 101, "in another session");
    assert_eq!(knock(&server, "s", "v", "").await, 101, "another user");
    // Without a time it stays as it is; then the last one counts.
    assert_eq!(disconnect(&server, "s", "u", "")["refused_until"], until);
    assert_eq!(knock(&server, "s", "u", "").await, 403);
    assert!(disconnect(&server, "s", "u", "?for=24h")["refused_until"].as_str() > until.as_str());
    assert_eq!(
        disconnect(&server, "s", "u", "?for=0s")["refused_until"],
        Value::Null
    );
    assert_eq!(knock(&server, "s", "u", "").await, 101);
    let began = Instant::now();
    disconnect(&server, "s", "u", "?for=1s");
    let status = knock(&server, "s", "u", "").await;
    // On a loaded machine it may be over by then.
    assert!(
        status == 403 || began.elapsed() >= Duration::from_secs(1),
        "{status}"
    );
    eventually("the refusal ends", || {
        server.get("/ws/s/u/customer").status == 426
    });
    // Times of day are whole milliseconds.
    assert!(began.elapsed() >= Duration::from_millis(990));
    // What was missed is there again.
    let path = format!("/ws/s/u/customer?since={since}");
    let mut back = Client::open(server.http_addr(), &path, &[])
        .await
        .expect("let in");
    back.next_where("what was missed", |frame| {
        frame["data"]["message"] == "what is missed"
    })
    .await;
}

/// The refusal comes while the user connects over and over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_joins_during_the_disconnect_does_not_survive() {
    let server = with_key(Server::builder()).start();
    for round in 0..25 {
        let session = format!("s{round}");
        let (refused, path) = (AtomicBool::new(false), format!("/ws/{session}/u/customer"));
        let knocks = async {
            let mut open = Vec::new();
            while !refused.load(Ordering::Relaxed) {
                match Client::open(server.http_addr(), &path, &[]).await {
                    Ok(client) => open.push(client),
                    Err(Error::Http(response)) => assert_eq!(response.status(), 403),
                    Err(error) => panic!("{error}"),
                }
            }
            open
        };
        let refuses = async {
            tokio::time::sleep(Duration::from_millis(round % 5)).await;
            tokio::task::block_in_place(|| disconnect(&server, &session, "u", "?for=10m"));
            refused.store(true, Ordering::Relaxed);
        };
        let (open, ()) = tokio::join!(knocks, refuses);
        for mut client in open {
            assert_eq!(client.expect_close().await, 4403, "round {round}");
        }
        assert_eq!(knock(&server, &session, "u", "").await, 403);
    }
}

#[test]
fn what_is_no_disconnect_is_refused_and_says_why() {
    let server = with_key(Server::builder()).start();
    for (path, status) in [
        ("/api/session/@lobby/users/u", 400),
        ("/api/session/a%2Fb/users/u", 400),
        ("/api/session/s/users/a%2Fb", 400),
        ("/api/session/s/users//", 400),
        ("/api/session/s/users/u?for=25h", 400),
        ("/api/session/s/users/u?for=soon", 400),
        ("/api/session/s/users/u?for=", 400),
        ("/api/session/s/users", 404),
    ] {
        delete(&server, path).assert_error(status);
    }
    let path = "/api/session/s/users/u";
    for method in ["GET", "HEAD", "POST", "PUT"] {
        let refused = Http::request(server.http_addr(), method, path, &[("X-API-Key", KEY)]);
        assert_eq!(
            (refused.status, refused.header("allow")),
            (405, Some("DELETE, OPTIONS"))
        );
    }
    let options = Http::request(server.http_addr(), "OPTIONS", path, &[]);
    assert_eq!(
        (options.status, options.header("allow")),
        (204, Some("DELETE, OPTIONS"))
    );
    let asked = |key| Http::request(server.http_addr(), "DELETE", path, key);
    let (missing, wrong) = (asked(&[]), asked(&[("X-API-Key", "wrong")]));
    assert_eq!((missing.status, &missing.body), (401, &wrong.body));
    delete(&Server::start(), path).assert_error(403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_does_not_help_who_is_refused() {
    let server = with_key(Server::builder())
        .env("JWT_SECRET", SECRET)
        .env("MAX_CONNECTIONS", 1)
        .start();
    let bearer = |user: &str, user_type: &str| {
        let token = hs().token(&claims(user, user_type, json!(["s", "t"])));
        format!("Bearer {token}")
    };
    let token = bearer("u", "customer");
    let headers = [("Authorization", token.as_str())];
    let mut user = Client::open(server.http_addr(), "/ws/s/u/customer", &headers)
        .await
        .expect("let in");
    user.greet().await;
    let get = |path: &str, headers: &[(&str, &str)]| Http::request(server.http_addr(), "GET", path, headers);
    // No place is left: the refusal comes first, and the token before it.
    assert_eq!(
        get("/ws/s/v/customer", &[("Authorization", &bearer("v", "customer"))]).status,
        503
    );
    disconnect(&server, "s", "v", "?for=10m");
    assert_eq!(
        get("/ws/s/v/customer", &[("Authorization", &bearer("v", "customer"))]).status,
        403
    );
    assert_eq!(get("/ws/s/v/customer", &[]).status, 401);
    // What is said there can't be read over HTTP, either, though elsewhere it can.
    disconnect(&server, "s", "u", "?for=10m");
    user.send(json!({"type": "auth", "data": {"token": token["Bearer ".len()..]}}))
        .await;
    assert_eq!(user.expect_close().await, 4403);
    assert!(user.take_all("authenticated").is_empty());
    for route in ["messages", "connection-status"] {
        get(&format!("/api/session/s/{route}"), &headers).assert_error(403);
        assert_eq!(get(&format!("/api/session/t/{route}"), &headers).status, 200);
    }
    let agent = bearer("agent", "agent");
    let seen = get("/api/session/s/messages", &[("Authorization", &agent)]);
    assert_eq!(seen.status, 200);
}
