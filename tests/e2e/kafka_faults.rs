//! The broker dies, hangs, or is not there yet: sockets stay, and what was acknowledged is delivered once, in one
//! order.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::services::{Heard, PrivateBroker, Record, Tap, Topics, unique};
use crate::support::{Client, Frame, RawWs, Server, eventually, eventually_async};

const GAPS: &str = "livechat_kafka_gaps_total";
const RESTARTS: &str = "livechat_kafka_consumer_restarts_total";

/// When a sender must have been told that a broker doesn't answer. The contract says 5 s, and the record itself is
/// given up after 30 s: what lies between is for a busy machine.
const TOLD_WITHIN: Duration = Duration::from_secs(28);

/// FAULT_ROUNDS: how often the broker is killed; 3 by default, 50 for the promise of the documentation.
fn rounds() -> usize {
    std::env::var("FAULT_ROUNDS").map_or(3, |rounds| rounds.parse().expect("FAULT_ROUNDS: a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_loses_no_connection_and_no_acknowledged_message() {
    let broker = PrivateBroker::started();
    let topics = Topics::on(&broker.kafka());
    let (a, b) = topics.two_nodes();
    let session = unique("session");
    let mut taps = Vec::new();
    for (user, node) in [("ann", &a), ("ben", &a), ("cat", &b), ("dan", &b)] {
        taps.push((
            user,
            Arc::new(Tap::connect(node, &session, user, "customer").await),
        ));
    }

    let stop = Arc::new(AtomicBool::new(false));
    let mut senders = Vec::new();
    for (user, tap) in &taps {
        let (user, tap, stop) = (*user, Arc::clone(tap), Arc::clone(&stop));
        senders.push(tokio::spawn(async move {
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                assert!(
                    tap.say(&format!("{user} {n}"), 20).await,
                    "{user} was closed after {n} messages"
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }));
    }
    let flowing = async |what: String| {
        for (user, tap) in &taps {
            let acked = tap.look(|heard| heard.acks.len());
            tap.until(&format!("{user}: {what}"), |heard| heard.acks.len() >= acked + 20)
                .await;
        }
    };
    flowing("traffic before the first fault".to_owned()).await;
    for round in 1..=rounds() {
        broker.kill();
        // Not always the same moment of the clients' attempts to connect again.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..1_500))).await;
        broker.start();
        let up = Instant::now();
        flowing(format!("traffic after round {round}")).await;
        // Progress for many rounds with --nocapture.
        eprintln!("round {round}: traffic {:.1?} after the broker", up.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.expect("a sender");
    }

    // A message that is sent now follows everything else in the session's partition.
    let last = taps[0].1.say_until_acked("the last word").await;
    for (_, tap) in &taps {
        tap.until("the last word", |heard| heard.has_text(&last)).await;
    }
    let order = taps[0].1.look(Heard::ids);
    let known: HashSet<_> = order.iter().collect();
    assert_eq!(known.len(), order.len(), "some message came twice");
    for (user, tap) in &taps {
        tap.look(|heard| {
            assert_eq!(heard.ended, None, "{user} was closed");
            assert!(
                heard.ids() == order,
                "{user} saw another order, or not everything"
            );
            for error in &heard.errors {
                assert_eq!(error["data"]["retryable"], true, "{user}: {error}");
            }
        });
        let acked = tap.look(Heard::acked_ids);
        let lost = acked.iter().filter(|id| !known.contains(id)).count();
        assert_eq!(
            lost,
            0,
            "{user}: of {} acknowledged messages not delivered",
            acked.len()
        );
    }
    // Each client_message_id is in the log once: no message was sent twice here.
    let (mut texts, mut doubled) = (HashSet::new(), Vec::new());
    taps[0].1.look(|heard| {
        for (_, data) in &heard.messages {
            let text = data["client_message_id"]
                .as_str()
                .expect("a client_message_id")
                .to_owned();
            if !texts.insert(text.clone()) {
                doubled.push(text);
            }
        }
    });
    assert!(
        doubled.is_empty(),
        "in the log under two message ids: {doubled:?}"
    );
    for node in [&a, &b] {
        eventually("healthy again", || node.health()["status"] == "ok");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_broker_is_reported_within_seconds_and_recovers() {
    let broker = PrivateBroker::started();
    let topics = Topics::on(&broker.kafka());
    let (a, b) = topics.two_nodes();
    let session = unique("session");
    let ann = Tap::connect(&a, &session, "ann", "customer").await;
    let ben = Tap::connect(&b, &session, "ben", "agent").await;
    ann.say_until_acked("before").await;

    broker.pause();
    let asked = Instant::now();
    let said = json!({"message": "while it is paused", "client_message_id": "paused"});
    ann.send(json!({"type": "send_message", "request_id": "paused", "data": said}))
        .await;
    ann.until("the error", |heard| {
        heard.errors.iter().any(|error| error["request_id"] == "paused")
    })
    .await;
    let waited = asked.elapsed();
    assert!(waited < TOLD_WITHIN, "the error came after {waited:?}");
    let error = ann.look(|heard| heard.errors.last().cloned()).expect("an error");
    assert_eq!(error["success"], false, "{error}");
    assert_eq!(error["data"]["code"], "outcome_unknown", "{error}");
    assert_eq!(error["data"]["retryable"], true, "{error}");
    for node in [&a, &b] {
        degraded(node);
    }
    // The rest of the server does not wait for Kafka.
    assert!(ann.send(json!({"type": "ping", "request_id": "ping"})).await);
    ann.until("the pong", |heard| {
        heard.others.iter().any(|frame| frame["request_id"] == "ping")
    })
    .await;
    Tap::connect(&a, &unique("session"), "new", "customer").await;

    broker.resume();
    let last = ann.say_until_acked("after").await;
    for tap in [&ann, &ben] {
        tap.until("the message after the pause", |heard| heard.has_text(&last))
            .await;
        tap.look(|heard| assert_eq!(heard.ended, None, "closed"));
        let ids = tap.look(Heard::ids);
        assert_eq!(
            ids.iter().collect::<HashSet<_>>().len(),
            ids.len(),
            "some message came twice"
        );
        // Its outcome was unknown: it may be in the log, but never twice.
        let paused = tap.look(|heard| {
            heard
                .messages
                .iter()
                .filter(|(_, data)| data["client_message_id"] == "paused")
                .count()
        });
        assert!(paused <= 1, "{paused} times");
    }
    assert!(ann.look(Heard::ids) == ben.look(Heard::ids), "two orders");
    for node in [&a, &b] {
        eventually("healthy again", || node.health()["status"] == "ok");
    }
}

/// The log owes an answer for up to half a minute; the connection that asked is not kept open for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptors_are_freed_while_the_broker_is_paused() {
    const CLIENTS: usize = 400;
    let broker = PrivateBroker::started();
    let topics = Topics::on(&broker.kafka());
    let server = topics.node("node-a").descriptors(CLIENTS as u32).start();
    let before = server.fd_count();
    broker.pause();
    for n in 0..CLIENTS {
        let mut client = RawWs::connect(&server, "session", &format!("u{n}"), "customer");
        client.send(Frame::text(
            r#"{"type":"send_message","data":{"message":"hello"}}"#,
        ));
        client.send(Frame::close(1000, ""));
        assert_eq!(client.expect_close(), 1000);
    }
    // Kafka's client needs some of its own.
    eventually("their sockets are closed", || server.fd_count() < before + 50);
    broker.resume();
    eventually("healthy again", || server.health()["status"] == "ok");
}

/// In health, and only there: a degraded node still serves, so it stays in its load balancer.
fn degraded(node: &Server) {
    eventually("degraded", || node.health()["status"] == "degraded");
    let health = node.get("/health");
    assert_eq!(health.status, 200, "{}", health.text());
    assert_eq!(health.json()["kafka"]["mode"], "kafka", "{}", health.text());
    assert_ne!(health.json()["kafka"]["status"], "ok", "{}", health.text());
    assert_eq!(node.get("/ready").status, 200);
    assert_eq!(node.get("/live").status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_down_at_start_is_waited_for() {
    let broker = PrivateBroker::new();
    let topics = Topics::on(&broker.kafka());
    let server = topics.node("node-a").start_listening();
    assert_eq!(server.get("/live").status, 200);
    eventually_async("ready without its broker", async || {
        server.get("/ready").status == 200
    })
    .await;
    degraded(&server);

    let session = unique("session");
    let ann = Tap::connect(&server, &session, "ann", "customer").await;
    let asked = Instant::now();
    assert!(ann.say("too early", 1).await);
    ann.until("an error", |heard| !heard.errors.is_empty()).await;
    let waited = asked.elapsed();
    assert!(waited < TOLD_WITHIN, "the error came after {waited:?}");
    ann.look(|heard| assert_eq!(heard.errors[0]["data"]["retryable"], true, "{}", heard.errors[0]));

    broker.start();
    let said = ann.say_until_acked("at last").await;
    ann.until("the message", |heard| heard.has_text(&said)).await;
    eventually("healthy", || server.health()["status"] == "ok");
    // It created the topics as soon as it could.
    assert_eq!(broker.kafka().partitions(&topics.messages), Some(8));
}

/// A topic that is deleted and made again under a running node: said in health or passed over, but messages flow again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recreated_topic_is_read_again() {
    let broker = PrivateBroker::started();
    let topics = Topics::on(&broker.kafka());
    let server = topics.node("node-a").start();
    let ann = Tap::connect(&server, &unique("session"), "ann", "customer").await;
    for n in 0..10 {
        ann.say_until_acked(&format!("before {n}")).await;
    }
    broker.kafka().delete(&[&topics.messages]);
    // The node may recreate it first.
    let kafka = broker.kafka();
    eventually("the topic is there again", || {
        kafka.try_create(&topics.messages, 8) || kafka.partitions(&topics.messages).is_some()
    });
    let said = ann.say_until_acked("after").await;
    ann.until("the message", |heard| heard.has_text(&said)).await;
    ann.look(|heard| assert_eq!(heard.ended, None, "closed"));
}

/// As above, but the new topic has more records than the old one by the time the node looks again: its numbers alone do
/// not say that it is another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recreated_topic_that_is_longer_than_before_is_read_from_its_beginning() {
    const RECORDS: usize = 200;
    let broker = PrivateBroker::started();
    let kafka = broker.kafka();
    let topics = Topics::on(&kafka);
    let server = topics.node("node-a").env("ADMIN_ADDR", "127.0.0.1:0").start();
    let session = unique("session");
    let ann = Tap::connect(&server, &session, "ann", "customer").await;
    for n in 0..20 {
        ann.say_until_acked(&format!("before {n}")).await;
    }
    ann.until("all of the old topic", |heard| heard.messages.len() >= 20)
        .await;
    let gaps = server.metric(GAPS);

    // The node is paused, so for it everything happens at once.
    server.signal("STOP");
    kafka.delete(&[&topics.messages]);
    eventually("the topic can be made again", || {
        kafka.try_create(&topics.messages, 8)
    });
    let new = |n: usize| {
        let frame = json!({"type": "new_message", "success": true,
            "data": {"message_id": format!("new {n}"), "message": format!("new {n}")}});
        Record::native(&session, frame.to_string())
    };
    kafka.produce(&topics.messages, &(0..RECORDS).map(new).collect::<Vec<_>>());
    server.signal("CONT");

    let expected: Vec<_> = (0..RECORDS).map(|n| format!("new {n}")).collect();
    let news = |heard: &Heard| {
        let mut ids = heard.ids();
        ids.retain(|id| id.starts_with("new "));
        ids
    };
    ann.until("all of the new topic", |heard| news(heard).ends_with(&expected))
        .await;
    let said = ann.say_until_acked("after").await;
    ann.until("the message after", |heard| heard.has_text(&said))
        .await;
    ann.look(|heard| {
        assert_eq!(heard.ended, None, "closed");
        // Before the node looks, its consumer may read on in the new topic where it was in the old one: the broker does
        // not tell them apart. Then that much comes twice.
        let ids = news(heard);
        let twice = &ids[..ids.len() - RECORDS];
        let is_part = twice.is_empty() || expected.windows(twice.len()).any(|part| part == twice);
        assert!(ids.ends_with(&expected) && is_part, "{twice:?}");
    });
    let now = server.metric(GAPS);
    assert!(now > gaps, "livechat_kafka_gaps_total was {gaps} and is {now}");
}

/// Typing and status have their own consumer: problems with their topics do not affect messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recreated_topic_of_typing_leaves_messages_alone() {
    let broker = PrivateBroker::started();
    let kafka = broker.kafka();
    let topics = Topics::on(&kafka);
    let node = topics.node("node-a").env("ADMIN_ADDR", "127.0.0.1:0");
    // Bob's pings are not answered while the test waits.
    let server = node.env("PING_INTERVAL", "120s").start();
    let session = unique("session");
    let ann = Tap::connect(&server, &session, "ann", "customer").await;
    let mut bob = Client::connect(&server, &session, "bob", "agent").await;
    let (gaps, restarts) = (server.metric(GAPS), server.metric(RESTARTS));

    kafka.delete(&[&topics.typing]);
    eventually("the topic is there again", || {
        kafka.try_create(&topics.typing, 2) || kafka.partitions(&topics.typing).is_some()
    });
    eventually("the node has seen it", || server.metric(GAPS) > gaps);
    eventually("its consumer is made anew", || server.metric(RESTARTS) > restarts);
    let value = json!({"type": "typing_indicator", "session_id": session, "user_id": "ann", "user_type": "customer",
        "is_typing": true, "timestamp": "2024-01-02T03:04:05Z"});
    kafka.produce(&topics.typing, &[Record::old(value.to_string())]);
    let typing = bob.next("typing_indicator").await;
    assert_eq!(typing["data"]["user_id"], "ann", "{typing}");
    let said = ann.say_until_acked("meanwhile").await;
    ann.until("the message", |heard| heard.has_text(&said)).await;
    assert_eq!(
        server.metric(RESTARTS),
        restarts + 1.0,
        "only the consumer of typing and status is made anew"
    );
}
