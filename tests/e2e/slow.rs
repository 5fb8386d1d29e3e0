//! Readers that do not read, and healthy ones under bursts: the first are cut, the second never.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::presence::is_event;
use crate::support::{Client, Frame, Opcode, PATIENCE, RawWs, Server};

/// A server with small queues and short timeouts.
pub fn impatient() -> Server {
    let server = Server::builder()
        .env("RATE_LIMIT_MESSAGES", 0)
        .env("SEND_TIMEOUT", "1s");
    server
        .env("SEND_QUEUE_BYTES", 65_536)
        .env("MAX_RECORD_BYTES", 65_536)
        .start()
}

/// Says numbered messages of this size, up to `most` or until `enough`; the numbers that were acknowledged, in order.
pub async fn say_many(
    client: &mut Client,
    size: usize,
    most: usize,
    mut enough: impl AsyncFnMut(usize) -> bool,
) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for number in 0..most {
        let text = format!("{number:0>size$}");
        client
            .send(json!({"type": "send_message", "request_id": number, "data": {"message": text}}))
            .await;
        let answer = |frame: &serde_json::Value| frame["request_id"] == number;
        let answer = client.next_where("an answer", answer).await;
        match answer["type"].as_str() {
            Some("message_sent") => acknowledged.push(text),
            _ => assert_eq!(answer["data"]["retryable"], true, "{answer}"),
        }
        client.take_all("new_message");
        client.log.clear();
        if enough(number).await {
            break;
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_are_closed_without_affecting_others() {
    let server = impatient();
    let mut healthy = Client::connect(&server, "s1", "healthy", "agent").await;
    let mut sender = Client::connect(&server, "s1", "sender", "customer").await;
    let mut slow = RawWs::connect(&server, "s1", "slow", "customer");
    healthy
        .next_where("the slow reader's join", |frame| {
            is_event(frame, "user_connected", "slow")
        })
        .await;

    // The healthy reader reads all the time; it learns of the slow one's leave PRESENCE_GRACE after its end.
    let (gone, is_gone) = tokio::sync::watch::channel(false);
    let reading = tokio::spawn(async move {
        let mut texts = Vec::new();
        while !*gone.borrow() || texts.last().is_none_or(|text| text != "the end") {
            let frame = healthy.next_any().await;
            healthy.log.clear();
            if frame["type"] == "new_message" {
                texts.push(frame["data"]["message"].as_str().unwrap().to_owned());
            }
            if is_event(&frame, "user_disconnected", "slow") {
                gone.send_replace(true);
            }
        }
        texts
    });
    // The kernel's buffers take some megabytes before the queue fills.
    let started = Instant::now();
    let enough = async |_| *is_gone.borrow() || started.elapsed() > PATIENCE * 2;
    let mut acknowledged = say_many(&mut sender, 16_000, 4_000, enough).await;
    sender.say_acked("the end").await;
    acknowledged.push("the end".to_owned());
    let texts = tokio::time::timeout(PATIENCE, reading)
        .await
        .expect("the end, and the slow reader's: was it never cut?")
        .expect("the healthy reader");
    assert_eq!(texts.len(), acknowledged.len());
    assert!(texts == acknowledged, "the healthy reader lost something");
    // When the slow reader finally reads, it gets whole frames, then 4008 or just the end.
    let mut last = None;
    while let Ok(Some(frame)) = slow.try_read_frame() {
        last = Some(frame);
    }
    if let Some(frame) = last.filter(|frame| frame.is(Opcode::Close)) {
        assert_eq!(frame.close_code(), Some(4008));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_may_drain_a_burst_far_beyond_the_queue_limit() {
    // Who is behind for longer than SEND_TIMEOUT is cut, and on a busy machine the burst itself takes long.
    let server = Server::builder()
        .env("RATE_LIMIT_MESSAGES", 0)
        .env("SEND_TIMEOUT", "60s")
        .env("SEND_QUEUE_BYTES", 65_536)
        .env("MAX_RECORD_BYTES", 65_536)
        .start();
    let mut senders = Vec::new();
    for number in 0..3 {
        senders.push(Client::connect(&server, "s1", &format!("s{number}"), "customer").await);
    }
    // They read as fast as they can, but the kernel keeps little for them: the burst piles up in the server.
    let reading: Vec<_> = (0..5)
        .map(|number| {
            let mut reader = RawWs::connect_narrow(&server, "s1", &format!("r{number}"), "agent");
            std::thread::spawn(move || {
                let mut texts = Vec::new();
                let mut ends = 0;
                while ends < 3 {
                    let message = reader.next("new_message");
                    match message["data"]["message"].as_str().expect("a text") {
                        "the end" => ends += 1,
                        text => texts.push(text.to_owned()),
                    }
                }
                texts
            })
        })
        .collect();
    // Three at once, without waiting for one answer before the next: 150 x 20 KB each, 140 times the queue.
    let sending: Vec<_> = senders
        .into_iter()
        .enumerate()
        .map(|(who, mut sender)| {
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for batch in 0..15 {
                    for number in 0..10 {
                        let text = format!("{who}:{batch}:{number}:{}", "x".repeat(20_000));
                        sender.say(&text, &format!("{batch}:{number}")).await;
                    }
                    for number in 0..10 {
                        let id = format!("{batch}:{number}");
                        let answer = sender
                            .next_where("an answer", |frame| frame["request_id"] == *id)
                            .await;
                        if answer["type"] == "message_sent" {
                            acknowledged.push(format!("{who}:{batch}:{number}:{}", "x".repeat(20_000)));
                        } else {
                            assert_eq!(answer["data"]["retryable"], true, "{answer}");
                        }
                    }
                    sender.take(|_| true);
                    sender.log.clear();
                }
                sender.say_acked("the end").await;
                acknowledged
            })
        })
        .collect();
    let mut acknowledged = Vec::new();
    for task in sending {
        acknowledged.extend(task.await.expect("a sender"));
    }
    assert!(
        acknowledged.len() > 100,
        "most were taken: {}",
        acknowledged.len()
    );
    acknowledged.sort_unstable();
    let mut orders = Vec::new();
    for thread in reading {
        let order = thread.join().expect("a reader");
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(
            sorted == acknowledged,
            "{} acknowledged, {} read",
            acknowledged.len(),
            sorted.len()
        );
        orders.push(order);
    }
    assert!(
        orders.windows(2).all(|pair| pair[0] == pair[1]),
        "one order for everyone"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_that_catch_up_stay_connected() {
    // The queue takes what the reader does not read, and it resumes before SEND_TIMEOUT.
    let server = Server::builder()
        .env("RATE_LIMIT_MESSAGES", 0)
        .env("SEND_TIMEOUT", "300s")
        .env("PING_INTERVAL", "600s")
        .env("SEND_QUEUE_BYTES", 64 << 20)
        .start();
    let mut sender = Client::connect(&server, "s1", "sender", "customer").await;
    let mut paused = RawWs::connect(&server, "s1", "paused", "agent");
    let acknowledged = say_many(&mut sender, 16_000, 700, async |_| false).await;
    assert_eq!(acknowledged.len(), 700);
    for text in &acknowledged {
        assert!(
            paused.next("new_message")["data"]["message"] == **text,
            "{}",
            &text[..0]
        );
    }
    paused.expect_alive();
}

#[test]
fn slow_readers_of_their_own_answers_are_closed() {
    // It asks and never reads: its answers must not pile up without end.
    let server = impatient();
    let before = server.rss_kib();
    let mut ws = RawWs::connect(&server, "s1", "u1", "agent");
    let id = "x".repeat(128);
    let asks = Frame::text(json!({"type": "ping", "request_id": id}).to_string())
        .encode()
        .repeat(100);
    let started = Instant::now();
    ws.stream()
        .set_write_timeout(Some(Duration::from_secs(5)))
        .expect("set a timeout");
    // Without a limit, the answers would take several times what is allowed below.
    for _ in 0..3_000 {
        use std::io::Write;
        // Full or closed: the server has stopped reading or has cut it.
        if ws.stream().write_all(&asks).is_err() {
            break;
        }
        assert!(started.elapsed() < PATIENCE * 2, "still accepted");
    }
    // An overdraft is 8 MiB, which in small answers takes twice the memory; what is freed may still be there.
    let grown = server.rss_kib().saturating_sub(before);
    assert!(
        grown < 20 * 1024,
        "{grown} KiB more for one connection with a queue of 64 KiB"
    );
    crate::support::eventually("it is cut", || server.health()["connections"] == 0);
    while let Ok(Some(frame)) = ws.try_read_frame() {
        if frame.is(Opcode::Close) {
            assert_eq!(frame.close_code(), Some(4008));
        }
    }
}
