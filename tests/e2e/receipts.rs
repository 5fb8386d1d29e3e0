//! Read receipts and what who joins is told: how far the others have read, and who is typing.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Server};

pub async fn read(client: &mut Client, up_to: impl Into<Value>) {
    client
        .send(json!({"type": "message_read", "data": {"up_to": up_to.into()}}))
        .await;
}

/// The next receipt: who, and up to what.
pub async fn receipt(client: &mut Client) -> (String, String) {
    let data = client.next("read_receipt").await["data"].clone();
    let text = |name: &str| data[name].as_str().expect("a string").to_owned();
    (text("user_id"), text("up_to"))
}

pub async fn said(client: &mut Client, text: &str) -> String {
    let sent = client.say_acked(text).await;
    sent["message_id"].as_str().expect("an id").to_owned()
}

pub fn is(user: &str, up_to: &str) -> (String, String) {
    (user.to_owned(), up_to.to_owned())
}

#[tokio::test]
async fn receipts_reach_the_others_once_and_never_go_back() {
    let server = Server::start();
    let mut reader = Client::connect(&server, "s1", "bob", "agent").await;
    let mut tab = Client::connect(&server, "s1", "bob", "agent").await;
    let mut author = Client::connect(&server, "s1", "alice", "customer").await;
    let mut elsewhere = Client::connect(&server, "s2", "carol", "agent").await;
    let first = said(&mut author, "one").await;
    let second = said(&mut author, "two").await;

    read(&mut reader, first.as_str()).await;
    let frame = author.next("read_receipt").await;
    let data = &frame["data"];
    let expected = json!({"session_id": "s1", "user_id": "bob", "user_type": "agent", "up_to": first,
        "timestamp": data["timestamp"]});
    assert_eq!(
        frame,
        json!({"type": "read_receipt", "success": true, "data": expected})
    );
    // The other tab repeats it, goes on, and then back.
    for up_to in [&first, &second, &second, &first] {
        read(&mut tab, up_to.as_str()).await;
    }
    read(&mut author, second.as_str()).await;
    assert_eq!(receipt(&mut reader).await, is("alice", &second));
    assert_eq!(receipt(&mut author).await, is("bob", &second));
    author.fence_session(&mut tab).await;
    for client in [&mut reader, &mut author, &mut elsewhere] {
        client.expect_none("read_receipt").await;
    }
    assert_eq!(receipt(&mut tab).await, is("alice", &second));
    tab.expect_none("read_receipt").await;
}

#[tokio::test]
async fn who_joins_is_told_how_far_everyone_has_read() {
    let server = Server::start();
    let mut alice = Client::connect(&server, "s1", "alice", "customer").await;
    alice.fence().await;
    assert!(
        alice.take_all("read_state").is_empty(),
        "nobody has read anything"
    );
    let first = said(&mut alice, "one").await;
    let second = said(&mut alice, "two").await;
    let mut bob = Client::connect(&server, "s1", "bob", "agent").await;
    read(&mut bob, second.as_str()).await;
    assert_eq!(receipt(&mut alice).await, is("bob", &second));
    read(&mut alice, first.as_str()).await;
    assert_eq!(receipt(&mut bob).await, is("alice", &first));

    let mut carol = Client::connect(&server, "s1", "carol", "admin").await;
    let state = carol.next("read_state").await;
    let data = json!({"session_id": "s1", "read": {"alice": first, "bob": second}});
    assert_eq!(
        state,
        json!({"type": "read_state", "success": true, "data": data})
    );
    // Also when everybody has left meanwhile.
    for client in [alice, bob, carol] {
        client.close().await;
    }
    let mut dave = Client::connect(&server, "s1", "dave", "agent").await;
    assert_eq!(dave.next("read_state").await, state);
    dave.fence().await;
    assert!(dave.take_all("read_state").is_empty());
}

#[tokio::test]
async fn ids_without_a_time_are_ordered_by_the_log() {
    let server = Server::start();
    let mut author = Client::connect(&server, "s1", "alice", "customer").await;
    let mut reader = Client::connect(&server, "s1", "bob", "agent").await;
    let known = said(&mut author, "one").await;
    // A message that is not in the log counts while nothing else was read.
    read(&mut reader, "unknown").await;
    assert_eq!(receipt(&mut author).await, is("bob", "unknown"));
    read(&mut reader, 17).await;
    read(&mut reader, known.as_str()).await;
    assert_eq!(receipt(&mut author).await, is("bob", &known));
}

#[tokio::test]
async fn receipts_that_make_no_sense_are_refused() {
    let server = Server::start();
    let mut client = Client::connect(&server, "s1", "bob", "agent").await;
    let mut other = Client::connect(&server, "s1", "alice", "agent").await;
    let future = uuid::Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, 4_000_000_000, 0));
    for up_to in [
        Value::Null,
        json!(""),
        json!(["a"]),
        json!("x".repeat(129)),
        json!(future.to_string()),
    ] {
        let frame = json!({"type": "message_read", "request_id": "r", "data": {"up_to": up_to}});
        client.send(frame).await;
        let error = client.next("error").await;
        assert_eq!(error["data"]["code"], "invalid_field", "{up_to}");
        assert_eq!(error["request_id"], "r");
    }
    client
        .send(json!({"type": "message_read", "request_id": 1}))
        .await;
    assert_eq!(client.next("error").await["data"]["code"], "invalid_field");
    client.fence_session(&mut other).await;
    other.expect_none("read_receipt").await;
}

/// The next indicator: who, and whether they are typing.
async fn indicator(client: &mut Client) -> (String, bool) {
    let data = client.next("typing_indicator").await["data"].clone();
    (
        data["user_id"].as_str().expect("a user").to_owned(),
        data["is_typing"] == true,
    )
}

#[tokio::test]
async fn who_joins_is_told_who_is_typing() {
    let server = Server::start();
    let mut customer = Client::connect(&server, "s1", "cust", "customer").await;
    let mut other = Client::connect(&server, "s1", "other", "customer").await;
    let mut neighbour = Client::connect(&server, "s2", "neighbour", "customer").await;
    for client in [&mut customer, &mut other, &mut neighbour] {
        client.send(json!({"type": "typing_start"})).await;
        client.fence().await;
    }
    let mut agent = Client::connect(&server, "s1", "agent", "agent").await;
    let mut shown = [indicator(&mut agent).await, indicator(&mut agent).await];
    shown.sort();
    assert_eq!(shown, [("cust".to_owned(), true), ("other".to_owned(), true)]);
    // A second tab is not told of its own user.
    let mut tab = Client::connect(&server, "s1", "cust", "customer").await;
    assert_eq!(indicator(&mut tab).await, ("other".to_owned(), true));
    for (client, name) in [(&mut customer, "cust"), (&mut other, "other")] {
        client.send(json!({"type": "typing_stop"})).await;
        assert_eq!(indicator(&mut agent).await, (name.to_owned(), false));
    }
    let mut late = Client::connect(&server, "s1", "late", "agent").await;
    late.fence().await;
    assert!(late.take_all("typing_indicator").is_empty());
}

/// However joins and ends of typing interleave, nobody is left with an indicator that never ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_indicator_for_who_joins_never_comes_after_its_end() {
    let server = Server::builder().env("RATE_LIMIT_MESSAGES", 0).start();
    let mut typist = Client::connect(&server, "s1", "typist", "customer").await;
    let address = server.http_addr();
    for round in 0..100 {
        typist.send(json!({"type": "typing_start"})).await;
        typist.fence().await;
        let joining = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_micros(round * 20)).await;
            Client::connect_to(address, "s1", "watcher", "agent").await
        });
        tokio::task::yield_now().await;
        typist.send(json!({"type": "typing_stop"})).await;
        let mut watcher = joining.await.expect("a connection");
        typist.fence().await;
        watcher.fence().await;
        let shown = watcher.take_all("typing_indicator");
        let last = shown.last();
        assert!(
            last.is_none_or(|last| last["data"]["is_typing"] == false),
            "round {round}: {shown:?}"
        );
        watcher.close().await;
    }
}
