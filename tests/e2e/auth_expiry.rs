//! Tokens of open connections: they end, and they are renewed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::tokens::{SECRET, claims, es256, hs, now};
use crate::support::{Client, Server, eventually};

fn on(leeway: &str) -> Server {
    Server::builder()
        .env("JWT_SECRET", SECRET)
        .env("JWT_LEEWAY", leeway)
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .start()
}

/// Bob's claims, with this many seconds left.
fn bob(left: i64) -> Value {
    let mut claims = claims("bob", "agent", json!(["s", "t"]));
    claims["exp"] = (now() + left).into();
    claims
}

async fn connect(server: &Server, path: &str, claims: &Value) -> Client {
    let bearer = format!("Bearer {}", hs().token(claims));
    let mut client = Client::open(server.http_addr(), path, &[("Authorization", &bearer)])
        .await
        .unwrap_or_else(|error| panic!("{path}: {error}"));
    client.greet().await;
    client
}

async fn authenticate(client: &mut Client, token: &str, request_id: &str) -> Value {
    let frame = json!({"type": "auth", "request_id": request_id, "data": {"token": token}});
    client.send(frame).await;
    client
        .next_where("the answer", |frame| frame["request_id"] == request_id)
        .await
}

/// A time of the wire, in seconds since 1970.
fn seconds(time: &Value) -> i64 {
    let time = time.as_str().expect("a time");
    assert!(time.ends_with('Z'), "{time}");
    time.parse::<jiff::Timestamp>().expect("RFC 3339").as_second()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_a_connection_ends_with_its_token_plus_the_leeway() {
    let server = on("2s");
    let claims = bob(3);
    let end = claims["exp"].as_i64().unwrap() + 2;
    let mut client = connect(&server, "/ws/s/bob/agent", &claims).await;
    // Less than a minute is left: it is told at once.
    let notice = client.next("token_expiring").await;
    assert_eq!(seconds(&notice["data"]["expires_at"]), end - 2);
    assert_eq!(
        client.log[1]["type"], "token_expiring",
        "right after the greeting"
    );
    assert_eq!(client.expect_close().await, 4401);
    let at = now();
    assert!((end..end + 15).contains(&at), "{} s after its end", at - end);
    assert_eq!(
        client
            .log
            .iter()
            .filter(|frame| frame["type"] == "token_expiring")
            .count(),
        1
    );
    let (_, reason) = client.closed.clone().unwrap();
    assert_eq!(reason, "the token has expired");
    eventually("it is counted", || {
        let page = crate::support::Http::get(server.admin_addr(), "/metrics").text();
        page.contains("livechat_connections_closed_total{reason=\"unauthenticated\"} 1\n")
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_a_renewed_token_keeps_the_connection_open() {
    let server = on("0s");
    let mut client = connect(&server, "/ws/s/bob/agent", &bob(8)).await;
    client.next("token_expiring").await;
    // More than a minute later there is a notice again, a minute before the end.
    let renewed = bob(63);
    let answer = authenticate(&mut client, &hs().token(&renewed), "r1").await;
    assert_eq!(answer["type"], "authenticated", "{answer}");
    let exp = renewed["exp"].as_i64().unwrap();
    assert_eq!(seconds(&answer["data"]["expires_at"]), exp);
    assert!(client.take_all("token_expiring").is_empty());
    let notice = client.next("token_expiring").await;
    assert_eq!(seconds(&notice["data"]["expires_at"]), exp);
    assert!((exp - 60..exp - 40).contains(&now()), "{}", exp - now());
    // The first token is long over.
    tokio::time::sleep(Duration::from_secs(8)).await;
    client.fence().await;
    // With little left, the notice follows the answer.
    let answer = authenticate(&mut client, &hs().token(&bob(30)), "r2").await;
    assert_eq!(answer["type"], "authenticated");
    client.next("token_expiring").await;
    // A shorter one counts, too: it is the last that counts.
    authenticate(&mut client, &hs().token(&bob(2)), "r3").await;
    assert_eq!(client.expect_close().await, 4401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_a_refused_renewal_leaves_the_old_token() {
    let server = on("0s");
    let mut client = connect(&server, "/ws/s/bob/agent", &bob(3600)).await;
    let mut old = bob(3600);
    old["exp"] = (now() - 1).into();
    let bad = [
        "x".to_owned(),
        String::new(),
        es256().token(&bob(3600)),
        hs().token(&old),
        hs().token(&claims("alice", "agent", json!("*"))),
        hs().token(&claims("bob", "customer", json!("*"))),
        hs().token(&claims("bob", "admin", Value::Null)),
        hs().token(&claims(&"u".repeat(16 * 1024), "agent", Value::Null)),
    ];
    for (number, token) in bad.iter().enumerate() {
        let answer = authenticate(&mut client, token, &number.to_string()).await;
        assert_eq!(
            (&answer["type"], &answer["data"]["code"]),
            (&json!("error"), &json!("invalid_token")),
            "{token:.80}"
        );
        assert_eq!(answer["data"]["retryable"], false);
    }
    for (data, id) in [
        (json!({}), "none"),
        (json!({"token": 7}), "number"),
        (Value::Null, "null"),
    ] {
        client
            .send(json!({"type": "auth", "request_id": id, "data": data}))
            .await;
        let answer = client
            .next_where("the answer", |frame| frame["request_id"] == id)
            .await;
        assert_eq!(answer["data"]["code"], "invalid_field");
    }
    client.say_acked("still here").await;
    // Escapes in the frame are those of JSON.
    let token = hs().token(&bob(60 * 60)).replace('.', "\\u002e");
    client
        .send_text(format!(
            r#"{{"type":"auth","request_id":"e","data":{{"token":"{token}"}}}}"#
        ))
        .await;
    let answer = client
        .next_where("the answer", |frame| frame["request_id"] == "e")
        .await;
    assert_eq!(answer["type"], "authenticated");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_a_token_that_no_longer_covers_the_session_ends_the_connection() {
    let server = on("0s");
    let mut client = connect(&server, "/ws/s/bob/agent", &bob(3600)).await;
    let mut elsewhere = bob(3600);
    elsewhere["sessions"] = json!(["t"]);
    let frame = json!({"type": "auth", "data": {"token": hs().token(&elsewhere)}});
    client.send(frame).await;
    assert_eq!(client.expect_close().await, 4403);
    assert!(client.log.iter().all(|frame| frame["type"] != "authenticated"));
    connect(&server, "/ws/t/bob/agent", &elsewhere).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_without_tokens_there_is_nothing_to_renew() {
    let server = Server::start();
    let mut client = Client::connect(&server, "s", "bob", "agent").await;
    let answer = authenticate(&mut client, &hs().token(&bob(3600)), "r").await;
    assert_eq!(
        (&answer["type"], &answer["data"]["code"]),
        (&json!("error"), &json!("auth_disabled"))
    );
    client.fence().await;
}

/// A resume has the rights of any join: nothing of what was missed without them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_a_resume_needs_the_same_rights_as_a_join() {
    let server = on("0s");
    let mut bob_here = connect(&server, "/ws/s/bob/agent", &bob(3600)).await;
    let mut alice = connect(
        &server,
        "/ws/s/alice/customer",
        &claims("alice", "customer", json!(["s"])),
    )
    .await;
    let seen = alice.say_acked("first").await["message_id"].clone();
    alice.close().await;
    bob_here.say_acked("missed").await;
    // Once it is delivered, it no longer arrives live.
    let is_missed = |frame: &Value| frame["data"]["message"] == "missed";
    bob_here.next_where("the missed message", is_missed).await;
    let since = seen.as_str().unwrap();
    let path = format!("/ws/s/alice/customer?since={since}");
    for (claims, status) in [
        (claims("alice", "customer", json!(["t"])), 403),
        (claims("alice", "customer", Value::Null), 403),
        (claims("eve", "customer", json!(["s"])), 403),
    ] {
        let bearer = format!("Bearer {}", hs().token(&claims));
        let refused = Client::open(server.http_addr(), &path, &[("Authorization", &bearer)]).await;
        let Err(tokio_tungstenite::tungstenite::Error::Http(response)) = refused else {
            panic!("{claims}");
        };
        assert_eq!(response.status(), status);
    }
    let mut back = connect(&server, &path, &claims("alice", "customer", json!(["s"]))).await;
    let resumed = back.next("resumed").await;
    assert_eq!(
        (&resumed["data"]["recovered"], &resumed["data"]["replayed"]),
        (&json!(true), &json!(1))
    );
}

/// A user id of two issuers' users: each connection speaks as what its own token says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_a_connection_speaks_as_what_its_token_says() {
    let server = on("0s");
    let mut agent = connect(&server, "/ws/s/42/agent", &claims("42", "agent", Value::Null)).await;
    let mut customer = connect(
        &server,
        "/ws/s/42/customer",
        &claims("42", "customer", json!(["s"])),
    )
    .await;
    assert_eq!(customer.greeting["user_type"], "customer");
    customer.say_acked("as a customer").await;
    let message = agent.next("new_message").await;
    assert_eq!(message["data"]["sender_type"], "customer", "{message}");
    let answer = authenticate(
        &mut customer,
        &hs().token(&claims("42", "agent", Value::Null)),
        "r",
    )
    .await;
    assert_eq!(answer["data"]["code"], "invalid_token");
}

/// Many connections whose tokens end together are closed by one sweep.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_tokens_that_end_together_end_their_connections_together() {
    let server = on("0s");
    let mut claims = claims("bob", "agent", Value::Null);
    let end = now() + 15;
    claims["exp"] = end.into();
    let mut clients = Vec::new();
    for number in 0..50 {
        clients.push(connect(&server, &format!("/ws/s{number}/bob/agent"), &claims).await);
    }
    for client in &mut clients {
        assert_eq!(client.expect_close().await, 4401);
    }
    assert!(now() < end + 15, "{} s after its end", now() - end);
    eventually("all have gone", || server.health()["connections"] == 0);
}
