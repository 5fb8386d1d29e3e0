//! What is older than the recent log is read from Kafka: for clients that come back, and pages over HTTP.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};

use crate::messages::{all_pages, of, page};
use crate::resume::{open, replayed, say, texts};
use crate::services::{PrivateBroker, Record, Topics, at_last, start_well, unique};
use crate::support::{Client, Http, Server, ServerBuilder, eventually_async};

/// A node that remembers nothing: all that clients lack is read from Kafka.
fn forgetful(topics: &Topics, name: &str) -> ServerBuilder {
    topics
        .node(name)
        .env("RECENT_LOG_BYTES", 0)
        .env("RESUME_TIMEOUT", "20s")
}

fn message(session: &str, id: &str, text: &str) -> Record {
    let value = json!({"type": "new_message", "success": true, "data": {"message_id": id, "message": text}});
    Record::native(session, value.to_string())
}

#[track_caller]
fn assert_refused(resumed: &Value, reason: &str) {
    assert_eq!(
        (&resumed["recovered"], &resumed["reason"]),
        (&json!(false), &json!(reason)),
        "{resumed}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_resumes_in_the_middle_of_a_batch() {
    let topics = Topics::new();
    let (a, b) = topics.two_nodes();
    let none = forgetful(&topics, "node-c").start();
    let session = unique("session");
    let mut watchers = Vec::new();
    for node in [&a, &b, &none] {
        watchers.push(Client::connect(node, &session, "watcher", "agent").await);
    }
    // Half of the ids have a time.
    let ids: Vec<String> = (0..10)
        .map(|n| match n % 2 {
            0 => uuid::Uuid::now_v7().to_string(),
            _ => format!("id-{n}"),
        })
        .collect();
    let records: Vec<_> = (0..10)
        .map(|n| message(&session, &ids[n], &n.to_string()))
        .collect();
    // They are all there long before a batch is sent, and have one partition.
    let batch = ["linger.ms=5000", "batch.size=1000000"];
    topics.kafka.produce_with(&batch, &topics.messages, &records);
    for watcher in &mut watchers {
        watcher
            .next_where("the last one", |frame| frame["data"]["message"] == "9")
            .await;
    }
    for node in [&a, &b, &none] {
        for since in [0, 3, 4, 8, 9] {
            let mut back = open(node, &session, "u", &format!("since={}", ids[since])).await;
            let (texts, resumed) = replayed(&mut back).await;
            assert_eq!(resumed["recovered"], true, "{resumed}");
            let expected: Vec<_> = (since + 1..10).map(|n| n.to_string()).collect();
            assert_eq!(texts, expected, "since {since}");
        }
    }
    let mut back = open(&none, &session, "u", &format!("since={}", ids[5])).await;
    assert_eq!(replayed(&mut back).await.0, ["6", "7", "8", "9"]);
    say(&mut watchers[0], &["live"]).await;
    assert_eq!(back.next("new_message").await["data"]["message"], "live");
}

/// The last offsets of a partition may be a transaction's marker, which no client gets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_ends_with_a_marker_is_read_to_its_end() {
    let topics = Topics::new();
    topics.kafka.create(&topics.messages, 2);
    let session = unique("session");
    let id = |text| format!("id-{text}");
    let records = ["a", "b", "c"].map(|text| message(&session, &id(text), text));
    for outcome in [None, Some("abort=true")] {
        let producer = format!("transactional.id={}", unique("producer"));
        let settings: Vec<&str> = [Some(&*producer), outcome].into_iter().flatten().collect();
        topics.kafka.produce_with(&settings, &topics.messages, &records);
    }
    let node = forgetful(&topics, "node-a").start();
    let began = Instant::now();
    let mut back = open(&node, &session, "u", &format!("since={}", id("a"))).await;
    let (texts, resumed) = replayed(&mut back).await;
    assert_eq!(
        (texts, &resumed["recovered"]),
        (vec!["b".into(), "c".into()], &json!(true))
    );
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// Of each session the newest record is left, as they have one key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_compaction_has_removed_is_unknown() {
    let broker = PrivateBroker::with_properties("log.cleaner.backoff.ms=200\nlog.initial.task.delay.ms=100");
    let topics = Topics::on(&broker.kafka());
    let settings = [
        "cleanup.policy=compact",
        "segment.ms=100",
        "min.cleanable.dirty.ratio=0.001",
    ];
    topics.kafka.create_with(&settings, &topics.messages, 1);
    let node = forgetful(&topics, "node-a").start();
    let session = unique("session");
    let mut agent = Client::connect(&node, &session, "agent", "agent").await;
    let cursor = agent.greeting["cursor"].as_str().unwrap().to_owned();
    let ids = say(&mut agent, &["a", "b", "c"]).await;
    let of_session = || {
        let records = topics.kafka.consume(&topics.messages);
        let ours = records
            .iter()
            .filter(|record| record.key_text() == Some(&session));
        ours.count()
    };
    let mut other = Client::connect(&node, &unique("other"), "agent", "agent").await;
    for _ in 0..60 {
        // A segment ends with the next record after its time.
        say(&mut other, &["next"]).await;
        if of_session() == 1 {
            break;
        }
    }
    assert_eq!(of_session(), 1, "it was compacted");
    let mut back = open(&node, &session, "u", &format!("since={}", ids[0])).await;
    let (texts, resumed) = replayed(&mut back).await;
    assert_refused(&resumed, "unknown_message");
    assert_eq!(texts, [""; 0]);
    // What is left is there once.
    let last = say(&mut agent, &["d"]).await;
    for (since, expected) in [(&ids[2], &["d"][..]), (&cursor, &["c", "d"]), (&last[0], &[])] {
        let mut back = open(&node, &session, "u", &format!("since={since}")).await;
        let (texts, resumed) = replayed(&mut back).await;
        assert_eq!(resumed["recovered"], true, "{resumed}");
        // The one before may be compacted by now, too.
        assert!(
            texts == expected || texts == expected[expected.len().saturating_sub(1)..],
            "{texts:?}"
        );
    }
    agent.close().await;
}

async fn delete_before(topics: &Topics, offset: Offset) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", &topics.kafka.brokers)
        .create()
        .expect("an admin client");
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&topics.messages, 0, offset).unwrap();
    let deleted = admin.delete_records(&before, &AdminOptions::new()).await;
    deleted.expect("records are deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_older_than_what_the_log_holds_is_too_old() {
    let topics = Topics::new();
    topics.kafka.create(&topics.messages, 1);
    let node = forgetful(&topics, "node-a").start();
    let remembers = topics.node("node-b").start();
    let session = unique("session");
    let mut agent = Client::connect(&node, &session, "agent", "agent").await;
    let mut there = Client::connect(&remembers, &session, "there", "agent").await;
    let cursor = agent.greeting["cursor"].as_str().unwrap().to_owned();
    let ids = say(&mut agent, &["a", "b", "c", "d"]).await;
    there
        .next_where("the last message", |frame| frame["data"]["message_id"] == *ids[3])
        .await;
    delete_before(&topics, Offset::Offset(2)).await;
    for (since, expected) in [
        (&cursor, Err("too_old")),
        (&ids[0], Err("too_old")),
        (&ids[1], Err("too_old")),
        (&ids[2], Ok(&["d"][..])),
    ] {
        let mut back = open(&node, &session, "u", &format!("since={since}")).await;
        let (texts, resumed) = replayed(&mut back).await;
        match expected {
            Ok(expected) => assert_eq!(texts, expected),
            Err(reason) => assert_refused(&resumed, reason),
        }
    }
    let page = page(&node, &session, &format!("?since={}", ids[0]));
    assert_refused(&page, "too_old");
    // What a node remembers is good at any age.
    let mut back = open(&remembers, &session, "u", &format!("since={}", ids[0])).await;
    let (texts, resumed) = replayed(&mut back).await;
    assert_eq!(
        (texts.len(), &resumed["recovered"]),
        (3, &json!(true)),
        "{resumed}"
    );
    // All of it.
    delete_before(&topics, Offset::End).await;
    let mut back = open(&node, &session, "u", &format!("since={}", ids[3])).await;
    assert_refused(&replayed(&mut back).await.1, "too_old");
}

/// There is a page however much follows, the next one goes on where it ended, and on any node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_read_from_kafka_however_many_messages_follow() {
    let topics = Topics::new();
    let server = start_well(topics.node("node-a"));
    let few = |name: &str| start_well(forgetful(&topics, name).env("RESUME_MAX_MESSAGES", 5));
    let (none, other) = (few("node-b"), few("node-c"));
    let session = unique("session");
    let mut watchers = Vec::new();
    for node in [&server, &none, &other] {
        watchers.push(Client::connect(node, &session, "watcher", "agent").await);
    }
    let start = watchers[1].greeting["cursor"].as_str().unwrap().to_owned();
    // Old ones without a key, in any partition, among keyed ones.
    let records: Vec<_> = (0..60)
        .map(|n| {
            let text = n.to_string();
            match n % 3 {
                0 => Record::old(
                    json!({"id": n, "session_id": session, "message": text, "created_at": "x"}).to_string(),
                ),
                _ => message(&session, &format!("id-{n}"), &text),
            }
        })
        .collect();
    topics.kafka.produce(&topics.messages, &records);
    for watcher in &mut watchers {
        for _ in 0..60 {
            watcher.next("new_message").await;
        }
    }
    watchers.clear();
    let bad = Record::native(&session, "not JSON");
    topics.kafka.produce(&topics.messages, &[bad]);
    let mut expected: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    expected.sort();
    for nodes in [&[&none][..], &[&none, &other, &server]] {
        for limit in [1, 7, 59, 60, 100] {
            let (messages, end) = all_pages(nodes, &session, &start, limit);
            let mut got = texts(&messages);
            got.sort();
            assert_eq!(got, expected, "limit {limit}, {} nodes", nodes.len());
            let nothing_new = of(&page(nodes[0], &session, &format!("?since={end}")));
            // Of other partitions than the session's own, what is within five seconds may come again.
            assert!(
                nothing_new
                    .iter()
                    .all(|text| text.parse::<u32>().unwrap() % 3 == 0),
                "{nothing_new:?}"
            );
        }
    }
    let last = page(&none, &session, "?limit=10");
    assert_eq!((of(&last).len(), &last["has_more"]), (10, &json!(true)));
    let all = page(&none, &session, "?limit=60");
    assert_eq!((of(&all).len(), &all["has_more"]), (60, &json!(false)));
    let after = page(&none, &session, "?limit=2&since=id-50");
    let keyed = of(&after);
    assert_eq!((keyed.len(), &after["has_more"]), (2, &json!(true)), "{after}");
    // A replay is whole, or there is none.
    let mut back = open(&none, &session, "u", &format!("since={start}")).await;
    assert_refused(&replayed(&mut back).await.1, "too_many");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_cannot_be_read_is_said_to_both_kinds_of_clients() {
    let broker = PrivateBroker::started();
    let topics = Topics::on(&broker.kafka());
    let node = forgetful(&topics, "node-a").env("RESUME_TIMEOUT", "1s").start();
    let session = unique("session");
    let mut agent = Client::connect(&node, &session, "agent", "agent").await;
    let ids = say(&mut agent, &["a", "b"]).await;
    let path = format!("/api/session/{session}/messages?since={}", ids[0]);
    broker.pause();
    let response = Http::get(node.http_addr(), &path);
    let mut back = open(&node, &session, "u", &format!("since={}", ids[0])).await;
    let resumed = replayed(&mut back).await.1;
    broker.resume();
    response.assert_error(503);
    assert!(response.text().contains("unavailable"), "{}", response.text());
    assert!(response.header("retry-after").is_some());
    assert_refused(&resumed, "unavailable");
    node.wait_log("the log cannot be read");
    let mut found = response;
    at_last("a page", || {
        found = Http::get(node.http_addr(), &path);
        found.status == 200
    });
    assert_eq!(of(&found.json()["data"]), ["b"]);
}

/// Writes a million records of another session, which are ten minutes old.
fn write_much(topics: &Topics) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &topics.kafka.brokers)
        .set("linger.ms", "50")
        .set("batch.size", "900000")
        .set("queue.buffering.max.messages", "2000000")
        .create()
        .expect("a producer");
    let old = std::time::SystemTime::now() - Duration::from_secs(600);
    let old = old.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let payload = "x".repeat(40);
    for _ in 0..1_000_000 {
        let record = BaseRecord::to(&topics.messages)
            .key("another")
            .payload(&payload)
            .timestamp(old as i64);
        producer.send(record).expect("room in the queue");
    }
    producer
        .flush(Duration::from_secs(100))
        .expect("all records in the log");
}

/// A client that was away for long does not keep those waiting that were away for a moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_for_a_moment_does_not_wait_for_those_who_were_away_for_long() {
    let topics = Topics::new();
    topics.kafka.create(&topics.messages, 1);
    tokio::task::block_in_place(|| write_much(&topics));
    let node = forgetful(&topics, "node-a")
        .env("RESUME_TIMEOUT", "1500ms")
        .start();
    let session = unique("session");
    let mut agent = Client::connect(&node, &session, "agent", "agent").await;
    let ids = say(&mut agent, &["a", "b"]).await;
    let near = format!("since={}", ids[0]);
    eventually_async("the reader has connected", async || {
        let mut first = open(&node, &session, "first", &near).await;
        replayed(&mut first).await.0 == ["b"]
    })
    .await;
    for round in 0..3 {
        // On a busy machine, some take longer.
        let mut attempt = 0;
        loop {
            let resumed = beside_those_who_were_away_for_long(&node, &session, &near, 150 * round).await;
            if resumed["recovered"] == true {
                break;
            }
            attempt += 1;
            assert!(resumed["reason"] == "unavailable" && attempt < 5, "{resumed}");
        }
    }
}

/// Comes back so long after three others, each of whom is in a session of its own; returns what its `resumed` says.
async fn beside_those_who_were_away_for_long(node: &Server, session: &str, near: &str, ms: u64) -> Value {
    let mut far = Vec::new();
    for _ in 0..3 {
        far.push(open(node, &unique("session"), "far", "rewind=5").await);
    }
    tokio::time::sleep(Duration::from_millis(ms)).await;
    let mut back = open(node, session, "near", near).await;
    let (texts, resumed) = replayed(&mut back).await;
    assert!(resumed["recovered"] == false || texts == ["b"], "{texts:?}");
    for mut client in far {
        println!("far: {}", client.next("resumed").await["data"]);
    }
    resumed
}
