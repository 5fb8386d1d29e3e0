//! Joining while messages flow: nothing precedes the greeting, and nothing after it is missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{Client, RawWs, Server};

/// The numbers of the messages in a log, in order.
fn numbers(log: &[Value]) -> Vec<u64> {
    let messages = log.iter().filter(|frame| frame["type"] == "new_message");
    messages
        .map(|frame| frame["data"]["message"].as_str().unwrap().parse().unwrap())
        .collect()
}

async fn until_number(client: &mut Client, last: u64) {
    let text = last.to_string();
    client
        .next_where(&format!("message {last}"), |frame| {
            frame["data"]["message"] == *text
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_under_load_starts_with_the_greeting_and_misses_nothing_after_it() {
    // They are read one after the other.
    let server = Server::builder()
        .env("RATE_LIMIT_MESSAGES", 0)
        .env("SEND_TIMEOUT", "120s");
    let server = Arc::new(server.start());
    let mut early = Client::connect(&server, "s1", "early", "agent").await;
    let mut sender = Client::connect(&server, "s1", "sender", "customer").await;

    // 200 messages a second, numbered, until all have joined.
    let next = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let sending = tokio::spawn({
        let (next, stop) = (Arc::clone(&next), Arc::clone(&stop));
        async move {
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            while !stop.load(Ordering::SeqCst) {
                tick.tick().await;
                let number = next.fetch_add(1, Ordering::SeqCst);
                sender.say(&number.to_string(), "r").await;
            }
            sender
        }
    });

    let mut joiners = JoinSet::new();
    for number in 0..40 {
        let (server, next) = (Arc::clone(&server), Arc::clone(&next));
        joiners.spawn(async move {
            // `connect` asserts that the first frame is the greeting.
            let client = Client::connect(&server, "s1", &format!("late-{number}"), "agent").await;
            // Whatever has this number or a later one is sent after the greeting was read.
            (client, next.load(Ordering::SeqCst))
        });
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let joined = joiners.join_all().await;
    stop.store(true, Ordering::SeqCst);
    let _sender = sending.await.expect("the sender");
    let last = next.load(Ordering::SeqCst) - 1;
    assert!(last > 40, "messages did flow: {last}");

    until_number(&mut early, last).await;
    let all = numbers(&early.log);
    assert_eq!(
        all,
        (0..=last).collect::<Vec<_>>(),
        "the early member has every message once, in order"
    );
    for (mut client, promised) in joined {
        until_number(&mut client, last).await;
        let got = numbers(&client.log);
        let from = got[0];
        assert_eq!(
            got,
            all[from as usize..],
            "a gap or a repeat after the first message"
        );
        assert!(
            from <= promised,
            "message {promised} was sent after the greeting, the first one seen is {from}"
        );
    }
}

#[tokio::test]
async fn joining_an_empty_session_again_and_again_always_works() {
    let server = Server::builder().env("RATE_LIMIT_MESSAGES", 0).start();
    // The last member leaves while the next one joins, who must not end up in a removed session.
    let mut previous = Client::connect(&server, "s1", "u", "agent").await;
    for number in 0..200 {
        drop(previous);
        let mut client = Client::connect(&server, "s1", "u", "agent").await;
        client.say_acked(&number.to_string()).await;
        until_number(&mut client, number).await;
        previous = client;
    }
    drop(previous);
    crate::support::eventually("no session is left", || server.health()["sessions"] == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_concurrently_always_works() {
    let server = Arc::new(Server::builder().env("RATE_LIMIT_MESSAGES", 0).start());
    let mut tasks = JoinSet::new();
    for task in 0..8u64 {
        let server = Arc::clone(&server);
        tasks.spawn(async move {
            for round in 0..40u64 {
                let session = format!("s{}", fastrand::u8(0..3));
                let mut client = Client::connect(&server, &session, &format!("u{task}"), "agent").await;
                let text = (task * 1000 + round).to_string();
                client.say_acked(&text).await;
                client
                    .next_where("the own message", |frame| frame["data"]["message"] == *text)
                    .await;
                if round % 2 == 0 {
                    client.close().await;
                }
            }
        });
    }
    tasks.join_all().await;
    tokio::task::spawn_blocking(move || {
        crate::support::eventually("nobody is left", || {
            let health = server.health();
            health["sessions"] == 0 && health["connections"] == 0
        });
    })
    .await
    .expect("nobody is left");
}

#[test]
fn a_message_sent_with_the_handshake_reaches_its_sender() {
    let server = Server::start();
    for number in 0..50 {
        let mut http = crate::support::Http::connect(server.http_addr());
        let mut bytes = crate::support::raw::handshake(&format!("/ws/s{number}/u/agent"), &[]).into_bytes();
        let frame = json!({"type": "send_message", "data": {"message": "first"}}).to_string();
        bytes.extend(crate::support::Frame::text(frame).encode());
        http.write(&bytes);
        let mut ws = RawWs::upgraded(http).expect("an upgrade");
        assert_eq!(ws.read_json()["type"], "connection_established");
        assert_eq!(ws.next("new_message")["data"]["message"], "first");
    }
}
