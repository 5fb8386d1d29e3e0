//! Slow links: signs of life are any byte from the client, and progress with what waits for it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::http::Http;
use crate::support::raw::{handshake, narrow};
use crate::support::{Frame, Opcode, PATIENCE, RawWs, Server, ServerBuilder, eventually};

/// A small receive buffer, as of a phone on a bad link: data waits in the server, not in the reader's kernel.
const WINDOW: usize = 16 << 10;

fn builder() -> ServerBuilder {
    Server::builder()
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .env("RATE_LIMIT_MESSAGES", 0)
        // Not all readers answer pings.
        .env("PING_INTERVAL", "600s")
}

/// Pings often, with a pong timeout of two seconds.
fn restless() -> ServerBuilder {
    builder().env("PING_INTERVAL", "2s").env("PONG_TIMEOUT", "2s")
}

fn connect(server: &Server, session: &str, user: &str) -> RawWs {
    let mut http = Http::over(narrow(server.http_addr(), WINDOW)).expect("a connected socket");
    http.write(handshake(&format!("/ws/{session}/{user}/customer"), &[]).as_bytes());
    let mut ws = RawWs::upgraded(http).expect("an upgrade");
    assert_eq!(ws.read_json()["type"], "connection_established");
    ws
}

/// Says numbered messages of this size, one batch each, and answers pings meanwhile.
fn say(sender: &mut RawWs, messages: std::ops::Range<usize>, size: usize) {
    for number in messages {
        let digits = number.to_string();
        let text = "0".repeat(size - digits.len()) + &digits;
        sender.send_json(&json!({"type": "send_message", "request_id": number, "data": {"message": text}}));
        loop {
            let frame = sender.read_frame().expect("an answer, not the end of the stream");
            if frame.is(Opcode::Ping) {
                sender.send(Frame::pong(frame.payload));
            } else if frame.is(Opcode::Text) {
                let answer: Value = serde_json::from_slice(&frame.payload).expect("JSON");
                assert_ne!(answer["type"], "error", "{answer}");
                if answer["type"] == "message_sent" && answer["request_id"] == number {
                    break;
                }
            } else {
                panic!("{frame:?}");
            }
        }
    }
}

/// Answers pings for an otherwise idle client, until it is dropped.
struct Awake(
    Option<std::sync::mpsc::Sender<()>>,
    Option<std::thread::JoinHandle<()>>,
);

impl Awake {
    fn new(mut ws: RawWs) -> Self {
        let (stop, stopped) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(Duration::from_millis(50))
                == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                if !ws.gulp(1 << 20).expect("read") {
                    return;
                }
                for frame in ws.buffered_frames() {
                    if frame.is(Opcode::Ping) {
                        ws.send(Frame::pong(frame.payload));
                    }
                }
            }
        });
        Self(Some(stop), Some(thread))
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        drop(self.0.take());
        let _ = self.1.take().map(std::thread::JoinHandle::join);
    }
}

/// Reads so many bytes every 100 ms, answering pings, until `count` messages are there; how many pings came.
#[track_caller]
fn sip(reader: &mut RawWs, bytes: usize, count: usize) -> usize {
    let (mut next, mut pings) = (0, 0);
    let deadline = Instant::now() + 2 * PATIENCE;
    while next < count {
        assert!(Instant::now() < deadline, "{next} messages so far");
        std::thread::sleep(Duration::from_millis(100));
        let is_open = reader.gulp(bytes).expect("read");
        for frame in reader.buffered_frames() {
            assert!(
                !frame.is(Opcode::Close),
                "closed with {:?} after {next} of {count} messages",
                frame.close_code()
            );
            if frame.is(Opcode::Ping) {
                pings += 1;
                reader.send(Frame::pong(frame.payload));
            } else if frame.is(Opcode::Text) {
                let frame: Value = serde_json::from_slice(&frame.payload).expect("JSON");
                if frame["type"] == "new_message" {
                    let text = frame["data"]["message"].as_str().expect("a text");
                    assert_eq!(
                        text.trim_start_matches('0'),
                        if next == 0 {
                            String::new()
                        } else {
                            next.to_string()
                        }
                    );
                    next += 1;
                }
            }
        }
        assert!(
            is_open || next == count,
            "the stream ended after {next} of {count} messages"
        );
    }
    pings
}

/// A client can't send a pong inside its own frame: every byte of the frame is a sign of life.
#[test]
fn slow_links_carry_a_legal_message_for_longer_than_a_pong_may_take() {
    let server = restless().start();
    let mut ws = RawWs::connect(&server, "s1", "u1", "customer");
    let text = json!({"type": "send_message", "request_id": "long", "data": {"message": "x".repeat(60_000)}});
    let frame = Frame::text(text.to_string()).encode();
    let pieces = frame.len().div_ceil(100);
    for piece in frame.chunks(pieces) {
        assert!(ws.try_write(piece), "closed in the midst of its message");
        std::thread::sleep(Duration::from_millis(60));
    }
    loop {
        let frame = ws.read_frame().expect("an answer, not the end of the stream");
        assert!(!frame.is(Opcode::Close), "closed with {:?}", frame.close_code());
        if frame.is(Opcode::Text) {
            let answer: Value = serde_json::from_slice(&frame.payload).expect("JSON");
            if answer["request_id"] == "long" {
                assert_eq!(answer["type"], "message_sent", "{answer}");
                return;
            }
        }
    }
}

/// The ping waits behind earlier data, here and in the kernel, which the reader takes steadily.
#[test]
fn slow_links_drain_a_backlog_for_longer_than_a_pong_may_take() {
    let server = restless().env("SEND_QUEUE_BYTES", 4 << 20).start();
    let mut reader = connect(&server, "s1", "reader");
    let mut sender = RawWs::connect(&server, "s1", "sender", "agent");
    say(&mut sender, 0..24, 15_000);
    let _awake = Awake::new(sender);
    assert!(sip(&mut reader, 4_000, 24) > 0, "it was not pinged");
}

/// The kernel wakes us when half of what it may hold unsent is gone: at this pace that takes longer than
/// SEND_TIMEOUT, and the reader takes something all the time.
#[test]
fn slow_links_stay_connected_by_progress_that_only_the_kernel_sees() {
    let server = builder()
        .env("SEND_QUEUE_BYTES", 4 << 20)
        .env("SEND_TIMEOUT", "2500ms")
        .start();
    let mut reader = connect(&server, "s1", "reader");
    let mut sender = RawWs::connect(&server, "s1", "sender", "agent");
    say(&mut sender, 0..20, 15_000);
    sip(&mut reader, 2_000, 20);
}

/// A full queue has room for control frames, and the pong's time begins when the ping is written.
#[test]
fn slow_links_get_pings_even_with_a_full_queue() {
    let server = restless()
        .env("SEND_QUEUE_BYTES", 65_536)
        .env("MAX_RECORD_BYTES", 65_536)
        .env("SEND_TIMEOUT", "300s")
        .start();
    let mut reader = connect(&server, "s1", "reader");
    let mut sender = RawWs::connect(&server, "s1", "sender", "agent");
    // A burst, which may go over the limit; then the reader stands still until pings and pongs are overdue.
    say(&mut sender, 0..24, 15_000);
    let _awake = Awake::new(sender);
    std::thread::sleep(Duration::from_secs(6));
    assert!(sip(&mut reader, 1 << 20, 24) > 0, "the ping was lost");
    reader.expect_alive();
}

/// A stopped client does not count as alive because its kernel acknowledges data.
#[test]
fn stopped_clients_are_closed_although_their_kernel_acknowledges() {
    let server = restless().start();
    let mut stopped = RawWs::connect(&server, "s1", "stopped", "customer");
    let mut sender = RawWs::connect(&server, "s1", "sender", "agent");
    let mut number = 0;
    eventually("it is closed", || {
        say(&mut sender, number..number + 1, 100);
        number += 1;
        server.health()["connections"] == 1
    });
    assert_eq!(
        stopped.read_close().and_then(|frame| frame.close_code()),
        Some(4001)
    );
}

/// However many pings a client sends while one chunk is under way, the newest is answered.
#[test]
fn slow_links_get_only_the_newest_pong() {
    const SIZE: usize = 900_000;
    let server = builder()
        .env("MAX_MESSAGE_BYTES", 1 << 20)
        .env("MAX_RECORD_BYTES", 1 << 20)
        .env("SEND_QUEUE_BYTES", 4 << 20)
        .start();
    let mut reader = connect(&server, "s1", "reader");
    let mut sender = RawWs::connect(&server, "s1", "sender", "agent");
    say(&mut sender, 0..1, SIZE);
    // The sender's answer may come before the reader's chunk is begun, and a pong ahead of the chunk goes out at once.
    let mut taken = 0;
    eventually("the message has begun, and not only the sender's join", || {
        assert!(reader.gulp(4096).expect("read"), "closed");
        taken = reader.buffered();
        taken >= 4096
    });
    for number in 1..=4 {
        let before = server.metric("livechat_frames_received_total");
        reader.send(Frame::ping(number.to_string()));
        reader.send_json(&json!({"type": "ping"}));
        eventually("the ping has come", || {
            server.metric("livechat_frames_received_total") > before
        });
        // Enough for the kernel to accept more, and less than everything.
        let until = taken + 150_000;
        let deadline = Instant::now() + PATIENCE;
        while taken < until {
            assert!(Instant::now() < deadline, "{taken} bytes so far");
            let before = reader.buffered();
            assert!(reader.gulp(until - taken).expect("read"), "closed");
            taken += reader.buffered() - before;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let mut pongs = Vec::new();
    let mut answers = 0;
    while answers < 4 {
        let frame = reader.read_frame().expect("all of it, not the end of the stream");
        if frame.is(Opcode::Pong) {
            pongs.push(String::from_utf8(frame.payload).expect("text"));
        } else if frame.is(Opcode::Text) {
            let frame: Value = serde_json::from_slice(&frame.payload).expect("JSON");
            answers += usize::from(frame["type"] == "pong");
        }
    }
    assert_eq!(pongs, ["4"]);
}

/// All queues together have a limit: the connection with the largest is closed, and the others get everything.
#[test]
fn slow_links_together_hold_no_more_than_send_memory_bytes() {
    let server = builder()
        .env("SEND_MEMORY_BYTES", 2 << 20)
        .env("SEND_QUEUE_BYTES", 8 << 20)
        .env("SEND_TIMEOUT", "300s")
        .start();
    let mut small = connect(&server, "small", "reader");
    let mut large = connect(&server, "large", "reader");
    let mut teller = RawWs::connect(&server, "small", "sender", "agent");
    let mut talker = RawWs::connect(&server, "large", "sender", "agent");
    say(&mut teller, 0..40, 15_000);
    let mut said = 0;
    eventually("the largest is closed", || {
        assert!(said < 400, "6 MB wait");
        say(&mut talker, said..said + 10, 15_000);
        said += 10;
        server.metric("livechat_connections_closed_total") > 0.0
    });
    assert!(said > 60, "closed after {said} messages only");
    if let Some(close) = large.read_close() {
        assert_eq!(close.close_code(), Some(4008));
    }
    sip(&mut small, 1 << 20, 40);
    small.expect_alive();
    assert!(
        server.metric("livechat_connections_closed_total") == 1.0,
        "one was enough"
    );
}

/// What a thousand queues share is in memory once, and counts once.
#[test]
fn slow_links_share_the_memory_of_queued_frames() {
    let server = builder()
        .env("SEND_MEMORY_BYTES", 2 << 20)
        .env("SEND_TIMEOUT", "300s")
        .start();
    let mut readers: Vec<_> = (0..20)
        .map(|n| connect(&server, "s1", &format!("u{n}")))
        .collect();
    let mut sender = RawWs::connect(&server, "s1", "sender", "agent");
    // 0.5 MB each, 10 MB together if each had its own.
    say(&mut sender, 0..40, 15_000);
    for reader in &mut readers {
        sip(reader, 4 << 20, 40);
        reader.expect_alive();
    }
}
