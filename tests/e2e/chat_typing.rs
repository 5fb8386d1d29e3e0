//! Who gets typing indicators, how often, and when typing ends.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http_routes::is_utc;
use crate::presence::is_event;
use crate::support::{Client, Server};

fn unlimited() -> Server {
    Server::builder().env("RATE_LIMIT_MESSAGES", 0).start()
}

async fn send(client: &mut Client, kind: &str) {
    client.send(json!({"type": kind})).await;
}

/// The next typing indicator: the user, and whether they are typing.
async fn seen(client: &mut Client) -> (String, bool) {
    let data = client.next("typing_indicator").await["data"].clone();
    (
        data["user_id"].as_str().expect("a user").to_owned(),
        data["is_typing"].as_bool().expect("a bool"),
    )
}

fn is(user: &str, typing: bool) -> (String, bool) {
    (user.to_owned(), typing)
}

#[tokio::test]
async fn typing_reaches_everyone_but_the_users_own_tabs() {
    let server = Server::start();
    let mut typist = Client::connect(&server, "s1", "cust", "customer").await;
    let mut tab = Client::connect(&server, "s1", "cust", "customer").await;
    let mut agent = Client::connect(&server, "s1", "agent", "agent").await;
    let mut admin = Client::connect(&server, "s1", "boss", "admin").await;
    let mut elsewhere = Client::connect(&server, "s2", "agent", "agent").await;
    let mut neighbour = Client::connect(&server, "s2", "cust", "customer").await;

    send(&mut typist, "typing_start").await;
    for client in [&mut agent, &mut admin] {
        let mut frame = client.next("typing_indicator").await;
        assert!(is_utc(&frame["data"]["timestamp"].take()));
        let data = json!({"session_id": "s1", "user_id": "cust", "sender_type": "customer", "is_typing": true, "timestamp": null});
        assert_eq!(
            frame,
            json!({"type": "typing_indicator", "success": true, "data": data})
        );
    }
    send(&mut typist, "typing_stop").await;
    assert_eq!(seen(&mut agent).await, is("cust", false));

    // The agent's typing is sent later on the same path: it is the first indicator that both tabs get.
    send(&mut agent, "typing_start").await;
    assert_eq!(seen(&mut typist).await, is("agent", true));
    assert_eq!(seen(&mut tab).await, is("agent", true));
    // The other session gets only its own user's indicator.
    send(&mut neighbour, "typing_stop").await;
    send(&mut neighbour, "typing_start").await;
    assert_eq!(
        elsewhere.next("typing_indicator").await["data"]["session_id"],
        "s2"
    );
    assert_eq!(seen(&mut admin).await, is("cust", false));
    assert_eq!(seen(&mut admin).await, is("agent", true));
}

#[tokio::test]
async fn typing_start_agent_typing_and_typing_stop_are_understood() {
    let server = unlimited();
    let mut agent = Client::connect(&server, "s1", "agent", "agent").await;
    let mut customer = Client::connect(&server, "s1", "cust", "customer").await;
    for (kind, data, typing) in [
        ("agent_typing", json!({}), true),
        ("agent_typing", json!({"is_typing": false}), false),
        ("typing_start", Value::Null, true),
        ("typing_stop", Value::Null, false),
        ("agent_typing", json!({"is_typing": true}), true),
        ("typing_stop", json!({}), false),
    ] {
        // A start within a second of the last one is not passed on; wait until it is.
        let started = Instant::now();
        agent.send(json!({"type": kind, "data": data})).await;
        let news = loop {
            match customer.poll(Duration::from_millis(200)).await {
                // A repeated start may still be on its way when the stop is sent.
                Some(frame) if frame["data"]["is_typing"] == typing => break frame,
                Some(_) => continue,
                None => agent.send(json!({"type": kind, "data": data})).await,
            }
            assert!(
                started.elapsed() < crate::support::PATIENCE,
                "{kind} {data} was never seen"
            );
        };
        assert_eq!(
            (&news["type"], &news["data"]["user_id"]),
            (&json!("typing_indicator"), &json!("agent")),
            "{kind} {data}"
        );
    }
}

#[tokio::test]
async fn typing_is_repeated_at_most_once_a_second() {
    let server = unlimited();
    let mut typist = Client::connect(&server, "s1", "cust", "customer").await;
    let mut agent = Client::connect(&server, "s1", "agent", "agent").await;
    let started = Instant::now();
    for _ in 0..50 {
        send(&mut typist, "typing_start").await;
    }
    send(&mut typist, "typing_stop").await;
    typist.fence().await;
    let most = 1 + started.elapsed().as_secs();
    let mut starts = 0;
    while seen(&mut agent).await == is("cust", true) {
        starts += 1;
    }
    assert!(
        (1..=most).contains(&starts),
        "{starts} starts in {:?}",
        started.elapsed()
    );
    agent.expect_none_before("typing_indicator", &mut typist).await;
}

#[tokio::test]
async fn continued_typing_is_repeated_after_a_second() {
    let server = unlimited();
    let mut typist = Client::connect(&server, "s1", "cust", "customer").await;
    let mut agent = Client::connect(&server, "s1", "agent", "agent").await;
    let started = Instant::now();
    let mut repeats = 0;
    while repeats < 3 {
        send(&mut typist, "typing_start").await;
        if let Some(frame) = agent.poll(Duration::from_millis(50)).await
            && frame["type"] == "typing_indicator"
        {
            assert_eq!(frame["data"]["is_typing"], true);
            repeats += 1;
        }
        assert!(
            started.elapsed() < crate::support::PATIENCE,
            "only {repeats} repeats"
        );
    }
    assert!(
        started.elapsed() >= Duration::from_millis(1950),
        "three within {:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn typing_ends_when_the_user_leaves() {
    let server = Server::start();
    let mut agent = Client::connect(&server, "s1", "agent", "agent").await;
    for properly in [true, false] {
        let mut typist = Client::connect(&server, "s1", "cust", "customer").await;
        send(&mut typist, "typing_start").await;
        assert_eq!(seen(&mut agent).await, is("cust", true));
        if properly {
            typist.close().await;
        } else {
            drop(typist);
        }
        assert_eq!(seen(&mut agent).await, is("cust", false));
    }
}

#[tokio::test]
async fn typing_that_was_stopped_does_not_end_twice() {
    let server = Server::start();
    let mut agent = Client::connect(&server, "s1", "agent", "agent").await;
    let mut other = Client::connect(&server, "s1", "other", "agent").await;
    let mut typist = Client::connect(&server, "s1", "cust", "customer").await;
    // Told apart from the leave, else the two might be no change at all.
    agent
        .next_where("the typist's join", |frame| {
            is_event(frame, "user_connected", "cust")
        })
        .await;
    send(&mut typist, "typing_start").await;
    send(&mut typist, "typing_stop").await;
    assert_eq!(seen(&mut agent).await, is("cust", true));
    assert_eq!(seen(&mut agent).await, is("cust", false));
    typist.close().await;
    agent
        .next_where("the typist's leave", |frame| {
            is_event(frame, "user_disconnected", "cust")
        })
        .await;
    agent.expect_none_before("typing_indicator", &mut other).await;
}

#[tokio::test]
async fn typing_ends_automatically_after_thirty_seconds() {
    // No pings, so that the user's connection, which is not read meanwhile, is not closed.
    let server = Server::builder().env("PING_INTERVAL", "300s").start();
    let mut typist = Client::connect(&server, "s1", "cust", "customer").await;
    let mut agent = Client::connect(&server, "s1", "agent", "agent").await;
    let started = Instant::now();
    send(&mut typist, "typing_start").await;
    assert_eq!(seen(&mut agent).await, is("cust", true));
    let is_end = |frame: &Value| frame["type"] == "typing_indicator" && frame["data"]["is_typing"] == false;
    let end = agent
        .next_within("the end of typing", Duration::from_secs(90), is_end)
        .await;
    assert_eq!(
        (&end["data"]["user_id"], &end["data"]["is_typing"]),
        (&json!("cust"), &json!(false))
    );
    assert!(
        started.elapsed() >= Duration::from_secs(29),
        "ended after {:?}",
        started.elapsed()
    );
    // The typist's own tabs never saw any of it.
    typist.expect_none("typing_indicator").await;
}
