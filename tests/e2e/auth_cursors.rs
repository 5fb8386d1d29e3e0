//! Cursors are signed: in production without tokens they are all that keeps who has just learnt a session's id from what
//! was said before.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::resume::{open, replayed, say};
use crate::support::{Client, Server};

/// A cursor's version, with which it begins.
const VERSION: usize = "~2.".len();
/// Where a cursor's parts begin: after the log's number and the partition, and after the time.
const OFFSET: usize = 12;
const CODE: usize = 28;

fn production() -> Server {
    Server::builder()
        .env("ENVIRONMENT", "production")
        .env("ALLOWED_ORIGINS", "https://a.example")
        .env("RATE_LIMIT_MESSAGES", 0)
        .start()
}

/// A cursor whose bytes are changed.
pub fn edited(cursor: &str, edit: impl FnOnce(&mut Vec<u8>)) -> String {
    let (version, rest) = cursor.split_at(VERSION);
    let mut bytes = URL_SAFE_NO_PAD.decode(rest).expect("base64");
    edit(&mut bytes);
    format!("{version}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// Of the beginning of the log.
pub fn from_the_start(cursor: &str) -> String {
    edited(cursor, |bytes| bytes[OFFSET..CODE].fill(0))
}

fn greeting_cursor(client: &Client) -> String {
    client.greeting["cursor"].as_str().expect("a cursor").to_owned()
}

/// What is answered to a cursor, after which nothing was replayed.
async fn refused(server: &Server, session: &str, cursor: &str) -> String {
    let mut client = open(server, session, "eve", &format!("since={cursor}")).await;
    let greeted_with = client.greeting["cursor"].clone();
    let (texts, resumed) = replayed(&mut client).await;
    assert!(texts.is_empty(), "{cursor}: {texts:?}");
    assert_eq!(resumed["recovered"], false, "{cursor}: {resumed}");
    let reason = resumed["reason"].as_str().expect("a reason").to_owned();
    if reason == "invalid" {
        assert_eq!(
            greeted_with,
            Value::Null,
            "it is not given back as if it were good"
        );
    }
    reason
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_an_edited_cursor_shows_nothing_that_was_said_before() {
    let server = production();
    let mut agent = Client::connect(&server, "s", "agent", "agent").await;
    say(&mut agent, &["secret a", "secret b", "secret c"]).await;
    let eve = Client::connect(&server, "s", "eve", "customer").await;
    let cursor = greeting_cursor(&eve);
    assert_eq!(refused(&server, "s", &from_the_start(&cursor)).await, "invalid");
    let length = edited(&cursor, |_| {}).len();
    assert!(length <= 100, "{length}");
    // Whichever byte is changed. Another log's cursor can't be told from one that is made up.
    let mut at = 0;
    loop {
        let mut is_over = false;
        let forged = edited(&cursor, |bytes| match bytes.get_mut(at) {
            Some(byte) => *byte ^= 1,
            None => is_over = true,
        });
        if is_over {
            break;
        }
        let reason = refused(&server, "s", &forged).await;
        let expected = if at < 8 { "unknown_message" } else { "invalid" };
        assert_eq!(reason, expected, "byte {at}");
        at += 1;
    }
    assert!(at >= CODE);
    // Without the code, or with more than it.
    for forged in [
        edited(&cursor, |bytes| bytes.truncate(CODE)),
        edited(&cursor, |bytes| bytes.truncate(CODE + 4)),
        edited(&cursor, |bytes| bytes.push(0)),
        edited(&cursor, |bytes| bytes[CODE..].fill(0)),
    ] {
        assert_eq!(refused(&server, "s", &forged).await, "invalid", "{forged}");
    }
    // Unsigned, as they were once.
    let old = edited(&cursor, |bytes| bytes.truncate(CODE)).replace("~2.", "~1.");
    assert_eq!(refused(&server, "s", &old).await, "invalid");
    // The cursor itself is good.
    say(&mut agent, &["after"]).await;
    let mut back = open(&server, "s", "eve", &format!("since={cursor}")).await;
    assert_eq!(replayed(&mut back).await.0, ["after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_a_cursor_of_another_session_shows_nothing() {
    let server = production();
    // Both are in the same partition.
    let own = Client::connect(&server, "of-eve", "eve", "customer").await;
    let cursor = greeting_cursor(&own);
    let mut agent = Client::connect(&server, "s", "agent", "agent").await;
    say(&mut agent, &["secret"]).await;
    assert_eq!(refused(&server, "s", &cursor).await, "invalid");
    // A session's id is the same in any case where it is a UUID, and so are its cursors.
    let upper = "018F4E3A-7C1E-7000-8000-00000000000A";
    let client = Client::connect(&server, upper, "u", "customer").await;
    let cursor = greeting_cursor(&client);
    let mut back = open(&server, &upper.to_lowercase(), "u", &format!("since={cursor}")).await;
    assert_eq!(replayed(&mut back).await.1["recovered"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth_cursors_of_pong_resumed_and_pages_are_signed_too() {
    let server = Server::start();
    let mut agent = Client::connect(&server, "s", "agent", "agent").await;
    let ids = say(&mut agent, &["a", "b", "c"]).await;
    agent.send(json!({"type": "ping"})).await;
    let pong = agent.next("pong").await["data"]["cursor"].clone();
    let mut back = open(&server, "s", "u", &format!("since={}", ids[1])).await;
    let resumed = replayed(&mut back).await.1["cursor"].clone();
    let page = |query: &str| server.get(&format!("/api/session/s/messages?{query}")).json()["data"].clone();
    let of_page = page("limit=2")["cursor"].clone();
    let of_next = page(&format!("limit=1&since={}", ids[0]))["cursor"].clone();
    for cursor in [&pong, &resumed, &of_page, &of_next] {
        let cursor = cursor.as_str().expect("a cursor");
        assert!(cursor.len() <= 100, "{cursor}");
        let good = page(&format!("since={cursor}"));
        assert_eq!(good["recovered"], true, "{good}");
        let forged = page(&format!("since={}", from_the_start(cursor)));
        assert_eq!(
            (&forged["recovered"], &forged["reason"], &forged["messages"]),
            (&json!(false), &json!("invalid"), &json!([])),
            "{cursor}"
        );
    }
    // A page whose cursor is used goes on after it.
    let next = page(&format!("since={}", of_next.as_str().expect("a cursor")));
    assert_eq!(next["messages"].as_array().expect("messages").len(), 1, "{next}");
}
