//! Records that can't be delivered, or have no recipients here: they are skipped, and the next record is delivered.

use serde_json::{Value, json};

use crate::kafka_records::old_and_new;
use crate::services::{Record, Topics, start_well, unique};
use crate::support::{Client, RawWs, Server, eventually};

fn poisoned(server: &Server) -> f64 {
    server.metric("livechat_poison_records_total")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_is_counted_and_skipped_and_the_next_record_delivered() {
    let topics = Topics::new();
    let node = topics.node("node-a").env("ADMIN_ADDR", "127.0.0.1:0");
    let server = node.env("MAX_RECORD_BYTES", 131_072).start();
    let session = unique("session");
    let mut client = Client::connect(&server, &session, "reader", "agent").await;

    let native = |value: &[u8]| Record::native(&session, value);
    let framed = |key: Option<&str>, header: &str| Record {
        key: key.map(Into::into),
        ..Record::old(r#"{"type":"x","success":true,"data":{}}"#).header("livechat-frame", header)
    };
    let without = |field: &str| {
        let mut old = old_and_new(&session, "poison", 1).0;
        old.as_object_mut().unwrap().remove(field);
        Record::old(old.to_string())
    };
    let with = |field: &str, value: Value| {
        let mut old = old_and_new(&session, "poison", 1).0;
        old[field] = value;
        Record::old(old.to_string())
    };
    let big = vec![b'x'; 131_073];
    let poison = [
        ("native, not UTF-8", native(b"{\"a\":\"\xff\"}")),
        ("native, cut UTF-8", native(b"caf\xc3")),
        ("native, over MAX_RECORD_BYTES", native(&big)),
        ("native, far over MAX_RECORD_BYTES", native(&big.repeat(7))),
        (
            "native, a tombstone",
            Record {
                value: None,
                ..native(b"")
            },
        ),
        ("native, no key", framed(None, "1")),
        ("native, an empty key", framed(Some(""), "1")),
        ("native, a key that is no session id", framed(Some("a/b"), "1")),
        (
            "native, a key that is too long",
            framed(Some(&"x".repeat(129)), "1"),
        ),
        ("a newer frame version", framed(Some(&session), "2")),
        ("an empty frame version", framed(Some(&session), "")),
        ("old, a tombstone", Record::default()),
        ("old, empty", Record::old("")),
        ("old, not JSON", Record::old("hello")),
        (
            "old, cut JSON",
            Record::old(&old_and_new(&session, "poison", 1).0.to_string()[..100]),
        ),
        ("old, not UTF-8", Record::old(b"{\"id\":\"\xff\"}")),
        ("old, an array", Record::old("[1]")),
        (
            "old, over MAX_RECORD_BYTES",
            with("message", json!("x".repeat(131_072))),
        ),
        ("old, no id", without("id")),
        ("old, no session_id", without("session_id")),
        ("old, no message", without("message")),
        (
            "old, a session_id that is no session id",
            with("session_id", json!("a/b")),
        ),
        (
            "old, a session_id that is no string",
            with("session_id", json!(7)),
        ),
    ];

    for (n, (what, record)) in poison.into_iter().enumerate() {
        let before = poisoned(&server);
        // In one partition, so that the good record follows the bad one.
        let good = if n % 2 == 0 {
            Record::old(old_and_new(&session, &format!("after {what}"), n).0.to_string())
        } else {
            let data = old_and_new(&session, &format!("after {what}"), n).1;
            native(
                json!({"type": "new_message", "success": true, "data": data})
                    .to_string()
                    .as_bytes(),
            )
        };
        topics
            .kafka
            .produce(&topics.messages, &[record.partition(0), good.partition(0)]);
        let frame = client
            .next_where(&format!("a record after: {what}"), |f| {
                f["type"] == "new_message" || f["type"] == "x"
            })
            .await;
        assert_eq!(
            frame["data"]["message"],
            format!("after {what}"),
            "{what} was delivered"
        );
        eventually(&format!("one more poison record counted: {what}"), || {
            poisoned(&server) >= before + 1.0
        });
        assert_eq!(poisoned(&server), before + 1.0, "{what}");
    }
    let place = server.wait_log_where("partition and offset of a poison record", |line| {
        line.contains("partition=0") && line.contains("offset=")
    });
    assert!(!place.contains("café"), "a record's text in the log: {place}");
    eventually("poison is no fault of the broker", || {
        server.health()["status"] == "ok"
    });
}

/// A record of a session without connections is not poison, and does not delay others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_unknown_sessions_are_not_poison() {
    let topics = Topics::new();
    let server = topics.node("node-a").env("ADMIN_ADDR", "127.0.0.1:0").start();
    let session = unique("session");
    let mut client = Client::connect(&server, &session, "reader", "agent").await;
    let before = poisoned(&server);
    let nobody = unique("nobody");
    let records = [
        Record::old(old_and_new(&nobody, "for nobody", 1).0.to_string()).partition(0),
        Record::native(&nobody, "for nobody").partition(0),
        Record::old(old_and_new(&session, "for somebody", 1).0.to_string()).partition(0),
    ];
    topics.kafka.produce(&topics.messages, &records);
    assert_eq!(
        client.next("new_message").await["data"]["message"],
        "for somebody"
    );
    assert_eq!(poisoned(&server), before, "counted as poison");
}

/// A poison record is logged; it is skipped even if logging fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_is_skipped_where_logging_fails() {
    let topics = Topics::new();
    let server = start_well(topics.node("node-a"));
    let session = unique("session");
    let mut client = Client::connect(&server, &session, "reader", "agent").await;
    server.close_log(|| drop(RawWs::connect(&server, "other", "eve", "customer")));
    let records = [Record::old("poison"), Record::message(&session, "next")];
    topics
        .kafka
        .produce(&topics.messages, &records.map(|record| record.partition(0)));
    assert_eq!(client.next("new_message").await["data"]["message"], "next");
}
