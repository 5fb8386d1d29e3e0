//! What readers that are slow or have stopped may cost: not a descriptor once they are cut, and no time of anybody
//! else.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::services::Tap;
use crate::slow::{impatient, say_many};
use crate::support::http::head;
use crate::support::raw::{handshake, narrow};
use crate::support::{Client, Frame, Http, Opcode, PATIENCE, RawWs, Server, eventually};

/// Readers that read nothing after their greeting, with a small receive buffer.
fn stopped(server: &Server, session: &str, count: usize) -> Vec<RawWs> {
    (0..count)
        .map(|number| RawWs::connect_narrow(server, session, &format!("stopped{number}"), "customer"))
        .collect()
}

/// The descriptors of a server that nothing is asked of.
fn settled(server: &Server) -> usize {
    server.get("/health");
    let mut last = 0;
    eventually("the same descriptors twice", || {
        let before = std::mem::replace(&mut last, server.fd_count());
        last == before
    });
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_slow_readers_free_their_descriptors_even_if_they_never_close() {
    let server = impatient();
    let mut sender = Client::connect(&server, "s1", "sender", "agent").await;
    let before = settled(&server);
    let readers = stopped(&server, "s1", 30);
    assert!(server.fd_count() >= before + readers.len());
    let started = Instant::now();
    let enough = async |_| server.health()["connections"] == 1 || started.elapsed() > PATIENCE;
    say_many(&mut sender, 16_000, 2_000, enough).await;
    eventually("all are cut", || server.health()["connections"] == 1);
    eventually("the descriptors are back", || server.fd_count() <= before);
    // They are open on their side to this line.
    drop(readers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_without_a_pong_free_their_descriptors_even_if_they_never_close() {
    // The kernel has room for all of it: it is the pong that is missing, since the frames are not read.
    let server = Server::builder()
        .env("RATE_LIMIT_MESSAGES", 0)
        .env("SEND_QUEUE_BYTES", 64 << 20)
        .env("SEND_TIMEOUT", "300s")
        .env("PING_INTERVAL", "2s")
        .env("PONG_TIMEOUT", "2s")
        .start();
    let sender = Tap::connect(&server, "s1", "sender", "agent").await;
    let before = settled(&server);
    let readers = stopped(&server, "s1", 10);
    for number in 0..4 {
        let frame = json!({"type": "send_message", "data": {"message": format!("{number:0>16000}")}});
        assert!(sender.send(frame).await, "closed");
    }
    eventually("all are cut", || server.health()["connections"] == 1);
    eventually("the descriptors are back", || server.fd_count() <= before);
    drop(readers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_that_pause_50_ms_between_reads_stay_connected() {
    const MESSAGES: usize = 6_000;
    // On a busy machine it is behind for longer than the default.
    let server = Server::builder()
        .env("RATE_LIMIT_MESSAGES", 0)
        .env("SEND_TIMEOUT", "60s")
        .start();
    let mut http = Http::over(narrow(server.http_addr(), 128 << 10)).expect("a connected socket");
    http.write(handshake("/ws/s1/reader/customer", &[]).as_bytes());
    let mut reader = RawWs::upgraded(http).expect("an upgrade");
    let reading = std::thread::spawn(move || {
        let mut texts = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        // 5 MB a second: a phone, or a page that is busy.
        while texts.last().is_none_or(|text| text != "the end") {
            assert!(Instant::now() < deadline, "{} messages so far", texts.len());
            std::thread::sleep(Duration::from_millis(50));
            let is_open = reader.gulp(256 << 10).expect("read");
            for frame in reader.buffered_frames() {
                assert!(
                    !frame.is(Opcode::Close),
                    "closed with {:?} after {} messages",
                    frame.close_code(),
                    texts.len()
                );
                if frame.is(Opcode::Text) {
                    let frame: serde_json::Value = serde_json::from_slice(&frame.payload).expect("JSON");
                    if frame["type"] == "new_message" {
                        texts.push(frame["data"]["message"].as_str().expect("a text").to_owned());
                    }
                }
            }
            assert!(is_open, "the stream ended after {} messages", texts.len());
        }
        texts
    });
    let sender = Tap::connect(&server, "s1", "sender", "agent").await;
    for number in 0..MESSAGES {
        let text = format!("{number:0>1000}");
        let said = json!({"type": "send_message", "data": {"message": text, "client_message_id": number.to_string()}});
        assert!(sender.send(said).await, "the sender was closed");
    }
    sender
        .until("all answers", |heard| {
            heard.acks.len() + heard.errors.len() == MESSAGES
        })
        .await;
    let mut acknowledged: Vec<String> = sender.look(|heard| {
        for error in &heard.errors {
            assert_eq!(error["data"]["retryable"], true, "{error}");
        }
        let ids = heard
            .acks
            .iter()
            .map(|ack| ack["client_message_id"].as_str().expect("an id"));
        ids.map(|id| format!("{id:0>1000}")).collect()
    });
    assert!(
        acknowledged.len() > MESSAGES / 2,
        "most were taken: {}",
        acknowledged.len()
    );
    sender
        .send(json!({"type": "send_message", "data": {"message": "the end"}}))
        .await;
    acknowledged.push("the end".to_owned());
    let texts = tokio::task::spawn_blocking(move || reading.join().expect("the reader"))
        .await
        .expect("the reader's thread");
    assert_eq!(texts.len(), acknowledged.len());
    assert!(texts == acknowledged, "not in the order of the acknowledgements");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_of_one_session_do_not_delay_another() {
    const PACE: Duration = Duration::from_millis(50);
    let server = Arc::new(Server::builder().env("RATE_LIMIT_MESSAGES", 0).start());
    let mut talker = Client::connect(&server, "calm", "talker", "customer").await;
    let mut listener = Client::connect(&server, "calm", "listener", "agent").await;
    let stop = Arc::new(AtomicBool::new(false));
    // At a fixed pace, whatever the last one took: each moment counts the same.
    let stopping = Arc::clone(&stop);
    let talking = tokio::spawn(async move {
        let mut sent = Vec::new();
        let mut pace = tokio::time::interval(PACE);
        while !stopping.load(Ordering::Relaxed) {
            pace.tick().await;
            sent.push(Instant::now());
            talker.say("word", "word").await;
            while talker.poll(Duration::ZERO).await.is_some() {}
            talker.log.clear();
        }
        talker.say("the end", "end").await;
        (talker, sent)
    });
    let listening = tokio::spawn(async move {
        let mut heard = Vec::new();
        loop {
            let frame = listener.next("new_message").await;
            heard.push(Instant::now());
            listener.log.clear();
            if frame["data"]["message"] == "the end" {
                return heard;
            }
        }
    });

    let (attacked, flooded) = (Arc::clone(&server), Arc::clone(&stop));
    let attack = tokio::task::spawn_blocking(move || {
        let text = json!({"type": "send_message", "data": {"message": "x".repeat(60_000)}});
        let frame = Frame::text(text.to_string()).encode();
        let mut last = Vec::new();
        for round in 0..8 {
            let session = format!("flooded{round}");
            let readers = stopped(&attacked, &session, 100);
            let mut senders = ["a", "b"].map(|user| RawWs::connect(&attacked, &session, user, "agent"));
            // For longer than a reader may stand still; those of the next round come at once.
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(1_500) {
                for sender in &mut senders {
                    sender.write(&frame);
                    sender.gulp(1 << 20).expect("read");
                    sender.buffered_frames();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            last = readers;
        }
        flooded.store(true, Ordering::Relaxed);
        // At most the two of the other session are left: it was a flood.
        eventually("the stopped ones are cut", || {
            attacked.health()["connections"]
                .as_u64()
                .is_some_and(|left| left <= 2)
        });
        drop(last);
    });
    attack.await.expect("the attack");
    let (_talker, sent) = talking.await.expect("the talker");
    let heard = listening.await.expect("the listener");
    assert_eq!(heard.len(), sent.len() + 1, "every word, and the end");
    let mut latencies: Vec<_> = sent
        .iter()
        .zip(&heard)
        .map(|(sent, heard)| *heard - *sent)
        .collect();
    latencies.sort_unstable();
    let at = |share: usize| latencies[latencies.len() * share / 100];
    let told = format!(
        "{} words: median {:?}, three quarters within {:?}, 99 of 100 within {:?}",
        latencies.len(),
        at(50),
        at(75),
        at(99)
    );
    eprintln!("{told}");
    // Without a flood each takes less than a millisecond, and behind one that is waited for seconds; the rest is for a
    // busy machine.
    assert!(at(50) < Duration::from_millis(500), "{told}");
}

/// The wait is the bound itself: a connection may speak plain HTTP for 60 s, and its last answer may take 5 s more.
#[test]
fn slow_readers_of_plain_http_are_dropped_after_about_a_minute() {
    let server = Server::start();
    let before = settled(&server);
    let requests = head("GET", "/health", &[]).repeat(100);
    let readers: Vec<_> = (0..10)
        .map(|_| {
            let stream = narrow(server.http_addr(), 4096);
            // Until the server stops reading, as it waits for us to read.
            let patience = Some(Duration::from_millis(500));
            stream.set_write_timeout(patience).expect("set a timeout");
            let taken = (0..2_000).take_while(|_| (&stream).write_all(requests.as_bytes()).is_ok());
            assert!(taken.count() < 2_000, "it answers without an end");
            stream
        })
        .collect();
    let stuck = Instant::now();
    while server.fd_count() > before {
        assert!(
            stuck.elapsed() < Duration::from_secs(75),
            "{} sockets are still held after {:?}",
            server.fd_count() - before,
            stuck.elapsed()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(server.get("/live").status, 200);
    drop(readers);
}
