//! Five thousand connections on one process, and its memory after they are closed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::raw::handshake;
use crate::support::{Frame, Opcode, PATIENCE, Server, eventually_async};

const SESSIONS: usize = 2_500;

/// A small client: tungstenite's buffers would make the test the large process of the two.
struct Small {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Small {
    async fn connect(addr: std::net::SocketAddr, path: String) -> Self {
        let mut stream = TcpStream::connect(addr).await.expect("connect");
        stream
            .write_all(handshake(&path, &[]).as_bytes())
            .await
            .expect("send a handshake");
        let mut small = Self {
            stream,
            buffer: Vec::new(),
        };
        let end = loop {
            if let Some(at) = small.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            small.fill().await;
        };
        assert!(
            small.buffer.starts_with(b"HTTP/1.1 101"),
            "{}",
            small.buffer.escape_ascii()
        );
        small.buffer.drain(..end);
        assert_eq!(small.next().await["type"], "connection_established");
        small
    }

    async fn send(&mut self, value: Value) {
        self.stream
            .write_all(&Frame::text(value.to_string()).encode())
            .await
            .expect("send");
    }

    async fn next(&mut self) -> Value {
        loop {
            while let Some((frame, size)) = Frame::decode(&self.buffer) {
                self.buffer.drain(..size);
                if self.buffer.is_empty() {
                    self.buffer = Vec::new();
                }
                if frame.is(Opcode::Text) {
                    return serde_json::from_slice(&frame.payload).expect("JSON");
                }
                assert!(frame.is(Opcode::Ping), "{frame:?}");
                self.stream
                    .write_all(&Frame::pong(&frame.payload).encode())
                    .await
                    .expect("send");
            }
            self.fill().await;
        }
    }

    /// Answers pings until the time is over; other frames are not expected to matter.
    async fn fill(&mut self) {
        let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await;
        let read = read.expect("a frame in time").expect("read");
        assert!(read > 0, "closed");
    }
}

/// Connects two clients per session, `at_once` at a time.
async fn crowd(server: &Server, at_once: usize) -> Vec<(Small, Small)> {
    let addr = server.http_addr();
    let permits = Arc::new(Semaphore::new(at_once));
    let mut tasks = JoinSet::new();
    for session in 0..SESSIONS {
        let permits = Arc::clone(&permits);
        tasks.spawn(async move {
            let _permit = permits.acquire().await.expect("a permit");
            let first = Small::connect(addr, format!("/ws/s{session}/customer/customer")).await;
            let second = Small::connect(addr, format!("/ws/s{session}/agent/agent")).await;
            (first, second)
        });
    }
    tasks.join_all().await
}

async fn health(server: &Server) -> (u64, u64) {
    let health = server.health();
    (
        health["connections"].as_u64().expect("a count"),
        health["sessions"].as_u64().expect("a count"),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scale_five_thousand_connections_leave_no_memory_behind() {
    let server = Server::builder()
        .env("MAX_CONNECTIONS_PER_IP", 0)
        .env("PING_INTERVAL", "120s")
        .start();
    server.health();
    let (descriptors, memory) = (server.fd_count(), server.rss_kib());

    let mut peak = 0;
    for round in 0..3 {
        let started = Instant::now();
        let sessions = crowd(&server, 100).await;
        assert_eq!(health(&server).await, (2 * SESSIONS as u64, SESSIONS as u64));
        let connected = started.elapsed();

        // One message into every session; both members get it once.
        let mut tasks = JoinSet::new();
        for (number, (mut customer, mut agent)) in sessions.into_iter().enumerate() {
            tasks.spawn(async move {
                let text = format!("{round}:{number}");
                customer
                    .send(json!({"type": "send_message", "data": {"message": text}}))
                    .await;
                let mut got = 0;
                for member in [&mut customer, &mut agent] {
                    // Fenced by a ping that is sent when the message is there: a second copy would come before the
                    // pong.
                    let mut fenced = false;
                    loop {
                        let frame = member.next().await;
                        match frame["type"].as_str() {
                            Some("new_message") => {
                                assert_eq!(frame["data"]["message"], text);
                                got += 1;
                                if !fenced {
                                    fenced = true;
                                    member.send(json!({"type": "ping"})).await;
                                }
                            }
                            Some("pong") => break,
                            Some("message_sent" | "connection_status_update") => {}
                            other => panic!("{other:?}: {frame}"),
                        }
                    }
                }
                assert_eq!(got, 2, "{text}");
                (customer, agent)
            });
        }
        let sessions = tasks.join_all().await;
        peak = peak.max(server.rss_kib());
        eprintln!(
            "5,000 connected in {connected:?}; all have spoken after {:?}",
            started.elapsed()
        );
        drop(sessions);
        eventually_async("all are gone", async || health(&server).await == (0, 0)).await;
        eprintln!("RSS {} KiB at the end of round {round}", server.rss_kib());
    }

    eventually_async("descriptors are back", async || server.fd_count() <= descriptors).await;
    assert_eq!(server.connection_status("s0")["total_customer"], 0);
    // Pages the allocator keeps for a while are no leak, so it gets time to purge them. What it keeps after that is
    // bounded: 16 MiB are 1.1 KiB for each of the 15,000 connections that were, less than one costs alive, so
    // that a connection or session that is never freed goes over it. A leak would also grow from round to round.
    let bound = memory + 16 * 1024;
    let settled = tokio::time::timeout(PATIENCE, async {
        while server.rss_kib() > bound {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let settled = settled.await.is_ok();
    eprintln!(
        "RSS in KiB: {memory} at start, {peak} with 5,000 connections, {} after",
        server.rss_kib()
    );
    assert!(
        settled,
        "RSS was {memory} KiB at start and is {} KiB after all have left",
        server.rss_kib()
    );
}
