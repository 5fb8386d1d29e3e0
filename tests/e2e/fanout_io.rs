//! Both ways in which a batch reaches its sockets (`FANOUT_IO`), with readers that stop, go and are closed meanwhile.
//! `scripts/test.sh` runs the tests of delivery by either way; here is what they have to themselves.

use std::time::Duration;

use serde_json::json;

use crate::support::{Client, Server};

#[test]
fn fanout_io_is_shown_in_health() {
    let by_send = Server::builder().env("FANOUT_IO", "send").start();
    assert_eq!(by_send.health()["fanout_io"], "send");
    let auto = Server::builder().env("FANOUT_IO", "auto").start();
    let shown = auto.health()["fanout_io"].clone();
    assert!(shown == "io_uring" || shown == "send", "{shown}");
}

#[test]
fn fanout_io_uring_is_used_or_refused_at_start() {
    let exit = Server::builder()
        .env("FANOUT_IO", "uring")
        .env("DRAIN_TIMEOUT", "0s")
        .arg("--check-config")
        .run();
    assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    let auto = Server::builder().env("FANOUT_IO", "auto").start();
    if auto.health()["fanout_io"] == "io_uring" {
        let uring = Server::builder().env("FANOUT_IO", "uring").start();
        assert_eq!(uring.health()["fanout_io"], "io_uring");
    } else {
        let refused = Server::builder().env("FANOUT_IO", "uring").run();
        assert_eq!(refused.code, Some(1));
        assert!(refused.stderr.contains("FANOUT_IO"), "{}", refused.stderr);
    }
}

/// Enough members for several submissions, some of whom go without a word meanwhile.
async fn many_get_everything_once_in_order(fanout_io: &str) {
    const READERS: usize = 600;
    const MESSAGES: usize = 40;
    let server = Server::builder()
        .env("FANOUT_IO", fanout_io)
        .env("RATE_LIMIT_MESSAGES", 0)
        .start();
    assert_eq!(
        server.health()["fanout_io"],
        if fanout_io == "uring" { "io_uring" } else { "send" }
    );
    let mut readers = Vec::new();
    for number in 0..READERS {
        readers.push(Client::connect(&server, "s", &format!("u{number}"), "customer").await);
    }
    // Nobody reads until all is sent, and every tenth goes in the midst of it.
    let mut sender = Client::connect(&server, "s", "sender", "agent").await;
    let padding = "x".repeat(2_000);
    for number in 0..MESSAGES {
        let text = format!("{number} {padding}");
        sender
            .send(json!({"type": "send_message", "data": {"message": text}}))
            .await;
        if number == MESSAGES / 2 {
            let mut kept = 0;
            readers.retain(|_| {
                kept += 1;
                kept % 10 != 0
            });
        }
    }
    for (at, reader) in readers.iter_mut().enumerate() {
        for number in 0..MESSAGES {
            let frame = reader
                .next_where("a message", |frame| frame["type"] == "new_message")
                .await;
            let text = frame["data"]["message"].as_str().unwrap();
            let expected = format!("{number} ");
            assert!(
                text.starts_with(&expected),
                "reader {at} got {:.6}, not {number}",
                text
            );
        }
    }
    // Nothing comes twice: a ping's answer is behind all of it.
    for reader in readers.iter_mut().step_by(50) {
        reader.send(json!({"type": "ping"})).await;
        let next = reader
            .next_where("pong or a message", |frame| {
                frame["type"] == "pong" || frame["type"] == "new_message"
            })
            .await;
        assert_eq!(next["type"], "pong", "{next}");
    }
    tokio::time::timeout(Duration::from_secs(60), async {
        while server.health()["connections"] != (readers.len() + 1) as u64 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("who went is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fanout_io_send_reaches_all_once_in_order() {
    many_get_everything_once_in_order("send").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fanout_io_uring_reaches_all_once_in_order() {
    let auto = Server::builder().env("FANOUT_IO", "auto").start();
    // Where the kernel forbids it, `fanout_io_uring_is_used_or_refused_at_start` says that this is said.
    if auto.health()["fanout_io"] == "io_uring" {
        many_get_everything_once_in_order("uring").await;
    }
}
