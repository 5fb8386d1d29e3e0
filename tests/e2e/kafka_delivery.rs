//! Many nodes on one log: everyone sees every message once, in one order.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::services::{Heard, PrivateBroker, Record, Tap, Topics, start_well, unique};
use crate::support::{Client, eventually_async};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_deliver_every_message_once_and_in_the_same_order() {
    const EACH: usize = 2_500;
    let topics = Topics::new();
    let (a, b) = topics.two_nodes();
    let session = unique("session");
    let mut taps = Vec::new();
    for (user, node) in [("ann", &a), ("ben", &a), ("cat", &b), ("dan", &b)] {
        taps.push((
            user,
            Arc::new(Tap::connect(node, &session, user, "customer").await),
        ));
    }

    let senders: Vec<_> = taps
        .iter()
        .map(|(user, tap)| tokio::spawn(flood(Arc::clone(tap), user, EACH)))
        .collect();
    for sender in senders {
        sender.await.expect("a sender");
    }
    for (user, tap) in &taps {
        tap.until(&format!("{user}'s messages and acknowledgements"), |heard| {
            heard.messages.len() >= 4 * EACH && heard.acks.len() + heard.errors.len() >= EACH
        })
        .await;
    }
    // A duplicate would arrive before a message that is sent now.
    let last = taps[0].1.say_until_acked("the last word").await;
    for (_, tap) in &taps {
        tap.until("the last word", |heard| heard.has_text(&last)).await;
    }

    let order = taps[0].1.look(Heard::ids);
    assert_eq!(order.len(), 4 * EACH + 1, "messages at the first client");
    let known: HashSet<_> = order.iter().collect();
    assert_eq!(known.len(), order.len(), "some message came twice");
    for (user, tap) in &taps {
        tap.look(|heard| {
            assert!(heard.errors.is_empty(), "{user}: {:?}", heard.errors.first());
            assert!(heard.ids() == order, "{user} saw another order");
            assert_eq!(
                heard.acks.len(),
                EACH + usize::from(*user == "ann"),
                "{user}'s acknowledgements"
            );
            for ack in &heard.acks {
                let id = ack["message_id"].as_str().expect("a message_id").to_owned();
                assert!(
                    known.contains(&id),
                    "{user}: acknowledged, and not delivered: {ack}"
                );
            }
            check_senders(user, heard, EACH);
        });
    }

    // The log agrees, in the words of a client that is not ours: native records, one partition, the bytes of the
    // sockets.
    let stored = topics.kafka.consume(&topics.messages);
    let values: Vec<_> = stored.iter().map(|record| record.text().to_owned()).collect();
    let payloads: Vec<_> = taps[3].1.look(|heard| {
        heard
            .messages
            .iter()
            .map(|(payload, _)| payload.clone())
            .collect()
    });
    assert!(
        values == payloads,
        "the log and the sockets differ: {:?} and {:?}",
        values.first(),
        payloads.first()
    );
    assert!(
        stored.is_sorted_by_key(|record| record.offset),
        "the Java client's own order"
    );
    for record in &stored {
        assert_eq!(record.key_text(), Some(session.as_str()), "{record:?}");
        assert_eq!(
            record.partition, stored[0].partition,
            "one session in two partitions"
        );
        assert_eq!(
            record.headers.get("livechat-frame").map(Vec::as_slice),
            Some(&b"1"[..]),
            "{record:?}"
        );
    }
}

async fn flood(tap: Arc<Tap>, user: &'static str, number: usize) {
    for n in 0..number {
        assert!(
            tap.say(&format!("{user} {n}"), 200).await,
            "{user} was closed after {n} messages"
        );
    }
}

/// Every sender's messages are there, in the order of sending, each under its sender's name.
fn check_senders(reader: &str, heard: &Heard, each: usize) {
    let mut next: BTreeMap<String, usize> = BTreeMap::new();
    for (_, data) in &heard.messages {
        let sender = data["sender_id"].as_str().expect("a sender");
        let n = next.entry(sender.to_owned()).or_default();
        if *n < each {
            assert_eq!(
                data["client_message_id"],
                format!("{sender} {n}"),
                "{reader} reads {sender}: {data}"
            );
            assert_eq!(data["message"], data["client_message_id"], "{data}");
        }
        *n += 1;
    }
    assert_eq!(next.len(), 4, "{reader}: {next:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_topics_are_created() {
    let topics = Topics::new();
    assert_eq!(
        topics.kafka.partitions(&topics.messages),
        None,
        "the test's topic is there already"
    );
    let server = start_well(topics.node("node-a"));
    let mut client = Client::connect(&server, &unique("session"), "ann", "customer").await;
    client.say_acked("into a topic that was not there").await;
    for topic in [&topics.messages, &topics.typing, &topics.status] {
        assert_eq!(topics.kafka.partitions(topic), Some(8), "{topic}");
    }
    assert_eq!(topics.kafka.partitions(&topics.control), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_partitions_of_a_created_topic_is_configured() {
    let topics = Topics::new();
    let server = start_well(topics.node("node-a").env("KAFKA_TOPIC_PARTITIONS", 3));
    let mut client = Client::connect(&server, &unique("session"), "ann", "customer").await;
    client.say_acked("hello").await;
    assert_eq!(topics.kafka.partitions(&topics.messages), Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_added_later_is_read_from_its_beginning() {
    let topics = Topics::new();
    topics.kafka.create(&topics.messages, 2);
    let server = start_well(topics.node("node-a"));
    let session = unique("session");
    let tap = Tap::connect(&server, &session, "ann", "agent").await;

    // Written before the server can know of the partition: these are the records that reading from its end would miss.
    topics.kafka.add_partitions(&topics.messages, 4);
    let mut records = Vec::new();
    for partition in [2, 3] {
        for n in 0..10 {
            let value = native(&session, &format!("p{partition} {n}"));
            records.push(Record::native(&session, value).partition(partition));
        }
    }
    topics.kafka.produce(&topics.messages, &records);
    tap.until("the records of the new partitions", |heard| {
        heard.messages.len() >= 20
    })
    .await;

    let last = tap.say_until_acked("the last word").await;
    tap.until("the last word", |heard| heard.has_text(&last)).await;
    let texts = tap.look(|heard| {
        heard
            .messages
            .iter()
            .map(|(_, data)| data["message"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    });
    for partition in [2, 3] {
        let prefix = format!("p{partition} ");
        let got: Vec<_> = texts
            .iter()
            .filter_map(|text| text.strip_prefix(&prefix))
            .collect();
        assert_eq!(
            got,
            ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
            "partition {partition}, each once, in order"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_node_does_not_replay_history() {
    let topics = Topics::new();
    let session = unique("session");
    topics.kafka.create(&topics.messages, 4);
    let history: Vec<_> = (0..40)
        .map(|n| Record::native(&session, native(&session, &format!("old {n}"))).partition(n % 4))
        .collect();
    topics.kafka.produce(&topics.messages, &history);

    let server = start_well(topics.node("node-a"));
    let tap = Tap::connect(&server, &session, "ann", "customer").await;
    expect_only_news(&topics, &session, &tap).await;
}

/// The node first connects to Kafka long after its start, and after records that it must not replay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_first_connect_does_not_replay_history() {
    let broker = PrivateBroker::started();
    let topics = Topics::on(&broker.kafka());
    let session = unique("session");
    topics.kafka.create(&topics.messages, 4);
    let history: Vec<_> = (0..40)
        .map(|n| Record::native(&session, native(&session, &format!("old {n}"))).partition(n % 4))
        .collect();
    topics.kafka.produce(&topics.messages, &history);
    broker.stop();

    let server = topics.node("node-a").start_listening();
    eventually_async("ready without its broker", async || {
        server.get("/ready").status == 200
    })
    .await;
    let tap = Tap::connect(&server, &session, "ann", "customer").await;
    broker.start();
    // Nothing may be acknowledged before the node knows from where it reads: its sender would never see it.
    let said = tap.say_until_acked("is it there?").await;
    tap.until("the first acknowledged message", |heard| heard.has_text(&said))
        .await;
    expect_only_news(&topics, &session, &tap).await;
}

/// A new record on each of the four partitions arrives, and none of the earlier ones.
async fn expect_only_news(topics: &Topics, session: &str, tap: &Tap) {
    let news: Vec<_> = (0..4)
        .map(|p| Record::native(session, native(session, &format!("new {p}"))).partition(p))
        .collect();
    topics.kafka.produce(&topics.messages, &news);
    for partition in 0..4 {
        tap.until("the new records", |heard| {
            heard.has_text(&format!("new {partition}"))
        })
        .await;
    }
    tap.look(|heard| {
        let replayed = heard.messages.iter().find(|(_, data)| {
            data["message"]
                .as_str()
                .is_some_and(|text| text.starts_with("old "))
        });
        assert!(replayed.is_none(), "replayed: {replayed:?}");
    });
}

fn native(session: &str, text: &str) -> String {
    let data = json!({"message_id": unique("m"), "session_id": session, "sender_id": "bot", "sender_type": "ai", "message": text,
        "message_type": "text", "attachments": [], "timestamp": "2024-01-02T03:04:05Z"});
    json!({"type": "new_message", "success": true, "data": data}).to_string()
}

/// Across two nodes everyone but the typist sees the typing, once; none of the typist's connections does, wherever it
/// is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typing_reaches_others_on_all_nodes_once_but_not_its_user() {
    let topics = Topics::new();
    let (a, b) = topics.two_nodes();
    let session = unique("session");
    let mut ann_a = Client::connect(&a, &session, "ann", "customer").await;
    let mut ann_b = Client::connect(&b, &session, "ann", "customer").await;
    let mut ben_a = Client::connect(&a, &session, "ben", "agent").await;
    let mut cat_b = Client::connect(&b, &session, "cat", "admin").await;
    let of = |user: &'static str| {
        move |frame: &Value| frame["type"] == "typing_indicator" && frame["data"]["user_id"] == user
    };

    ann_a.send(json!({"type": "typing_start"})).await;
    for other in [&mut ben_a, &mut cat_b] {
        let frame = other.next_where("ann starts", of("ann")).await;
        assert_eq!(frame["success"], true, "{frame}");
        let data = &frame["data"];
        assert_eq!(data["session_id"], session.as_str(), "{frame}");
        assert_eq!(data["sender_type"], "customer", "{frame}");
        assert_eq!(data["is_typing"], true, "{frame}");
        assert!(data["timestamp"].is_string(), "{frame}");
    }
    // One after the other: what ben does now can only come after what ann did, at whoever sees both.
    ben_a
        .send(json!({"type": "agent_typing", "data": {"is_typing": true}}))
        .await;
    for other in [&mut ann_a, &mut ann_b, &mut cat_b] {
        let frame = other.next_where("ben starts", of("ben")).await;
        assert_eq!(frame["data"]["is_typing"], true, "{frame}");
    }
    ann_a.send(json!({"type": "typing_stop"})).await;
    for other in [&mut ben_a, &mut cat_b] {
        assert_eq!(
            other.next_where("ann stops", of("ann")).await["data"]["is_typing"],
            false
        );
    }
    ben_a
        .send(json!({"type": "agent_typing", "data": {"is_typing": false}}))
        .await;
    for other in [&mut ann_a, &mut ann_b, &mut cat_b] {
        assert_eq!(
            other.next_where("ben stops", of("ben")).await["data"]["is_typing"],
            false
        );
    }

    let seen = |client: &Client| -> Vec<String> {
        let typing = client
            .log
            .iter()
            .filter(|frame| frame["type"] == "typing_indicator");
        typing
            .map(|frame| {
                format!(
                    "{} {}",
                    frame["data"]["user_id"].as_str().unwrap(),
                    frame["data"]["is_typing"]
                )
            })
            .collect()
    };
    assert_eq!(
        seen(&ann_a),
        ["ben true", "ben false"],
        "the typist, where she types"
    );
    assert_eq!(
        seen(&ann_b),
        ["ben true", "ben false"],
        "the typist, on the other node"
    );
    assert_eq!(
        seen(&cat_b),
        ["ann true", "ben true", "ann false", "ben false"],
        "somebody else, on the other node"
    );
    assert_eq!(
        seen(&ben_a),
        ["ann true", "ann false"],
        "somebody else, on the typist's node"
    );

    let stored = topics.kafka.consume(&topics.typing);
    assert_eq!(stored.len(), 4, "typing records: {stored:?}");
    for record in stored {
        assert_eq!(record.key_text(), Some(session.as_str()), "{record:?}");
        assert!(record.headers.contains_key("livechat-node"), "{record:?}");
        let value = record.json();
        assert_eq!(value["type"], "typing_indicator", "{value}");
        assert_eq!(value["session_id"], session.as_str(), "{value}");
        let user_type = if value["user_id"] == "ann" {
            "customer"
        } else {
            "agent"
        };
        assert_eq!(value["user_type"], user_type, "{value}");
        assert!(
            value["is_typing"].is_boolean() && value["timestamp"].is_string(),
            "{value}"
        );
    }
}

/// Another service may publish typing: it writes the old record, without our header.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typing_records_of_other_services_are_delivered() {
    let topics = Topics::new();
    let server = start_well(topics.node("node-a"));
    let session = unique("session");
    let mut ann = Client::connect(&server, &session, "ann", "customer").await;
    let mut bot = Client::connect(&server, &session, "bot", "agent").await;
    let record = |user: &str, is_typing: bool| {
        let value = json!({"type": "typing_indicator", "session_id": session, "user_id": user, "user_type": "agent",
            "is_typing": is_typing, "timestamp": "2024-01-02T03:04:05Z"});
        Record::old(value.to_string()).partition(0)
    };
    topics
        .kafka
        .produce(&topics.typing, &[record("bot", true), record("ben", true)]);
    let typing = |frame: &Value| frame["type"] == "typing_indicator";
    let first = ann.next_where("typing", typing).await;
    assert_eq!(first["data"]["user_id"], "bot", "{first}");
    assert_eq!(first["data"]["sender_type"], "agent", "{first}");
    assert_eq!(first["data"]["is_typing"], true, "{first}");
    assert_eq!(ann.next_where("typing", typing).await["data"]["user_id"], "ben");
    let first = bot.next_where("typing", typing).await;
    assert_eq!(first["data"]["user_id"], "ben", "the typist saw itself: {first}");
}
