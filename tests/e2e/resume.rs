//! Clients that come back to a node without Kafka: what they have missed is replayed from its recent log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::publish::{publish, with_key};
use crate::support::{Client, Http, RawWs, Server};

/// Connects with a query.
pub async fn open(server: &Server, session: &str, user: &str, query: &str) -> Client {
    let path = format!("/ws/{session}/{user}/customer?{query}");
    let mut client = Client::open(server.http_addr(), &path, &[])
        .await
        .expect("the upgrade");
    client.greet().await;
    client
}

/// The texts of the messages that a client gets up to `resumed`, and that frame.
pub async fn replayed(client: &mut Client) -> (Vec<String>, Value) {
    let resumed = client.next("resumed").await;
    (texts(&client.take_all("new_message")), resumed["data"].clone())
}

pub fn texts(messages: &[Value]) -> Vec<String> {
    let text = |frame: &Value| frame["data"]["message"].as_str().expect("a text").to_owned();
    messages.iter().map(text).collect()
}

/// Sends these texts, waits until this client's node has read them, and returns the ids of the messages.
pub async fn say(client: &mut Client, texts: &[&str]) -> Vec<String> {
    let mut ids = Vec::new();
    for text in texts {
        let sent = client.say_acked(text).await;
        let id = sent["message_id"].as_str().expect("an id").to_owned();
        let is_it = |frame: &Value| frame["type"] == "new_message" && frame["data"]["message_id"] == *id;
        client.next_where("one's own message", is_it).await;
        ids.push(id);
    }
    ids
}

pub async fn cursor_of_pong(client: &mut Client) -> String {
    client.send(json!({"type": "ping"})).await;
    let pong = client.next("pong").await;
    pong["data"]["cursor"].as_str().expect("a cursor").to_owned()
}

#[tokio::test]
async fn a_client_that_comes_back_gets_what_it_has_missed_once_and_in_order() {
    let server = Server::builder().env("ADMIN_ADDR", "127.0.0.1:0").start();
    let mut agent = Client::connect(&server, "s", "agent", "agent").await;
    let mut other = Client::connect(&server, "t", "agent", "agent").await;
    let ids = say(&mut agent, &["a", "b"]).await;
    say(&mut other, &["of another session"]).await;
    say(&mut agent, &["c", "d"]).await;
    let mut back = open(&server, "s", "customer", &format!("since={}", ids[1])).await;
    let (texts, resumed) = replayed(&mut back).await;
    assert_eq!(texts, ["c", "d"]);
    assert_eq!(
        (&resumed["since"], &resumed["recovered"], &resumed["replayed"]),
        (&json!(ids[1]), &json!(true), &json!(2))
    );
    // Live afterwards.
    say(&mut agent, &["e"]).await;
    let live = back.next("new_message").await;
    assert_eq!(live["data"]["message"], "e");
    // A cursor is as good as an id, and better than one.
    let cursor = cursor_of_pong(&mut back).await;
    back.close().await;
    let mut again = open(&server, "s", "customer", &format!("since={cursor}")).await;
    assert_eq!(replayed(&mut again).await.0, Vec::<String>::new());
    say(&mut agent, &["f"]).await;
    let cursor = resumed["cursor"].as_str().unwrap();
    let mut from_resumed = open(&server, "s", "customer", &format!("since={cursor}")).await;
    assert_eq!(replayed(&mut from_resumed).await.0, ["e", "f"]);
    assert_eq!(server.metric("livechat_resumes_total"), 3.0);
    assert_eq!(server.metric("livechat_replayed_messages_total"), 4.0);
}

#[tokio::test]
async fn a_client_that_has_seen_no_message_resumes_from_its_greeting() {
    let server = Server::start();
    let quiet = Client::connect(&server, "s", "quiet", "customer").await;
    let greeting = &quiet.greeting["cursor"];
    let cursor = greeting.as_str().expect("a cursor").to_owned();
    assert!(cursor.len() <= 100);
    quiet.close().await;
    let mut agent = Client::connect(&server, "s", "agent", "agent").await;
    say(&mut agent, &["a", "b"]).await;
    let mut back = open(&server, "s", "quiet", &format!("since={cursor}")).await;
    assert_eq!(back.greeting["cursor"], *cursor, "it has got nothing yet");
    assert_eq!(replayed(&mut back).await.0, ["a", "b"]);
}

#[tokio::test]
async fn the_last_messages_are_replayed_on_request() {
    let server = Server::start();
    let mut agent = Client::connect(&server, "s", "agent", "agent").await;
    say(&mut agent, &["a", "b", "c"]).await;
    for (rewind, expected) in [(1, &["c"][..]), (2, &["b", "c"]), (100, &["a", "b", "c"])] {
        let mut client = open(&server, "s", "u", &format!("rewind={rewind}")).await;
        let (texts, resumed) = replayed(&mut client).await;
        assert_eq!(texts, expected);
        assert_eq!(
            (&resumed["rewind"], &resumed["recovered"]),
            (&json!(rewind), &json!(true))
        );
    }
    let mut client = open(&server, "quiet", "u", "rewind=5").await;
    assert_eq!(replayed(&mut client).await.1["replayed"], 0);
}

#[tokio::test]
async fn what_cannot_be_replayed_is_said_and_the_client_goes_on_live() {
    let server = Server::builder()
        .env("RESUME_MAX_MESSAGES", 3)
        .env("RESUME_TIMEOUT", "300ms")
        .env("RATE_LIMIT_MESSAGES", 0)
        .start();
    let mut agent = Client::connect(&server, "s", "agent", "agent").await;
    let mut other = Client::connect(&server, "t", "agent", "agent").await;
    let ids = say(&mut agent, &["a", "b", "c", "d", "e"]).await;
    let foreign = say(&mut other, &["f"]).await;
    let old = Server::start();
    let stranger = Client::connect(&old, "s", "u", "customer").await;
    let cursor = stranger.greeting["cursor"].as_str().unwrap().to_owned();
    for (query, reason) in [
        ("since=".to_owned(), "invalid"),
        ("since=~2.x".to_owned(), "invalid"),
        ("rewind=0".to_owned(), "invalid"),
        ("rewind=ten".to_owned(), "invalid"),
        (format!("since={}", foreign[0]), "unknown_message"),
        (
            "since=018f4e3a-7c1e-7000-8000-000000000000".to_owned(),
            "unknown_message",
        ),
        ("since=7".to_owned(), "unknown_message"),
        (format!("since={cursor}"), "unknown_message"),
        (format!("since={}", ids[0]), "too_many"),
    ] {
        let mut client = open(&server, "s", "u", &query).await;
        let (texts, resumed) = replayed(&mut client).await;
        assert!(texts.is_empty(), "{query}");
        assert_eq!(
            (&resumed["recovered"], &resumed["reason"]),
            (&json!(false), &json!(reason)),
            "{query}"
        );
        agent.say_acked("live").await;
        assert_eq!(
            client.next("new_message").await["data"]["message"],
            "live",
            "{query}"
        );
        assert!(!cursor_of_pong(&mut client).await.is_empty());
    }
    // Three are not too many.
    let ids = say(&mut agent, &["1", "2", "3", "4"]).await;
    let mut client = open(&server, "s", "u", &format!("since={}", ids[0])).await;
    assert_eq!(replayed(&mut client).await.0, ["2", "3", "4"]);
}

/// Clients that come and go under traffic, by ids and by cursors, miss nothing and get nothing twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_come_and_go_under_traffic_miss_nothing_and_get_nothing_twice() {
    const CLIENTS: usize = 20;
    const ROUNDS: usize = 25;
    // On a busy machine clients miss more, and the sender reads nothing for longer.
    let server = Server::builder()
        .env("RATE_LIMIT_MESSAGES", 0)
        .env("RESUME_MAX_MESSAGES", 5_000)
        .env("SEND_QUEUE_BYTES", 16 << 20)
        .env("SEND_TIMEOUT", "120s");
    let server = Arc::new(server.start());
    let mut sender = Client::connect(&server, "s", "sender", "agent").await;
    let (stop, last) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let (server, stop) = (Arc::clone(&server), Arc::clone(&stop));
        clients.spawn(async move {
            let (mut got, mut since) = (Vec::new(), None::<String>);
            let mut random = fastrand::Rng::with_seed(number as u64);
            for _ in 0..ROUNDS {
                let query = since
                    .as_ref()
                    .map_or(String::new(), |since| format!("since={since}"));
                let mut client = open(&server, "s", &format!("u{number}"), &query).await;
                if since.is_none() {
                    since = client.greeting["cursor"].as_str().map(str::to_owned);
                }
                let stays = Duration::from_millis(random.u64(0..40));
                let until = tokio::time::Instant::now() + stays;
                while let Ok(Some(frame)) = tokio::time::timeout_at(until, client.next_or_end(|_| true)).await
                {
                    let data = &frame["data"];
                    match frame["type"].as_str().unwrap() {
                        "new_message" => {
                            got.push(data["message"].as_str().unwrap().parse::<u64>().unwrap());
                            since = data["message_id"].as_str().map(str::to_owned);
                        }
                        "resumed" => assert_eq!(data["recovered"], true, "{frame}"),
                        _ => {}
                    }
                    if random.u8(0..4) == 0 {
                        client.send(json!({"type": "ping"})).await;
                    }
                    if frame["type"] == "pong" && data["cursor"].is_string() {
                        since = data["cursor"].as_str().map(str::to_owned);
                    }
                }
                drop(client);
            }
            stop.store(true, Ordering::SeqCst);
            (got, since.unwrap())
        });
    }
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        sender.say(&number.to_string(), "r").await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let all = clients.join_all().await;
    number += 1;
    say(&mut sender, &[&number.to_string()]).await;
    last.store(number, Ordering::SeqCst);
    for (mut got, since) in all {
        let mut client = open(&server, "s", "last", &format!("since={since}")).await;
        let (texts, resumed) = replayed(&mut client).await;
        assert_eq!(resumed["recovered"], true, "{resumed}");
        got.extend(texts.iter().map(|text| text.parse::<u64>().unwrap()));
        let first = got[0];
        assert_eq!(got, (first..=number).collect::<Vec<_>>());
    }
}

/// A replay of megabytes waits for a slow reader, whose live messages come after it; one that reads nothing is closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_as_fast_as_its_reader() {
    const TEXT: usize = 16_000;
    let server = Server::builder()
        .env("RATE_LIMIT_MESSAGES", 0)
        .env("SEND_QUEUE_BYTES", 1_048_576)
        .env("SEND_TIMEOUT", "2s")
        .start();
    let mut agent = Client::connect(&server, "s", "agent", "agent").await;
    let ids = say(&mut agent, &["first"]).await;
    for n in 0..240 {
        agent.say_acked(&format!("{n} {}", "x".repeat(TEXT))).await;
    }
    let path = format!("/ws/s/slow/customer?since={}", ids[0]);
    let connect = || {
        let stream = crate::support::raw::narrow(server.http_addr(), 8_192);
        let mut http = crate::support::Http::over(stream).unwrap();
        http.write(crate::support::raw::handshake(&path, &[]).as_bytes());
        RawWs::upgraded(http).expect("the upgrade")
    };
    let (mut slow, mut stopped) = (connect(), connect());
    let got = tokio::task::spawn_blocking(move || {
        let mut got = Vec::new();
        while got.last() != Some(&279) {
            let frame = slow.read_json();
            if frame["type"] == "new_message" {
                let text = frame["data"]["message"].as_str().unwrap();
                got.push(text.split(' ').next().unwrap().parse::<u32>().unwrap());
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        got
    });
    for n in 240..280 {
        agent.say_acked(&format!("{n} live")).await;
    }
    assert_eq!(got.await.unwrap(), (0..280).collect::<Vec<_>>());
    server.wait_log("disconnected: slow");
    let closed = tokio::task::spawn_blocking(move || {
        std::thread::sleep(Duration::from_secs(3));
        stopped.expect_close()
    });
    assert_eq!(closed.await.unwrap(), 4008);
}

/// A search for an id that says nothing of its time looks at each of the session's messages, however long these are.
#[tokio::test]
async fn a_search_for_any_id_costs_the_same_however_long_the_messages_are() {
    const SEARCHES: u32 = 40;
    let server = with_key(Server::builder()).env("RATE_LIMIT_MESSAGES", 0).start();
    let long: Vec<u8> = vec![0; 30_000];
    for _ in 0..500 {
        publish(&server, "s", &[], &json!({"message": "x", "attachments": long}));
    }
    let mut client = Client::connect(&server, "s", "u", "customer").await;
    let before = server.cpu_time();
    for _ in 0..SEARCHES {
        // It occurs in each of them.
        client
            .send(json!({"type": "message_read", "data": {"up_to": "a"}}))
            .await;
        let query = "since=a&since_time=1970-01-01T00:00:00Z";
        let (missed, resumed) = replayed(&mut open(&server, "s", "u", query).await).await;
        assert!(missed.is_empty() && resumed["recovered"] == false, "{resumed}");
        let page = Http::get(server.http_addr(), "/api/session/s/messages?since=a&limit=1");
        assert_eq!(page.json()["data"]["recovered"], false);
    }
    client.fence().await;
    let each = (server.cpu_time() - before) / (3 * SEARCHES);
    // Reading all of it takes 50 ms or more.
    assert!(each < Duration::from_millis(10), "{each:?} for each search");
}
