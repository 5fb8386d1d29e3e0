//! Both ways in which a batch reaches its sockets (`FANOUT_IO`), with readers that are full, go and close meanwhile.
//! `scripts/test.sh` runs the tests of delivery by either way; here is what they have to themselves.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Frame, Opcode, RawWs, Server};

#[test]
fn fanout_io_is_shown_in_health() {
    let by_send = Server::builder().env("FANOUT_IO", "send").start();
    assert_eq!(by_send.health()["fanout_io"], "send");
    let auto = Server::builder().env("FANOUT_IO", "auto").start();
    let shown = auto.health()["fanout_io"].clone();
    assert!(shown == "io_uring" || shown == "send", "{shown}");
}

#[test]
fn fanout_io_uring_is_used_or_the_start_fails() {
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

/// Enough members for several submissions; some of them disconnect abruptly meanwhile.
async fn many_get_everything_once_in_order(fanout_io: &str) {
    const READERS: usize = 600;
    const MESSAGES: usize = 40;
    // The clients neither read nor answer pings while the others connect.
    let server = Server::builder()
        .env("FANOUT_IO", fanout_io)
        .env("RATE_LIMIT_MESSAGES", 0)
        .env("SEND_TIMEOUT", "300s")
        .env("PING_INTERVAL", "600s")
        .start();
    assert_eq!(
        server.health()["fanout_io"],
        if fanout_io == "uring" { "io_uring" } else { "send" }
    );
    let mut readers = Vec::new();
    for number in 0..READERS {
        readers.push(Client::connect(&server, "s", &format!("u{number}"), "customer").await);
    }
    // The clients don't read until everything is sent, and every tenth disconnects meanwhile.
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
    // There are no duplicates: a ping's answer follows all of it.
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
    // Where the kernel forbids it, `fanout_io_uring_is_used_or_the_start_fails` says that this is said.
    if auto.health()["fanout_io"] == "io_uring" {
        many_get_everything_once_in_order("uring").await;
    }
}

/// Sockets that are full when a chunk is sent: partly sent chunks, queues and flushers, closes and pings in between.
fn full_sockets_get_everything_once_in_order(fanout_io: &str) {
    const MESSAGES: usize = 60;
    let server = Server::builder()
        .env("FANOUT_IO", fanout_io)
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .env("RATE_LIMIT_MESSAGES", 0)
        .env("SEND_QUEUE_BYTES", 8 << 20)
        .env("SEND_TIMEOUT", "60s")
        .env("PING_INTERVAL", "600s")
        .start();
    let narrow = |user: &str| RawWs::connect_narrow(&server, "s", user, "customer");
    let mut full: Vec<_> = (0..12).map(|number| narrow(&format!("full{number}"))).collect();
    let (leaving, mut closing) = (narrow("leaving"), narrow("closing"));
    let mut sender = RawWs::connect(&server, "s", "sender", "agent");
    let padding = "x".repeat(20_000);
    for number in 0..MESSAGES {
        let text = format!("{number} {padding}");
        sender.send_json(&json!({"type": "send_message", "data": {"message": text}}));
        // One batch a message: the next is sent when this one is through.
        while !sender.next("new_message")["data"]["message"]
            .as_str()
            .unwrap()
            .starts_with(&format!("{number} "))
        {}
        if number == MESSAGES / 2 {
            for socket in &mut full {
                socket.send(Frame::ping("half way"));
            }
            closing.send(Frame::close(1000, ""));
        }
    }
    // The server waits five seconds for it.
    assert_eq!(closing.expect_close(), 1000);
    leaving.reset();
    let queued = server.metric("livechat_deliveries_queued_total");
    assert!(queued > 100.0, "nothing was full: {queued}");
    for socket in &mut full {
        let (mut next, mut pongs) = (0, 0);
        while next < MESSAGES {
            let frame = socket.read_frame().expect("all of it, not the end of the stream");
            if frame.is(Opcode::Pong) {
                pongs += 1;
            } else if frame.is(Opcode::Text) {
                let json: Value = serde_json::from_slice(&frame.payload).expect("a whole frame");
                if json["type"] == "new_message" {
                    let text = json["data"]["message"].as_str().unwrap();
                    assert!(text.starts_with(&format!("{next} ")), "{text:.8}, not {next}");
                    assert_eq!(text.len(), padding.len() + format!("{next} ").len());
                    next += 1;
                }
            }
        }
        assert_eq!(pongs, 1);
        let late = socket.expect_alive();
        assert!(late.iter().all(|frame| frame["type"] != "new_message"), "doubled");
    }
}

#[test]
fn fanout_io_send_queues_for_full_sockets() {
    full_sockets_get_everything_once_in_order("send");
}

/// `auto`: where the kernel forbids io_uring it is the test above once more.
#[test]
fn fanout_io_auto_queues_for_full_sockets() {
    full_sockets_get_everything_once_in_order("auto");
}
