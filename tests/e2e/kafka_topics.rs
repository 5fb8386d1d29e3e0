//! Topics that the server may not create.

use serde_json::Value;

use crate::services::{Tap, Topics, unique};
use crate::support::eventually;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_topics_are_named_in_health_until_they_exist() {
    let topics = Topics::new();
    // One broker can't hold three replicas: creating is refused.
    let server = topics.node("node-a").env("KAFKA_TOPIC_REPLICATION", 3).start();
    let kafka = || server.health()["kafka"].clone();
    eventually("health names the topics", || {
        let detail = kafka()["detail"].as_str().unwrap_or_default().to_owned();
        [&topics.messages, &topics.typing, &topics.status, &topics.control]
            .iter()
            .all(|topic| detail.contains(*topic))
    });
    assert_eq!(kafka()["status"], "degraded");
    assert_eq!(server.health()["status"], "degraded");

    let ann = Tap::connect(&server, &unique("session"), "ann", "customer").await;
    for topic in [&topics.messages, &topics.typing, &topics.status, &topics.control] {
        topics.kafka.create(topic, 2);
    }
    eventually("health is well", || {
        kafka()["status"] == "ok" && kafka()["detail"] == Value::Null
    });
    let said = ann.say_until_acked("at last").await;
    ann.until("the message", |heard| heard.has_text(&said)).await;
    ann.look(|heard| assert_eq!(heard.ended, None, "closed"));
}
