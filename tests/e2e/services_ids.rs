//! Ids in Kafka's records and in Redis: UUIDs in any case are one session, and users' ids pass unchanged.

use serde_json::{Value, json};

use crate::ids::USER_IDS;
use crate::redis_cluster::Cluster;
use crate::services::{PrivateRedis, Record, RedisClient, Topics, redis_url, users_key};
use crate::support::{Client, Server, eventually};

/// A session of this test's own, in lower and in upper case.
fn session() -> (String, String) {
    let lower = uuid::Uuid::now_v7().to_string();
    let upper = lower.to_ascii_uppercase();
    (lower, upper)
}

fn encoded(id: &str) -> String {
    percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// These tests read nothing while Kafka's client writes, so there must be no pings meanwhile.
fn node(topics: &Topics) -> Server {
    let node = topics.node("node-a").env("PING_INTERVAL", "10m");
    node.env("ADMIN_ADDR", "127.0.0.1:0").start()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_records_of_a_uuid_in_any_case_reach_its_session() {
    let topics = Topics::new();
    let server = node(&topics);
    let (lower, upper) = session();
    let mut one = Client::connect(&server, &lower, "one", "agent").await;
    let mut two = Client::connect(&server, &upper, "two", "customer").await;
    let old = |session: &str, text: &str| {
        Record::old(json!({"id": text, "session_id": session, "message": text}).to_string())
    };
    // They are delivered unchanged.
    topics.kafka.produce(
        &topics.messages,
        &[
            Record::message(&upper, "native, upper").partition(0),
            Record::message(&lower, "native, lower").partition(0),
            old(&upper, "old, upper").partition(0),
            old(&lower, "old, lower").partition(0),
        ],
    );
    for client in [&mut one, &mut two] {
        for text in ["native, upper", "native, lower", "old, upper", "old, lower"] {
            let frame = client.next("new_message").await;
            assert_eq!(frame["data"]["message"], text);
            if text.starts_with("old") {
                assert_eq!(frame["data"]["session_id"], lower.as_str(), "{frame}");
            }
        }
    }
    let typing = |id| {
        let record = json!({"type": "typing_indicator", "session_id": upper, "user_id": id, "user_type": "agent",
            "is_typing": true, "timestamp": "2026-01-01T00:00:00Z"});
        Record::old(record.to_string()).partition(0)
    };
    topics.kafka.produce(&topics.typing, &USER_IDS.map(typing));
    for id in USER_IDS {
        let frame = one.next("typing_indicator").await;
        let data = &frame["data"];
        assert_eq!(
            (&data["user_id"], &data["session_id"]),
            (&json!(id), &json!(lower))
        );
    }
    let status = json!({"type": "connection_status", "session_id": upper, "connection_status": {"users": {"José": {}}},
        "timestamp": "2026-01-01T00:00:00Z"});
    topics
        .kafka
        .produce(&topics.status, &[Record::old(status.to_string())]);
    let frame = one
        .next_where("another service's status", |frame| {
            !frame["data"]["connection_status"]["users"]["José"].is_null()
        })
        .await;
    assert_eq!(frame["data"]["session_id"], lower.as_str());
    // And the server's own records are keyed by the canonical spelling.
    two.say_acked("from the second").await;
    let written = topics.kafka.consume(&topics.messages);
    let ours = written.iter().find(|record| {
        record.headers.contains_key("livechat-node") || record.headers.contains_key("livechat-id")
    });
    let ours = ours.expect("our record");
    assert_eq!(ours.key_text(), Some(lower.as_str()));
    assert_eq!(ours.json()["data"]["session_id"], lower.as_str());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_records_with_invalid_ids_are_poison() {
    let topics = Topics::new();
    let server = node(&topics);
    let (session, _) = session();
    let mut client = Client::connect(&server, &session, "reader", "agent").await;
    let old = |session: &str| {
        Record::old(json!({"id": "m", "session_id": session, "message": "poison"}).to_string())
    };
    let mut keyed_lobby = old(&session);
    keyed_lobby.key = Some(b"@lobby".to_vec());
    let messages = [
        Record::message("@lobby", "poison"),
        Record::message("a b", "poison"),
        Record::message("José", "poison"),
        old("@lobby"),
        old("a:b"),
        keyed_lobby,
    ];
    let typing = |user: &str| {
        Record::old(
            json!({"type": "typing_indicator", "session_id": session, "user_id": user, "user_type": "agent", "is_typing": true})
                .to_string(),
        )
    };
    let typists = [
        typing("a/b"),
        typing("a\nb"),
        typing("\u{202e}x"),
        typing(&"x".repeat(129)),
        typing(""),
    ];
    let poison = (messages.len() + typists.len()) as f64;
    topics.kafka.produce(&topics.messages, &messages);
    topics.kafka.produce(&topics.typing, &typists);
    eventually("all are counted", || {
        server.metric("livechat_poison_records_total") == poison
    });
    topics
        .kafka
        .produce(&topics.messages, &[Record::message(&session, "the next one")]);
    let frame = client.next("new_message").await;
    assert_eq!(frame["data"]["message"], "the next one");
    assert!(client.take_all("typing_indicator").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_ids_are_one_session_and_the_same_users_on_every_node() {
    let cluster = Cluster::on(&redis_url());
    let [a, b] = cluster.nodes(["node-a", "node-b"], None);
    let (lower, upper) = session();
    let mut watcher = Client::connect(&b, &lower, "watcher", "agent").await;
    let mut users = Vec::new();
    for id in USER_IDS {
        users.push(Client::connect(&a, &upper, &encoded(id), "customer").await);
    }
    let listed = |node: &Server, session: &str| {
        let status = node.connection_status(session);
        let users = status["users"].as_object().expect("an object").clone();
        USER_IDS
            .iter()
            .filter(|id| users.get(**id).is_some_and(|user| user["user_id"] == **id))
            .count()
    };
    eventually("both nodes list all users", || {
        [&lower, &upper]
            .iter()
            .all(|session| listed(&a, session) == USER_IDS.len() && listed(&b, session) == USER_IDS.len())
    });
    let mut redis = RedisClient::connect(&redis_url());
    for id in USER_IDS {
        let value = redis
            .user(&lower, id)
            .unwrap_or_else(|| panic!("no {id} in Redis"));
        assert_eq!(
            (&value["user_id"], &value["user_type"]),
            (&json!(id), &json!("customer"))
        );
    }
    assert!(redis.hgetall(&users_key(&upper)).is_empty());
    // Somebody types on one node and is seen on the other, and in Redis.
    for (user, id) in users.iter_mut().zip(USER_IDS) {
        user.send(json!({"type": "typing_start"})).await;
        let frame = watcher.next("typing_indicator").await;
        assert_eq!(frame["data"]["user_id"], id);
        let key = format!("session:{lower}:typing:{id}");
        eventually(&key, || redis.ttl(&key) > 0);
    }
    for user in users {
        user.close().await;
    }
    for id in USER_IDS {
        let is_gone = |frame: &Value| {
            let events = frame["data"]["events"].as_array();
            events
                .into_iter()
                .flatten()
                .any(|event| event["event_type"] == "user_disconnected" && event["event_user_id"] == id)
        };
        // Several may leave in one frame: frames stay to be looked at again.
        if !watcher.log.iter().any(is_gone) {
            watcher.next_where(&format!("{id} leaves"), is_gone).await;
        }
    }
    eventually("only the watcher is left", || {
        redis.hgetall(&users_key(&lower)).len() == 1
    });
}

/// Left by a node of an earlier version, which kept a UUID as it was written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_a_dead_node_is_removed_from_a_session_with_an_upper_case_uuid() {
    let redis = PrivateRedis::started();
    let cluster = Cluster::on(&redis.url());
    let [_node] = cluster.nodes(["node-a"], Some("6s"));
    let (lower, upper) = session();
    let mut client = redis.client();
    let value = json!({"user_id": "ann", "user_type": "agent", "joined_at": "2026-01-01T00:00:00Z",
        "nodes": {"dead+1": 1}});
    client.command(&["HSET", &users_key(&upper), "ann", &value.to_string()]);
    client.command(&["ZADD", "livechat:node:dead+1:sessions", "1", &upper]);
    client.command(&["ZADD", "livechat:nodes", "1", "dead+1"]);
    eventually("the dead node is forgotten", || {
        client.keys_with("dead+1").is_empty()
    });
    assert!(client.keys_with(&lower).is_empty());
    assert!(client.hgetall(&users_key(&upper)).is_empty());
}
