//! SIGTERM during traffic: what was acknowledged is in the log, and other nodes deliver it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::services::{Heard, Tap, Topics, unique};
use crate::support::PATIENCE;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_before_sigterm_is_in_the_log() {
    let topics = Topics::new();
    let leaving = topics.node("node-a").env("DRAIN_TIMEOUT", "3s").start();
    let staying = topics.node("node-b").start();
    let session = unique("session");
    let ann = Arc::new(Tap::connect(&leaving, &session, "ann", "customer").await);
    let ben = Tap::connect(&leaving, &session, "ben", "agent").await;
    let cat = Tap::connect(&staying, &session, "cat", "agent").await;

    let sender = Arc::clone(&ann);
    let flood = tokio::spawn(async move {
        let mut n = 0;
        // Until the server closes: whatever it still acknowledges while it drains counts, too.
        while sender.say(&format!("message {n}"), 300).await {
            n += 1;
        }
        n
    });
    ann.until("traffic", |heard| heard.acks.len() >= 500).await;
    leaving.signal("TERM");
    let code = tokio::task::block_in_place(|| leaving.wait_exit(Duration::from_secs(3) + PATIENCE));
    assert_eq!(code, Some(0), "the exit status");
    let sent = flood.await.expect("the sender");

    for tap in [&*ann, &ben] {
        tap.until("the end of the stream", |heard| heard.ended.is_some())
            .await;
        tap.look(|heard| assert_eq!(heard.ended, Some(Some(1001)), "the close code"));
    }
    let acked = ann.look(Heard::acked_ids);
    let in_log: HashSet<String> = topics
        .kafka
        .consume(&topics.messages)
        .iter()
        .map(message_id)
        .collect();
    let lost: Vec<_> = acked.iter().filter(|id| !in_log.contains(*id)).collect();
    assert!(
        lost.is_empty(),
        "{} of {} acknowledged messages (of {sent} sent) are not in the log",
        lost.len(),
        acked.len()
    );

    // Each is in the log once, and the other node delivers it.
    cat.until("all records of the log", |heard| {
        heard.messages.len() >= in_log.len()
    })
    .await;
    let seen = cat.look(Heard::ids);
    assert_eq!(
        seen.iter().collect::<HashSet<_>>().len(),
        seen.len(),
        "some message came twice"
    );
    assert_eq!(seen.into_iter().collect::<HashSet<_>>(), in_log);
    assert_eq!(
        topics.kafka.consume(&topics.messages).len(),
        in_log.len(),
        "some message is in the log twice"
    );
}

fn message_id(record: &crate::services::Stored) -> String {
    record.json()["data"]["message_id"]
        .as_str()
        .expect("a message_id")
        .to_owned()
}

/// Without traffic there is nothing to wait for but the clients: well before the end of DRAIN_TIMEOUT when there are
/// none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_node_stops_at_once() {
    let topics = Topics::new();
    let server = topics.node("node-a").env("DRAIN_TIMEOUT", "600s").start();
    server.signal("TERM");
    assert_eq!(
        tokio::task::block_in_place(|| server.wait_exit(PATIENCE)),
        Some(0)
    );
}

/// A broker that does not answer must not keep the process from ending.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_a_node_whose_broker_is_down() {
    let broker = crate::services::PrivateBroker::started();
    let topics = Topics::on(&broker.kafka());
    let server = topics.node("node-a").env("DRAIN_TIMEOUT", "2s").start();
    let tap = Tap::connect(&server, &unique("session"), "ann", "customer").await;
    tap.say_until_acked("hello").await;
    broker.pause();
    // Without an answer yet: the shutdown finds it in the producer's queue.
    assert!(tap.say("into the void", 1).await);
    server.signal("TERM");
    assert_eq!(
        tokio::task::block_in_place(|| server.wait_exit(Duration::from_secs(2) + PATIENCE)),
        Some(0)
    );
    tap.until("the end of the stream", |heard| heard.ended.is_some())
        .await;
    tap.look(|heard| assert_eq!(heard.ended, Some(Some(1001)), "the close code"));
}
