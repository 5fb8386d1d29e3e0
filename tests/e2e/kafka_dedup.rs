//! A repeated `client_message_id` is one message, whichever nodes the attempts come to.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use crate::dedup::{assert_one, attempt, messages, send, sent};
use crate::resume::{open, replayed, texts};
use crate::services::{PrivateBroker, Record, Topics, unique};
use crate::support::spec::foreign;
use crate::support::{Client, eventually};

fn payload(id: &str, text: &str, timestamp: &str) -> String {
    json!({"type": "new_message", "success": true, "data": {"message_id": id, "message": text, "timestamp": timestamp}})
        .to_string()
}

/// After the answer, on another node, and on one that has started later, with and without a recent log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_on_another_node_is_answered_as_the_first_attempt() {
    let topics = Topics::new();
    let (a, b) = topics.two_nodes();
    let session = unique("session");
    let mut watchers = Vec::new();
    for node in [&a, &b] {
        watchers.push(Client::connect(node, &session, "watcher", "agent").await);
    }
    let mut on_a = Client::connect(&a, &session, "u", "customer").await;
    let answer = send(&mut on_a, "a", "c").await;
    let later = topics.node("node-c").start();
    let without_log = topics.node("node-d").env("RECENT_LOG_BYTES", 0).start();
    for node in [&b, &a, &later, &without_log] {
        let mut client = Client::connect(node, &session, "u", "customer").await;
        assert_eq!(send(&mut client, "a", "c").await, answer);
    }
    for watcher in &mut watchers {
        assert_one(&messages(watcher, &mut on_a).await, "a", &answer);
    }
}

/// The nodes do not know of each other's attempts: all of them write a record, and the log decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_at_once_on_two_nodes_are_one_message() {
    const ROUNDS: usize = 30;
    let topics = Topics::new();
    let nodes = topics.two_nodes();
    let nodes = [
        topics.node("node-c").env("ADMIN_ADDR", "127.0.0.1:0").start(),
        nodes.0,
        nodes.1,
    ];
    let session = unique("session");
    let (mut watchers, mut senders) = (Vec::new(), Vec::new());
    for node in &nodes {
        watchers.push(Client::connect(node, &session, "watcher", "agent").await);
        senders.push(Client::connect(node, &session, "u", "customer").await);
    }
    let mut ids = Vec::new();
    for round in 0..ROUNDS {
        let id = format!("c-{round}");
        for sender in &mut senders {
            attempt(sender, "a", &id, &id).await;
        }
        let answer = sent(&mut senders[0], &id).await;
        for sender in &mut senders[1..] {
            assert_eq!(sent(sender, &id).await, answer);
        }
        ids.push(answer["message_id"].as_str().unwrap().to_owned());
    }
    for watcher in &mut watchers {
        let seen = messages(watcher, &mut senders[0]).await;
        assert_eq!(seen.into_iter().map(|(_, id)| id).collect::<Vec<_>>(), ids);
    }
    let skipped = nodes[0].metric("livechat_duplicates_skipped_total");
    assert!(skipped > 0.0, "no attempts came at once");
    // A node that reads it all later passes over the same records.
    let later = topics.node("node-d").start();
    let mut back = open(&later, &session, "u", "rewind=100").await;
    back.next("resumed").await;
    let got: Vec<Value> = back.take_all("new_message");
    assert_eq!(texts(&got).iter().filter(|text| *text == "a").count(), ROUNDS);
}

/// The first node is killed after the record was written, before the client has its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_lost_with_its_node_comes_from_another_one() {
    let topics = Topics::new();
    let (a, b) = topics.two_nodes();
    let session = unique("session");
    let mut watcher = Client::connect(&b, &session, "watcher", "agent").await;
    let mut client = Client::connect(&a, &session, "u", "customer").await;
    attempt(&mut client, "pay", "c", "1").await;
    watcher
        .next_where("the message", |frame| frame["type"] == "new_message")
        .await;
    a.signal("KILL");
    // Its answer was not read.
    drop(client);
    let mut client = Client::connect(&b, &session, "u", "customer").await;
    let answer = send(&mut client, "pay", "c").await;
    let later = topics.node("node-c").start();
    let mut client_of_later = Client::connect(&later, &session, "u", "customer").await;
    assert_eq!(send(&mut client_of_later, "pay", "c").await, answer);
    let seen: Vec<Value> = watcher
        .log
        .iter()
        .filter(|frame| frame["type"] == "new_message")
        .cloned()
        .collect();
    assert_eq!(texts(&seen), ["pay"]);
    assert_eq!(seen[0]["data"]["message_id"], answer["message_id"]);
    assert!(messages(&mut watcher, &mut client).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_producers_repeat_by_header() {
    let topics = Topics::new();
    let server = topics.node("node-a").env("ADMIN_ADDR", "127.0.0.1:0").start();
    let session = unique("session");
    let mut client = Client::connect(&server, &session, "u", "customer").await;
    let mut watcher = Client::connect(&server, &session, "watcher", "agent").await;
    let of_backend = |id: &str, client_id: &str| {
        Record::native(&session, payload(id, "from the backend", "T")).header("livechat-client-id", client_id)
    };
    let old = json!({"id": 7, "session_id": session, "message": "old", "created_at": "O"}).to_string();
    let old = || Record {
        key: Some(session.clone().into_bytes()),
        ..Record::old(&old)
    };
    topics.kafka.produce(
        &topics.messages,
        &[
            of_backend("b-1", "u/x"),
            of_backend("b-2", "u/x"),
            of_backend("b-3", "%75/%78"),
            // These headers are ignored.
            of_backend("b-4", "u/"),
            of_backend("b-5", "u/"),
            of_backend("b-6", &format!("u/{}", "x".repeat(1_100))),
            of_backend("b-7", &format!("u/{}", "x".repeat(1_100))),
            old().header("livechat-client-id", "u/old"),
            old().header("livechat-client-id", "u/old"),
            old(),
        ],
    );
    eventually("all are read", || {
        server.metric("livechat_duplicates_skipped_total") >= 3.0
    });
    let answer = send(&mut client, "mine", "x").await;
    assert_eq!(
        (&answer["message_id"], &answer["timestamp"]),
        (&json!("b-1"), &json!("T"))
    );
    let answer = send(&mut client, "mine", "old").await;
    assert_eq!(
        (&answer["message_id"], &answer["timestamp"]),
        (&json!("7"), &json!("O"))
    );
    let last = unique("last");
    client.say_acked(&last).await;
    watcher
        .next_where("the last message", |frame| frame["data"]["message"] == *last)
        .await;
    let seen = watcher.take_all("new_message");
    let ids: Vec<String> = seen
        .iter()
        .map(|frame| frame["data"]["message_id"].to_string())
        .collect();
    assert_eq!(
        ids,
        [
            r#""b-1""#, r#""b-4""#, r#""b-5""#, r#""b-6""#, r#""b-7""#, "7", "7"
        ]
    );
    // The backend repeats a client's message.
    let own = send(&mut client, "own", "c").await;
    topics
        .kafka
        .produce(&topics.messages, &[of_backend("b-8", "u/c")]);
    eventually("it is read", || {
        server.metric("livechat_duplicates_skipped_total") >= 4.0
    });
    assert_one(&messages(&mut watcher, &mut client).await, "own", &own);
}

/// By the records' timestamps: a node that reads both at once decides as one that has read them as they came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_older_than_the_window_is_another_message() {
    let topics = Topics::new();
    let node = |name| topics.node(name).env("DEDUP_WINDOW", "8s");
    let server = node("node-a").start();
    let session = unique("session");
    let mut client = Client::connect(&server, &session, "u", "customer").await;
    let first = send(&mut client, "a", "c").await;
    assert_eq!(send(&mut client, "a", "c").await, first);
    tokio::time::sleep(Duration::from_millis(8_200)).await;
    let began = Instant::now();
    let second = send(&mut client, "a", "c").await;
    assert_ne!(first["message_id"], second["message_id"]);
    let later = node("node-b").start();
    let mut back = open(&later, &session, "u", "rewind=10").await;
    back.next("resumed").await;
    let ids: Vec<Value> = back
        .take_all("new_message")
        .iter()
        .map(|frame| frame["data"]["message_id"].clone())
        .collect();
    assert_eq!(ids, [first["message_id"].clone(), second["message_id"].clone()]);
    let third = send(&mut back, "a", "c").await;
    // On a busy machine its window is over by then.
    assert!(
        third == second || began.elapsed() >= Duration::from_secs(8),
        "{third}"
    );
}

/// Writes a record of message `c` of user `u`, so many seconds old.
fn write_old(topics: &Topics, session: &str, id: &str, seconds: u64) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &topics.kafka.brokers)
        .create()
        .expect("a producer");
    let time = SystemTime::now() - Duration::from_secs(seconds);
    let headers = [("livechat-frame", "1"), ("livechat-client-id", "u/c")]
        .into_iter()
        .fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header {
                key,
                value: Some(value),
            })
        });
    let payload = payload(id, id, "T");
    foreign::note(payload.as_bytes(), true);
    let record = BaseRecord::to(&topics.messages)
        .key(session)
        .payload(&payload)
        .timestamp(time.duration_since(UNIX_EPOCH).unwrap().as_millis() as i64)
        .headers(headers);
    producer.send(record).expect("room in the queue");
    producer.flush(Duration::from_secs(10)).expect("in the log");
}

/// A repeat, too, begins a window. Otherwise nodes that have not read the first record would decide differently.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_have_read_only_a_repeat_pass_over_the_next_one_too() {
    let topics = Topics::new();
    topics.kafka.create(&topics.messages, 1);
    let node = |name| {
        topics
            .node(name)
            .env("DEDUP_WINDOW", "10m")
            .env("RESUME_TIMEOUT", "20s")
            .env("ADMIN_ADDR", "127.0.0.1:0")
    };
    let from_log = |name| node(name).env("RECENT_LOG_BYTES", 0);
    let (a, b) = (node("node-a").start(), from_log("node-b").start());
    let session = unique("session");
    let mut watchers = vec![
        Client::connect(&a, &session, "watcher", "agent").await,
        Client::connect(&b, &session, "watcher", "agent").await,
    ];
    write_old(&topics, &session, "first", 1_000);
    write_old(&topics, &session, "second", 500);
    eventually("both have read them", || {
        [&a, &b]
            .iter()
            .all(|node| node.metric("livechat_duplicates_skipped_total") >= 1.0)
    });
    watchers[0].send(json!({"type": "ping"})).await;
    let pong = watchers[0].next("pong").await;
    let cursor = pong["data"]["cursor"].as_str().unwrap();
    let late = from_log("node-c").start();
    watchers.push(Client::connect(&late, &session, "watcher", "agent").await);

    write_old(&topics, &session, "third", 0);
    let mut u = Client::connect(&a, &session, "u", "customer").await;
    u.say_acked("last").await;
    for (watcher, expected) in watchers.iter_mut().zip([&["first"][..], &["first"], &[]]) {
        watcher
            .next_where("the last message", |frame| frame["data"]["message"] == "last")
            .await;
        assert_eq!(texts(&watcher.take_all("new_message")), expected);
    }
    for (node, first) in [(&a, "first"), (&b, "first"), (&late, "second")] {
        let mut back = open(node, &session, "u", &format!("since={cursor}")).await;
        let (texts, resumed) = replayed(&mut back).await;
        assert_eq!(
            (texts, &resumed["recovered"]),
            (vec!["last".to_owned()], &json!(true))
        );
        // The answer is the first record of it that this node has read.
        assert_eq!(send(&mut back, "again", "c").await["message_id"], first);
    }
}

/// While the log does not answer, repeats wait for the first attempt and write no records of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_during_an_outage_are_one_record() {
    let broker = PrivateBroker::started();
    let topics = Topics::on(&broker.kafka());
    let server = topics.node("node-a").env("ADMIN_ADDR", "127.0.0.1:0").start();
    let session = unique("session");
    let mut client = Client::connect(&server, &session, "u", "customer").await;
    client.say_acked("before").await;
    broker.pause();
    attempt(&mut client, "a", "c", "1").await;
    attempt(&mut client, "a", "c", "2").await;
    for request in ["1", "2"] {
        let error = client
            .next_where("an answer", |frame| frame["request_id"] == request)
            .await;
        assert_eq!(error["data"]["code"], "outcome_unknown");
    }
    attempt(&mut client, "a", "c", "3").await;
    broker.resume();
    let mut request = 3;
    let answer = loop {
        let id = request.to_string();
        let answer = client
            .next_where("an answer", |frame| frame["request_id"] == *id)
            .await;
        if answer["type"] == "message_sent" {
            break answer["data"].clone();
        }
        // On a busy machine the broker takes longer than an answer may.
        assert_eq!(answer["data"]["code"], "outcome_unknown");
        request += 1;
        attempt(&mut client, "a", "c", &request.to_string()).await;
    };
    // The record may be read before its acknowledgement is.
    eventually("both are counted", || {
        server.metric("livechat_records_published_total") >= 2.0
    });
    assert_eq!(server.metric("livechat_records_published_total"), 2.0);
    for text in ["before", "a"] {
        let frame = client.next("new_message").await;
        assert_eq!(frame["data"]["message"], text);
        assert!(text == "before" || frame["data"]["message_id"] == answer["message_id"]);
    }
}
