//! Clients that come back to any node of a cluster: the log has what they have missed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::auth_cursors::from_the_start;
use crate::resume::{cursor_of_pong, open, replayed, say, texts};
use crate::services::{Record, Topics, start_well, unique};
use crate::support::{Client, Server, eventually_async};

fn since(id: &str) -> String {
    format!("since={id}")
}

/// A replay, and what this node has read only after it, are these texts.
async fn gets(client: &mut Client, expected: &[&str]) {
    let (mut all, resumed) = replayed(client).await;
    assert_eq!(resumed["recovered"], true, "{resumed}");
    while all.len() < expected.len() {
        all.extend(texts(&[client.next("new_message").await]));
    }
    assert_eq!(all, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_resumes_on_the_same_node_another_one_and_one_that_started_later() {
    let topics = Topics::new();
    let (a, b) = topics.two_nodes();
    let session = unique("session");
    let mut agent = Client::connect(&a, &session, "agent", "agent").await;
    let quiet = Client::connect(&b, &session, "quiet", "customer").await;
    let cursor = quiet.greeting["cursor"].as_str().expect("a cursor").to_owned();
    quiet.close().await;
    let ids = say(&mut agent, &["a", "b", "c"]).await;
    let later = topics.node("node-c").start();
    say(&mut agent, &["d"]).await;
    for node in [&a, &b, &later] {
        let mut back = open(node, &session, "u", &since(&ids[0])).await;
        gets(&mut back, &["b", "c", "d"]).await;
        let mut back = open(node, &session, "u", &since(&cursor)).await;
        gets(&mut back, &["a", "b", "c", "d"]).await;
        let mut back = open(node, &session, "u", "rewind=2").await;
        assert_eq!(replayed(&mut back).await.0.len(), 2);
    }
    // Nothing is known of the session but what the log says.
    let mut back = open(&later, &session, "u", &since(&ids[2])).await;
    replayed(&mut back).await;
    agent.say_acked("e").await;
    assert_eq!(back.next("new_message").await["data"]["message"], "e");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_records_are_replayed_as_they_went_out() {
    let topics = Topics::new();
    let server = start_well(topics.node("node-a"));
    let session = unique("session");
    let old = |n: usize, key: bool| {
        let value = json!({"id": format!("id-{n}"), "session_id": session, "message": n.to_string(), "created_at": "x"});
        let record = Record::old(value.to_string());
        Record {
            key: key.then(|| session.clone().into_bytes()),
            ..record
        }
    };
    let mut watcher = Client::connect(&server, &session, "watcher", "agent").await;
    let records: Vec<_> = (0..20).map(|n| old(n, n % 2 == 0)).collect();
    topics.kafka.produce(&topics.messages, &records);
    for _ in 0..20 {
        watcher.next("new_message").await;
    }
    let later = topics.node("node-b").start();
    for node in [&server, &later] {
        let mut back = open(node, &session, "u", &since("id-4")).await;
        let resumed = back.next("resumed").await;
        assert_eq!(resumed["data"]["recovered"], true, "{resumed}");
        let frames = back.take_all("new_message");
        let live: Vec<Value> = watcher
            .log
            .iter()
            .filter(|frame| frame["type"] == "new_message")
            .cloned()
            .collect();
        let mut missed: BTreeSet<String> = texts(&live).into_iter().collect();
        for frame in &frames {
            assert!(live.contains(frame), "{frame}");
            missed.remove(frame["data"]["message"].as_str().unwrap());
        }
        // Those in other partitions, within five seconds of it, may come twice: nothing is missed.
        assert!(
            missed.len() <= 5 && missed.iter().all(|text| text.parse::<u32>().unwrap() <= 4),
            "{missed:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_made_again_has_none_of_the_old_messages() {
    let topics = Topics::new();
    let server = start_well(topics.node("node-a").env("RESUME_TIMEOUT", "1s"));
    let session = unique("session");
    let mut agent = Client::connect(&server, &session, "agent", "agent").await;
    let ids = say(&mut agent, &["a", "b"]).await;
    agent.send(json!({"type": "ping"})).await;
    let pong = agent.next("pong").await;
    let cursor = pong["data"]["cursor"].as_str().expect("a cursor").to_owned();
    topics.kafka.delete(&[&topics.messages]);
    server.wait_log("was deleted and made again");
    eventually_async("messages are accepted again", async || {
        agent
            .send(json!({"type": "send_message", "data": {"message": "new"}}))
            .await;
        agent
            .next_where("an answer", |frame| {
                frame["type"] == "message_sent" || frame["type"] == "error"
            })
            .await["type"]
            == "message_sent"
    })
    .await;
    // The old topic's key is gone with it.
    for (query, reasons) in [
        (since(&cursor), &["unknown_message"][..]),
        (since(&from_the_start(&cursor)), &["unknown_message"]),
        (since(&ids[0]), &["unknown_message", "unavailable"]),
    ] {
        let mut back = open(&server, &session, "u", &query).await;
        let (texts, resumed) = replayed(&mut back).await;
        assert!(texts.is_empty(), "{texts:?}");
        assert_eq!(resumed["recovered"], false, "{resumed}");
        let reason = resumed["reason"].as_str().expect("a reason");
        assert!(reasons.contains(&reason), "{query}: {resumed}");
    }
    // Of the new one it is a forgery.
    let mut fresh = open(&server, &session, "u", "").await;
    let forged = from_the_start(&cursor_of_pong(&mut fresh).await);
    let mut back = open(&server, &session, "u", &since(&forged)).await;
    assert_eq!(replayed(&mut back).await.1["reason"], "invalid");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_are_added_lose_nothing() {
    let topics = Topics::new();
    topics.kafka.create(&topics.messages, 1);
    let server = start_well(topics.node("node-a"));
    let sessions: Vec<_> = (0..6).map(|_| unique("session")).collect();
    let mut agents = Vec::new();
    let mut before = Vec::new();
    for session in &sessions {
        let mut agent = Client::connect(&server, session, "agent", "agent").await;
        before.push((
            agent.greeting["cursor"].as_str().unwrap().to_owned(),
            say(&mut agent, &["a"]).await.remove(0),
        ));
        agents.push(agent);
    }
    topics.kafka.add_partitions(&topics.messages, 4);
    server.wait_log_where("the new partitions", |line| {
        line.contains("partitions") || line.contains("listening")
    });
    tokio::time::sleep(Duration::from_secs(4)).await;
    let writer = topics.node("node-b").start();
    for (session, (cursor, id)) in sessions.iter().zip(before) {
        let mut agent = Client::connect(&writer, session, "agent", "agent").await;
        say(&mut agent, &["b", "c"]).await;
        for node in [&server, &writer] {
            let mut back = open(node, session, "u", &since(&id)).await;
            gets(&mut back, &["b", "c"]).await;
            let mut back = open(node, session, "u", &since(&cursor)).await;
            assert_eq!(replayed(&mut back).await.0, ["a", "b", "c"]);
        }
    }
}

/// Without memory for the recent log, all of it comes from Kafka: on one node with none of it, and on one that has lost
/// the old part of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_older_than_the_recent_log_is_read_from_kafka() {
    let topics = Topics::new();
    let server = start_well(topics.node("node-a"));
    let none = topics
        .node("node-b")
        .env("RECENT_LOG_BYTES", 0)
        .env("RESUME_TIMEOUT", "20s")
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .start();
    let small = topics
        .node("node-c")
        .env("RECENT_LOG_BYTES", 1 << 20)
        .env("RESUME_TIMEOUT", "20s")
        .start();
    let session = unique("session");
    let mut agent = Client::connect(&server, &session, "agent", "agent").await;
    let old = |n: usize| {
        let value = json!({"id": format!("id-{n}"), "session_id": session, "message": format!("old {n}"), "created_at": "x"});
        Record {
            key: Some(session.clone().into_bytes()),
            ..Record::old(value.to_string())
        }
    };
    topics.kafka.produce(&topics.messages, &[old(1)]);
    agent.next("new_message").await;
    let ids = say(&mut agent, &["a", "b", "c"]).await;
    let cursor = agent.greeting["cursor"].as_str().unwrap().to_owned();
    // Others push it out.
    let mut other = Client::connect(&server, &unique("other"), "agent", "agent").await;
    for _ in 0..60 {
        other.say_acked(&"x".repeat(30_000)).await;
    }
    let ids_d = say(&mut agent, &["d"]).await;
    let mut said = vec!["old 1", "a", "b", "c", "d"];
    for node in [&none, &small] {
        for (query, from) in [
            (since(&ids[0]), 2),
            (since("id-1"), 1),
            (since(&cursor), 0),
            ("rewind=3".to_owned(), said.len() - 3),
            (since(&ids_d[0]), 5),
        ] {
            let mut back = open(node, &session, "u", &query).await;
            gets(&mut back, &said[from..]).await;
        }
        let mut back = open(node, &session, "u", &since(&ids[2])).await;
        gets(&mut back, &said[4..]).await;
        said.push("live");
        let last = say(&mut agent, &["live"]).await;
        assert_eq!(back.next("new_message").await["data"]["message"], "live");
        let mut back = open(node, &session, "u", &since(&last[0])).await;
        gets(&mut back, &[]).await;
        let mut back = open(node, &unique("quiet"), "u", &since(&ids[0])).await;
        assert_eq!(back.next("resumed").await["data"]["reason"], "unknown_message");
    }
    assert!(none.metric("livechat_log_read_seconds_count") >= 8.0);
}

/// Clients that change nodes at random under traffic miss nothing and get nothing twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_change_nodes_under_traffic_miss_nothing_and_get_nothing_twice() {
    const CLIENTS: usize = 20;
    const ROUNDS: usize = 12;
    let topics = Topics::new();
    let (a, b) = topics.two_nodes();
    let nodes: Arc<[Server; 2]> = Arc::new([a, b]);
    let session: Arc<str> = unique("session").into();
    let mut sender = Client::connect(&nodes[0], &session, "sender", "agent").await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let (nodes, stop, session) = (Arc::clone(&nodes), Arc::clone(&stop), Arc::clone(&session));
        clients.spawn(async move {
            let (mut got, mut next) = (Vec::new(), None::<String>);
            let mut random = fastrand::Rng::with_seed(number as u64);
            for _ in 0..ROUNDS {
                let query = next.as_ref().map_or(String::new(), |next| since(next));
                let mut client = open(
                    &nodes[random.usize(0..2)],
                    &session,
                    &format!("u{number}"),
                    &query,
                )
                .await;
                if next.is_none() {
                    next = client.greeting["cursor"].as_str().map(str::to_owned);
                }
                let until = tokio::time::Instant::now() + Duration::from_millis(random.u64(0..120));
                while let Ok(Some(frame)) = tokio::time::timeout_at(until, client.next_or_end(|_| true)).await
                {
                    let data = &frame["data"];
                    match frame["type"].as_str().unwrap() {
                        "new_message" => {
                            got.push(data["message"].as_str().unwrap().parse::<u64>().unwrap());
                            next = data["message_id"].as_str().map(str::to_owned);
                        }
                        "resumed" => assert_eq!(data["recovered"], true, "{frame}"),
                        _ => {}
                    }
                    if random.u8(0..4) == 0 {
                        client.send(json!({"type": "ping"})).await;
                    }
                    if frame["type"] == "pong" && data["cursor"].is_string() {
                        next = data["cursor"].as_str().map(str::to_owned);
                    }
                }
            }
            stop.store(true, Ordering::SeqCst);
            (got, next.unwrap())
        });
    }
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        sender.say(&number.to_string(), "r").await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let all = clients.join_all().await;
    number += 1;
    sender.say_acked(&number.to_string()).await;
    for (at, (mut got, next)) in all.into_iter().enumerate() {
        let mut client = open(&nodes[at % 2], &session, "last", &since(&next)).await;
        client.next("resumed").await;
        let last = number.to_string();
        while client.log.iter().all(|frame| frame["data"]["message"] != *last) {
            client
                .next_where("the last message", |frame| frame["data"]["message"] == *last)
                .await;
        }
        let messages: Vec<Value> = client
            .log
            .iter()
            .filter(|frame| frame["type"] == "new_message")
            .cloned()
            .collect();
        got.extend(texts(&messages).iter().map(|text| text.parse::<u64>().unwrap()));
        let first = got[0];
        assert_eq!(got, (first..=number).collect::<Vec<_>>(), "client {at}");
    }
}

/// As after an outage of the broker: a producer keeps messages for as long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_was_written_late_is_not_unknown_to_a_node_that_is_behind() {
    let topics = Topics::new();
    let (a, b) = topics.two_nodes();
    let session = unique("session");
    let mut watcher = Client::connect(&a, &session, "watcher", "agent").await;
    for round in 0..5 {
        // It came to the log only now.
        let made = SystemTime::now() - Duration::from_secs(20);
        let made = made.duration_since(UNIX_EPOCH).expect("a time").as_secs();
        let id = uuid::Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, made, round)).to_string();
        // Behind, for as long as its clients have been waiting.
        b.signal("STOP");
        let back = tokio::spawn({
            let (addr, query) = (b.http_addr(), since(&id));
            let path = format!("/ws/{session}/u{round}/customer?{query}");
            async move { Client::open(addr, &path, &[]).await.expect("the upgrade") }
        });
        let native = |id: &str, text: &str| {
            let data = json!({"message_id": id, "message": text});
            Record::native(
                &session,
                json!({"type": "new_message", "success": true, "data": data}).to_string(),
            )
        };
        let next = uuid::Uuid::now_v7().to_string();
        let records = [native(&id, "had"), native(&next, "missed")];
        topics.kafka.produce(&topics.messages, &records);
        watcher.next("new_message").await;
        watcher.next("new_message").await;
        b.signal("CONT");
        gets(&mut back.await.expect("a client"), &["missed"]).await;
    }
}
