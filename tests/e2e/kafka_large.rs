//! Records as long as Kafka itself allows by default, as the old server delivered them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::services::{Record, Topics, unique};
use crate::support::{Client, Http, Opcode, RawWs, Server, eventually};

/// `MAX_RECORD_BYTES`, by default.
const LARGEST: usize = 1_048_576;

/// A record of the chat backend with this text.
fn old(session: &str, text: &str) -> String {
    json!({"id": unique("id"), "session_id": session, "sender_id": "agent-1", "sender_type": "agent", "message": text,
        "message_type": "text", "attachments": null, "read_at": null, "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z"})
    .to_string()
}

/// A record whose value has this length.
fn old_of(session: &str, length: usize) -> String {
    let text = "x".repeat(length - old(session, "").len());
    let record = old(session, &text);
    assert_eq!(record.len(), length);
    record
}

/// Whether `/metrics` has this line.
fn shows(server: &Server, line: &str) -> bool {
    let page = Http::get(server.admin_addr(), "/metrics").text();
    page.lines().any(|shown| shown == line)
}

async fn next_text(client: &mut Client) -> String {
    let frame = client.next("new_message").await;
    client.log.clear();
    frame["data"]["message"].as_str().expect("a text").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_message_arrives_whole() {
    let topics = Topics::new();
    let (a, b) = topics.two_nodes();
    let session = unique("session");
    let mut clients = [
        Client::connect(&a, &session, "ann", "customer").await,
        Client::connect(&b, &session, "ben", "agent").await,
    ];
    // 131,500 characters, some of them of more bytes, some that grow when they are escaped, and half an emoji at the
    // end.
    let mut text: String = "Order 17: \"Käse\"\n漢字\t\u{1}"
        .chars()
        .cycle()
        .take(131_499)
        .collect();
    text.push('?');
    let record = old(&session, &text).replace('?', r"\ud83d");
    topics.kafka.produce(&topics.messages, &[Record::old(record)]);
    let text = text.replace('?', "\u{FFFD}");
    for client in &mut clients {
        assert!(next_text(client).await == text, "another text");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_record_is_delivered_and_a_larger_one_is_skipped() {
    let topics = Topics::new();
    // The server creates the topic, which accepts every record it delivers, uncompressed.
    let server = topics.node("node-a").env("ADMIN_ADDR", "127.0.0.1:0").start();
    let session = unique("session");
    let mut client = Client::connect(&server, &session, "reader", "agent").await;
    let records = [
        Record::old(old_of(&session, LARGEST)),
        Record::old(old_of(&session, LARGEST + 1)),
        Record::native(&session, vec![b'x'; LARGEST + 1]),
        Record::old(old(&session, "the end")),
    ];
    topics
        .kafka
        .produce(&topics.messages, &records.map(|record| record.partition(0)));
    assert!(next_text(&mut client).await.len() > LARGEST - 400);
    assert_eq!(next_text(&mut client).await, "the end");
    eventually("both are counted", || {
        shows(&server, "livechat_poison_records_total{reason=\"too_big\"} 2")
    });
    assert_eq!(server.metric("livechat_poison_records_total"), 2.0);
}

/// A topic that the backend made takes batches of 1,048,588 bytes, which is Kafka's default: all that fits is
/// delivered, and what nodes write fits in it, too, however much they write at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_with_kafkas_defaults_is_sufficient() {
    let topics = Topics::new();
    topics.kafka.create(&topics.messages, 2);
    let node = topics.node("node-a").env("ADMIN_ADDR", "127.0.0.1:0");
    // The writer reads only when it has written everything.
    let server = node.env("SEND_QUEUE_BYTES", 8 << 20).start();
    let session = unique("session");
    let mut reader = Client::connect(&server, &session, "reader", "agent").await;
    let largest = LARGEST - 100;
    topics
        .kafka
        .produce(&topics.messages, &[Record::old(old_of(&session, largest))]);
    assert!(next_text(&mut reader).await.len() > largest - 400);

    let mut writer = Client::connect(&server, &session, "writer", "customer").await;
    const MESSAGES: usize = 60;
    const LENGTH: usize = 60_000;
    let reading = tokio::spawn(async move {
        for _ in 0..MESSAGES {
            assert_eq!(next_text(&mut reader).await.len(), LENGTH);
        }
    });
    for number in 0..MESSAGES {
        writer.say(&"x".repeat(LENGTH), &format!("{number}")).await;
    }
    for _ in 0..MESSAGES {
        let answer = |frame: &Value| frame["type"] == "message_sent" || frame["type"] == "error";
        let answer = writer.next_where("an answer", answer).await;
        assert_eq!(answer["type"], "message_sent", "{answer}");
        writer.log.clear();
    }
    reading.await.expect("the reader");
}

/// A queue holds one of them, and more of them may wait for a draining reader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_records_do_not_close_slow_readers() {
    const RECORDS: usize = 6;
    let topics = Topics::new();
    let node = topics.node("node-a").env("ADMIN_ADDR", "127.0.0.1:0");
    // Nobody answers pings here.
    let server = node.env("PING_INTERVAL", "10m").start();
    let session = unique("session");
    let mut stopped = RawWs::connect_narrow(&server, &session, "stopped", "agent");
    let mut slow = RawWs::connect_narrow(&server, &session, "slow", "agent");
    let record = Record::old(old_of(&session, LARGEST));
    let reading = std::thread::spawn(move || {
        let mut whole = 0;
        while whole < RECORDS {
            assert!(slow.gulp(64 * 1024).expect("a socket"), "the slow reader was cut");
            let frames = slow.buffered_frames();
            let end = frames.iter().find(|frame| frame.is(Opcode::Close));
            assert!(end.is_none(), "after {whole} records: {end:?}");
            whole += frames
                .iter()
                .filter(|frame| frame.payload.len() > LARGEST - 400)
                .count();
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    // Who reads already is slow, and has not stopped.
    topics
        .kafka
        .produce(&topics.messages, &vec![record.partition(0); RECORDS]);
    tokio::task::spawn_blocking(move || reading.join().expect("the slow reader"))
        .await
        .expect("the reading thread");
    // Who has stopped is cut by its queue or its time, and nobody waits for it.
    eventually("the stopped reader is cut", || {
        shows(
            &server,
            "livechat_connections_closed_total{reason=\"slow_consumer\"} 1",
        )
    });
    stopped.set_read_timeout(Duration::from_secs(30));
    while let Ok(Some(_)) = stopped.try_read_frame() {}
}
