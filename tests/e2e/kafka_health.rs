//! What is wrong with Kafka is said in plain words: in health without addresses, in the log with them, once in each
//! outage.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::services::{Kafka, PrivateBroker, Record, Tap, Topics, at_last, unique};
use crate::support::{Client, Server, eventually};

fn detail(server: &Server) -> String {
    let kafka = server.health()["kafka"].clone();
    kafka["detail"].as_str().unwrap_or_default().to_owned()
}

/// Waits until health is degraded with this detail.
#[track_caller]
fn says(server: &Server, text: &str) {
    at_last(&format!("health says {text:?}"), || {
        let health = server.health();
        let detail = health["kafka"]["detail"].as_str().unwrap_or_default();
        health["status"] == "degraded" && detail.contains(text)
    });
}

#[track_caller]
fn is_well(server: &Server) {
    at_last("health is well", || {
        let kafka = server.health()["kafka"].clone();
        kafka["status"] == "ok" && kafka["detail"] == Value::Null
    });
}

fn lines(server: &Server, text: &str) -> usize {
    server.log().iter().filter(|line| line.contains(text)).count()
}

/// A server other than Kafka: answers every connection with these bytes.
fn impostor(answer: &'static [u8]) -> Kafka {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    // It ends with the test's process.
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || {
                let mut request = [0; 512];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(answer);
                let _ = stream.read(&mut request);
            });
        }
    });
    Kafka::at(address.to_string())
}

/// None of these needs a broker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_kafka_is_reported_with_its_cause() {
    let closed = "127.0.0.1:1".to_owned();
    let http = impostor(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
    let redis = impostor(b"-ERR unknown command\r\n");
    let silent = impostor(b"");
    let cases = [
        (closed, "connection refused"),
        (
            "nowhere.invalid:9092".to_owned(),
            "the broker's name cannot be resolved",
        ),
        (http.brokers, "not Kafka: an HTTP server answers at this address"),
        (redis.brokers, "not Kafka: something else answers at this address"),
        (silent.brokers, "the broker does not answer in time"),
    ];
    let nodes: Vec<_> = cases
        .into_iter()
        .map(|(brokers, text)| {
            let topics = Topics::on(&Kafka::at(brokers.as_str()));
            (topics.node("node-a").start_listening(), brokers, text)
        })
        .collect();
    for (server, brokers, text) in nodes {
        says(&server, text);
        let detail = detail(&server);
        assert!(!detail.contains(&brokers), "an address: {detail}");
        let line = server.wait_log_where(text, |line| line.contains(text));
        assert!(line.contains(&brokers), "no address: {line}");
    }
}

/// Once per outage, and once at its end, however often the monitor probes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_outages_are_logged_once() {
    let broker = PrivateBroker::started();
    let topics = Topics::on(&broker.kafka());
    let server = topics.node("node-a").start();
    is_well(&server);
    broker.stop();
    says(&server, "connection refused");
    // Six probes of the monitor.
    thread::sleep(Duration::from_secs(10));
    broker.start();
    is_well(&server);
    assert_eq!(lines(&server, "connection refused"), 1, "{:#?}", server.log());
    eventually("both are logged", || lines(&server, "Kafka is connected") == 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_kafka_permissions_are_named_until_granted() {
    let broker = PrivateBroker::with_acls();
    let kafka = broker.kafka();
    let topics = Topics::on(&kafka);
    let server = topics.node("node-a").start();
    let ann = Tap::connect(&server, &unique("session"), "ann", "customer").await;
    ann.say_until_acked("before").await;

    for operation in ["Write", "Read", "Describe"] {
        kafka.deny(operation, Some(&topics.messages));
        let text = format!(
            "no permission for the topic {} ({})",
            topics.messages,
            operation.to_uppercase()
        );
        says(&server, &text);
        if operation == "Write" {
            let errors = ann.look(|heard| heard.errors.len());
            assert!(ann.say("refused", 5).await);
            ann.until("the error", |heard| heard.errors.len() > errors).await;
            // Several probes of the monitor, with repeated attempts.
            for n in 0..5 {
                assert!(ann.say(&format!("refused {n}"), 5).await);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        kafka.allow(operation, Some(&topics.messages));
        is_well(&server);
        let said = ann.say_until_acked(operation).await;
        ann.until("the message", |heard| heard.has_text(&said)).await;
        assert_eq!(lines(&server, &text), 1, "{:#?}", server.log());
    }
    let others = ["ERROR", "made anew", "recreat"];
    let noise: Vec<_> = server.log();
    let noise: Vec<_> = noise
        .iter()
        .filter(|line| others.iter().any(|other| line.contains(other)))
        .collect();
    assert!(noise.len() <= 2, "{noise:#?}");
}

/// Without any WRITE there is no id for an idempotent producer either: it fails for good at its start, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_permissions_for_all_topics_do_not_flood_the_log() {
    let broker = PrivateBroker::with_acls();
    let kafka = broker.kafka();
    let topics = Topics::on(&kafka);
    for topic in [&topics.messages, &topics.typing, &topics.status, &topics.control] {
        kafka.create(topic, 2);
    }
    kafka.deny("Write", Some("*"));
    kafka.deny("Idempotent_Write", None);
    let server = topics.node("node-a").start();
    says(&server, "(WRITE)");
    let ann = Tap::connect(&server, &unique("session"), "ann", "customer").await;
    for n in 0..10 {
        assert!(ann.say(&format!("refused {n}"), 20).await);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    says(&server, "(WRITE)");
    let loud = server.log();
    let loud: Vec<_> = loud
        .iter()
        .filter(|line| line.contains("ERROR") || line.contains("WARN"))
        .collect();
    // Kafka without Redis, and the topics.
    assert!(loud.len() <= 6, "{loud:#?}");
    kafka.allow("Write", Some("*"));
    kafka.allow("Idempotent_Write", None);
    let said = ann.say_until_acked("at last").await;
    ann.until("the message", |heard| heard.has_text(&said)).await;
    is_well(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_may_not_be_created_are_logged_once() {
    let broker = PrivateBroker::with_acls();
    let kafka = broker.kafka();
    let topics = Topics::on(&kafka);
    kafka.deny("Create", None);
    for topic in [&topics.messages, &topics.typing, &topics.status, &topics.control] {
        kafka.deny("Create", Some(topic));
    }
    let server = topics.node("node-a").start();
    says(&server, "(cannot be created: no permission (CREATE))");
    // It tries again every 10 s.
    thread::sleep(Duration::from_secs(15));
    assert_eq!(lines(&server, "cannot be created"), 1, "{:#?}", server.log());
    kafka.allow("Create", None);
    for topic in [&topics.messages, &topics.typing, &topics.status, &topics.control] {
        kafka.allow("Create", Some(topic));
    }
    is_well(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_with_too_small_a_batch_limit_are_named() {
    let broker = PrivateBroker::started();
    let kafka = broker.kafka();
    let topics = Topics::on(&kafka);
    kafka.create_with(&["max.message.bytes=2000"], &topics.messages, 2);
    let server = topics.node("node-a").start();
    let session = unique("session");
    let ann = Tap::connect(&server, &session, "ann", "customer").await;
    let long = "long ".repeat(1_000);
    let said = json!({"message": long, "client_message_id": "long"});
    let frame = json!({"type": "send_message", "data": said});
    assert!(ann.send(frame.clone()).await);
    ann.until("the error", |heard| !heard.errors.is_empty()).await;
    ann.look(|heard| {
        assert_eq!(
            heard.errors[0]["data"]["code"], "record_too_large",
            "{}",
            heard.errors[0]
        )
    });
    says(
        &server,
        "refuses batches larger than its max.message.bytes (2000 bytes)",
    );
    kafka.alter(&topics.messages, &["max.message.bytes=1000000"]);
    ann.say_until_acked("short").await;
    is_well(&server);
    assert!(ann.send(frame).await);
    ann.until("the message", |heard| heard.has_text(&long)).await;
}

/// Consumers get no records after the start of an open transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_transactions_are_reported() {
    let topics = Topics::new();
    topics.kafka.create(&topics.messages, 4);
    let node = topics.node("node-a").env("ADMIN_ADDR", "127.0.0.1:0");
    // Pings are not answered while the test waits.
    let server = node.env("PING_INTERVAL", "120s").start();
    let session = unique("session");
    let mut client = Client::connect(&server, &session, "reader", "agent").await;
    let record = |text: &str| Record::message(&session, text).partition(3);
    let id = format!("transactional.id={}", unique("producer"));
    let timeout = "transaction.timeout.ms=600000";
    topics
        .kafka
        .produce_with(&[&id, timeout, "leave=true"], &topics.messages, &[record("open")]);
    topics.kafka.produce(&topics.messages, &[record("behind it")]);
    let name = format!("{}/3", topics.messages);
    says(
        &server,
        &format!("a transaction that a producer has left open holds back {name} for 1"),
    );
    assert!(server.metric("livechat_kafka_open_transaction_seconds") >= 10.0);
    // The next producer with this transactional id aborts the open transaction.
    topics
        .kafka
        .produce_with(&[&id, timeout], &topics.messages, &[record("next")]);
    assert_eq!(client.next("new_message").await["data"]["message"], "behind it");
    assert_eq!(client.next("new_message").await["data"]["message"], "next");
    is_well(&server);
    at_last("the gauge is back", || {
        server.metric("livechat_kafka_open_transaction_seconds") == 0.0
    });
    assert_eq!(lines(&server, "has left open"), 1, "{:#?}", server.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_latencies_and_lag_are_measured() {
    let topics = Topics::new();
    let server = topics.node("node-a").env("ADMIN_ADDR", "127.0.0.1:0").start();
    let ann = Tap::connect(&server, &unique("session"), "ann", "customer").await;
    for n in 0..5 {
        let said = ann.say_until_acked(&format!("hello {n}")).await;
        ann.until("the message", |heard| heard.has_text(&said)).await;
    }
    for name in ["publish", "delivery"] {
        let metric = |what: &str| server.metric(&format!("livechat_kafka_{name}_latency_seconds_{what}"));
        // A client may have the last message before its delivery is counted.
        eventually(name, || metric("count") >= 5.0);
        let mean = metric("sum") / metric("count");
        assert!(mean < 30.0, "{name}: {mean}");
    }
    at_last("nothing is left to read", || {
        server.metric("livechat_kafka_consumer_lag") == 0.0
    });
}
