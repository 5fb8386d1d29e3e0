//! Two brokers: leaders that move or are lost, and recreated topics.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::services::{Heard, Kafka, Tap, Topics, TwoBrokers, at_last, unique};

/// A new topic's leader epochs begin at 0, which is older than what the producer knows of the old topic (librdkafka
/// issue 4898): it would send to the old leader for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_recreated_after_its_leaders_moved_is_written_to() {
    let cluster = TwoBrokers::started();
    let kafka = cluster.kafka();
    let topics = Topics::on(&kafka);
    for topic in [&topics.messages, &topics.typing, &topics.status, &topics.control] {
        create(&kafka, &["replicas=2,1"], topic, 2);
    }
    // So that the test makes the topic again, and not the server.
    let node = topics.node("node-a").env("KAFKA_TOPIC_REPLICATION", 3);
    let server = node.env("PING_INTERVAL", "120s").start();
    let ann = Tap::connect(&server, &unique("session"), "ann", "customer").await;
    ann.say_until_acked("before").await;
    for _ in 0..2 {
        cluster.second.kill();
        at_last("the other broker leads", || leads(&kafka, &topics, 1));
        ann.say_until_acked("led by the first").await;
        cluster.second.start();
        at_last("both are in sync", || {
            kafka
                .leaders(&topics.messages)
                .iter()
                .all(|(_, in_sync)| *in_sync == 2)
        });
    }
    ann.say_until_acked("at a high epoch").await;

    // The node is paused: a client that notices the missing topic would forget its leaders.
    server.signal("STOP");
    kafka.delete(&[&topics.messages]);
    at_last("the topic can be made again", || {
        kafka.try_create_with(&["replicas=2"], &topics.messages, 2)
    });
    server.signal("CONT");
    let said = ann.say_until_acked("after").await;
    ann.until("the message", |heard| heard.has_text(&said)).await;
    for n in 0..24 {
        ann.say(&format!("and on {n}"), 1).await;
    }
    ann.until("the last one", |heard| heard.has_text("and on 23"))
        .await;
    let late = |heard: &Heard| {
        let is_late = |ack: &&Value| {
            let id = ack["client_message_id"].as_str();
            id.is_some_and(|id| id.starts_with("and on"))
        };
        heard.acks.iter().filter(is_late).count()
    };
    ann.until("all acknowledgements", |heard| late(heard) == 24).await;
    each_once(&ann);
    at_last("healthy", || server.health()["status"] == "ok");
}

/// A broker that dies, with the leaders of half of the partitions: another takes them over, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_changes_lose_no_acknowledged_message() {
    let cluster = TwoBrokers::started();
    let kafka = cluster.kafka();
    let topics = Topics::on(&kafka);
    create(&kafka, &["replicas=2,1"], &topics.messages, 4);
    let (a, b) = topics.two_nodes();
    let session = unique("session");
    let ann = Arc::new(Tap::connect(&a, &session, "ann", "customer").await);
    let ben = Tap::connect(&b, &session, "ben", "agent").await;
    let (stop, stopped) = (Arc::new(AtomicBool::new(false)), Arc::clone(&ann));
    let is_stopped = Arc::clone(&stop);
    let sender = tokio::spawn(async move {
        for n in 0.. {
            if is_stopped.load(Ordering::Relaxed) {
                break;
            }
            assert!(
                stopped.say(&format!("ann {n}"), 20).await,
                "closed after {n} messages"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let flows = async |what: &str| {
        let acked = ann.look(|heard| heard.acks.len());
        ann.until(what, |heard| heard.acks.len() >= acked + 20).await;
    };
    flows("traffic before").await;
    cluster.second.kill();
    at_last("the other broker leads", || leads(&kafka, &topics, 1));
    flows("traffic without the second broker").await;
    cluster.second.start();
    at_last("both are in sync", || {
        kafka
            .leaders(&topics.messages)
            .iter()
            .all(|(_, in_sync)| *in_sync == 2)
    });
    flows("traffic with both").await;
    stop.store(true, Ordering::Relaxed);
    sender.await.expect("the sender");
    let last = ann.say_until_acked("the last word").await;
    for tap in [&*ann, &ben] {
        tap.until("the last word", |heard| heard.has_text(&last)).await;
        each_once(tap);
    }
    assert!(ann.look(Heard::ids) == ben.look(Heard::ids), "two orders");
    for node in [&a, &b] {
        at_last("healthy again", || node.health()["status"] == "ok");
    }
}

/// Without a replica, what the dead broker led has no leader: that is said, the rest goes on, and it comes back whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_without_a_leader_are_named_and_the_others_served() {
    let cluster = TwoBrokers::started();
    let kafka = cluster.kafka();
    let topics = Topics::on(&kafka);
    create(&kafka, &["replicas=1"], &topics.messages, 2);
    create(&kafka, &["replicas=1"], &topics.status, 2);
    create(&kafka, &["replicas=2"], &topics.typing, 2);
    let server = topics.node("node-a").start();
    let ann = Tap::connect(&server, &unique("session"), "ann", "customer").await;
    ann.say_until_acked("before").await;
    cluster.second.kill();
    at_last("health names them", || {
        let health = server.health();
        let detail = health["kafka"]["detail"].as_str().unwrap_or_default();
        detail.contains("partitions without a leader") && detail.contains(&format!("{}/1", topics.typing))
    });
    let said = ann.say_until_acked("meanwhile").await;
    ann.until("the message", |heard| heard.has_text(&said)).await;
    cluster.second.start();
    at_last("healthy again", || server.health()["status"] == "ok");
    each_once(&ann);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_in_sync_replicas_are_reported() {
    let cluster = TwoBrokers::started();
    let kafka = cluster.kafka();
    let topics = Topics::on(&kafka);
    let both = "replicas=1,2";
    create(&kafka, &[both, "min.insync.replicas=2"], &topics.messages, 2);
    for topic in [&topics.typing, &topics.status, &topics.control] {
        create(&kafka, &[both], topic, 2);
    }
    let server = topics.node("node-a").start();
    let ann = Tap::connect(&server, &unique("session"), "ann", "customer").await;
    ann.say_until_acked("before").await;
    cluster.second.kill();
    at_last("one replica is left", || {
        let leaders = kafka.leaders(&topics.messages);
        leaders.iter().all(|(_, in_sync)| *in_sync == 1)
    });
    let text = "not enough in-sync replicas (1 of min.insync.replicas 2)";
    assert!(ann.say("waits", 1).await);
    at_last("health says so", || {
        let health = server.health();
        let detail = health["kafka"]["detail"].as_str().unwrap_or_default();
        health["status"] == "degraded" && detail.contains(text)
    });
    cluster.second.start();
    let said = ann.say_until_acked("taken").await;
    ann.until("the message", |heard| heard.has_text(&said)).await;
    at_last("healthy again", || server.health()["status"] == "ok");
    let log = server.log();
    let told = log.iter().filter(|line| line.contains(text)).count();
    assert_eq!(told, 1, "{log:#?}");
}

/// A broker may be fenced for a moment, on a busy machine.
fn create(kafka: &Kafka, settings: &[&str], topic: &str, partitions: u32) {
    at_last("the topic is created", || {
        kafka.try_create_with(settings, topic, partitions)
    });
}

fn leads(kafka: &Kafka, topics: &Topics, broker: i32) -> bool {
    let leaders = kafka.leaders(&topics.messages);
    leaders.iter().all(|(leader, _)| *leader == broker)
}

/// No duplicates, and no acknowledged message is missing.
fn each_once(tap: &Tap) {
    tap.look(|heard| {
        assert_eq!(heard.ended, None, "closed");
        let ids = heard.ids();
        let known: HashSet<_> = ids.iter().collect();
        assert_eq!(known.len(), ids.len(), "some message came twice");
        let lost: Vec<_> = heard
            .acked_ids()
            .into_iter()
            .filter(|id| !known.contains(id))
            .collect();
        assert!(lost.is_empty(), "acknowledged, and not delivered: {lost:?}");
    });
}
