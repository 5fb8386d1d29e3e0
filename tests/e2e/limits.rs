//! Limits: rates, numbers of connections, silence.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::http::is_reset;
use crate::support::raw::HANDSHAKE;
use crate::support::{Frame, Http, Opcode, RawWs, Response, Server, eventually};

/// Writes while the test reads: repeats the bytes until the server closes or `most` writes are done.
fn flood(ws: &RawWs, bytes: Vec<u8>, most: usize) -> std::thread::JoinHandle<()> {
    let mut stream = ws.stream().try_clone().expect("clone a socket");
    std::thread::spawn(move || {
        for _ in 0..most {
            match stream.write_all(&bytes) {
                Ok(()) => {}
                Err(error) if is_reset(&error) => return,
                // The server no longer reads, and has closed or will.
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) =>
                {
                    return;
                }
                Err(error) => panic!("write: {error}"),
            }
        }
    })
}

#[test]
fn limits_a_message_flood_gets_errors_and_then_1008() {
    let server = Server::start();
    let mut bystander = RawWs::connect(&server, "s1", "bystander", "agent");
    let mut ws = RawWs::connect(&server, "s1", "u1", "customer");
    let writer = flood(
        &ws,
        Frame::text(json!({"type": "ping", "request_id": "r"}).to_string()).encode(),
        200_000,
    );
    let (mut pongs, mut errors) = (0, 0);
    let close = loop {
        let frame = ws
            .read_frame()
            .expect("a close frame before the end of the stream");
        if frame.is(Opcode::Close) {
            break frame;
        }
        let value: serde_json::Value = serde_json::from_slice(&frame.payload).expect("JSON");
        match value["type"].as_str() {
            Some("pong") => pongs += 1,
            Some("error") => {
                assert_eq!(value["data"]["code"], "rate_limited", "{value}");
                assert_eq!(value["data"]["retryable"], true, "{value}");
                errors += 1;
            }
            _ => {}
        }
    };
    assert_eq!(close.close_code(), Some(1008));
    assert!(pongs >= 40, "the burst of 40 is free: {pongs}");
    assert!(errors >= 1, "errors come before the close");
    ws.expect_end();
    writer.join().expect("the writer");
    bystander.expect_alive();
}

#[test]
fn limits_a_rate_under_the_limit_is_never_refused() {
    let server = Server::builder()
        .env("RATE_LIMIT_MESSAGES", 100)
        .env("RATE_LIMIT_BURST", 5)
        .start();
    let mut ws = RawWs::connect(&server, "s1", "u1", "customer");
    for number in 0..60 {
        ws.send_json(&json!({"type": "ping", "request_id": number}));
        assert_eq!(ws.next("pong")["request_id"], number);
        std::thread::sleep(Duration::from_millis(20)); // half of the allowed rate
    }
}

#[test]
fn limits_a_refused_client_may_continue_once_it_slows_down() {
    let server = Server::builder()
        .env("RATE_LIMIT_MESSAGES", 5)
        .env("RATE_LIMIT_BURST", 5)
        .start();
    let mut ws = RawWs::connect(&server, "s1", "u1", "customer");
    // At once: spread over a second, they would be within the rate.
    ws.write(
        &Frame::text(json!({"type": "ping"}).to_string())
            .encode()
            .repeat(8),
    );
    assert_eq!(ws.next("error")["data"]["code"], "rate_limited");
    eventually("a pong again", || {
        std::thread::sleep(Duration::from_secs(1));
        ws.send_json(&json!({"type": "ping", "request_id": "later"}));
        let answer = loop {
            let answer = ws.read_json();
            if answer["request_id"] == "later" {
                break answer;
            }
        };
        answer["type"] == "pong"
    });
}

#[test]
fn limits_a_ping_flood_without_reading_is_1008() {
    let server = Server::start();
    let mut bystander = RawWs::connect(&server, "s1", "bystander", "agent");
    let before = server.rss_kib();
    let mut ws = RawWs::connect(&server, "s1", "u1", "customer");
    let pings = Frame::ping([7; 125]).encode().repeat(100);
    let writer = flood(&ws, pings, 20_000);
    // Nothing is read until the server has had enough, or has been sent 250 MB.
    writer.join().expect("the writer");
    let grown = server.rss_kib().saturating_sub(before);
    assert!(grown < 8 * 1024, "pongs coalesce in one slot: {grown} KiB more");
    assert_eq!(ws.expect_close(), 1008);
    bystander.expect_alive();
}

#[track_caller]
fn refused(server: &Server, path: &str, headers: &[(&str, &str)], status: u16) -> Response {
    let response = RawWs::try_connect(server.http_addr(), path, headers)
        .err()
        .expect("a refusal");
    response.assert_error(status);
    let retry = response
        .header("retry-after")
        .and_then(|value| value.parse::<u32>().ok());
    assert!(
        retry.is_some_and(|seconds| (1..=3600).contains(&seconds)),
        "Retry-After: {response:?}"
    );
    response
}

#[test]
fn limits_connections_of_the_process_are_503() {
    let server = Server::builder().env("MAX_CONNECTIONS", 3).start();
    let mut clients: Vec<_> = (0..3)
        .map(|n| RawWs::connect(&server, "s1", &format!("u{n}"), "agent"))
        .collect();
    refused(&server, "/ws/s1/more/agent", &[], 503);
    // Invalid requests still get their own answers, and other routes work.
    Http::request(server.http_addr(), "GET", "/ws/s1/%00/agent", &HANDSHAKE).assert_error(400);
    assert_eq!(server.health()["status"], "ok");
    assert_eq!(server.get("/ready").status, 200);
    clients.iter_mut().for_each(|client| drop(client.expect_alive()));
    // When one leaves, another may connect.
    clients.pop().expect("a client").send(Frame::close(1000, ""));
    eventually("a place is free", || {
        RawWs::try_connect(server.http_addr(), "/ws/s1/more/agent", &[]).is_ok()
    });
}

#[test]
fn limits_refused_and_broken_handshakes_do_not_count_as_connections() {
    let server = Server::builder().env("MAX_CONNECTIONS", 2).start();
    for _ in 0..20 {
        Http::request(server.http_addr(), "GET", "/ws/s1/u1/nobody", &HANDSHAKE).assert_error(400);
        drop(RawWs::connect_path(server.http_addr(), "/ws/s1/u1/agent"));
        eventually("the place is free again", || server.health()["connections"] == 0);
    }
    let _one = RawWs::connect(&server, "s1", "u1", "agent");
    let _two = RawWs::connect(&server, "s1", "u2", "agent");
    refused(&server, "/ws/s1/u3/agent", &[], 503);
}

#[test]
fn limits_connections_of_an_address_are_429() {
    let server = Server::builder().env("MAX_CONNECTIONS_PER_IP", 2).start();
    let one = RawWs::connect(&server, "s1", "u1", "agent");
    let _two = RawWs::connect(&server, "s2", "u2", "agent");
    refused(&server, "/ws/s3/u3/agent", &[], 429);
    // Nobody's word for an address is taken unless it is a proxy's.
    refused(
        &server,
        "/ws/s3/u3/agent",
        &[("X-Forwarded-For", "203.0.113.9")],
        429,
    );
    assert_eq!(server.health()["status"], "ok");
    drop(one);
    eventually("a place is free", || {
        RawWs::try_connect(server.http_addr(), "/ws/s3/u3/agent", &[]).is_ok()
    });
}

#[test]
fn limits_an_address_behind_a_trusted_proxy_is_the_clients() {
    let server = Server::builder()
        .env("MAX_CONNECTIONS_PER_IP", 1)
        .env("TRUSTED_PROXIES", "127.0.0.0/8")
        .start();
    let from = |address: &'static str| [("X-Forwarded-For", address)];
    let open = |user: &str, address| {
        RawWs::try_connect(
            server.http_addr(),
            &format!("/ws/s1/{user}/agent"),
            &from(address),
        )
        .expect("an upgrade")
    };
    let _one = open("u1", "203.0.113.1");
    let _two = open("u2", "203.0.113.2");
    let _six = open("u3", "2001:db8::1");
    refused(&server, "/ws/s1/u4/agent", &from("203.0.113.1"), 429);
    // What the client wrote precedes what the proxy added.
    refused(
        &server,
        "/ws/s1/u4/agent",
        &from("198.51.100.7, 203.0.113.1"),
        429,
    );
}

#[test]
fn limits_hold_for_concurrent_connects() {
    let server = Server::builder().env("MAX_CONNECTIONS", 10).start();
    let addr = server.http_addr();
    let threads: Vec<_> = (0..60)
        .map(|n| {
            std::thread::spawn(move || RawWs::try_connect(addr, &format!("/ws/s1/u{n}/agent"), &[]).ok())
        })
        .collect();
    let open: Vec<_> = threads
        .into_iter()
        .filter_map(|thread| thread.join().expect("a client"))
        .collect();
    assert_eq!(open.len(), 10);
    assert_eq!(server.health()["connections"], 10);
}

#[test]
fn limits_a_silent_client_is_4001() {
    let server = Server::builder()
        .env("PING_INTERVAL", "1s")
        .env("PONG_TIMEOUT", "500ms")
        .start();
    let started = Instant::now();
    let mut silent = RawWs::connect(&server, "s1", "u1", "agent");
    let mut pinged = false;
    let close = loop {
        let frame = silent
            .read_frame()
            .expect("a close frame before the end of the stream");
        match frame.opcode {
            9 => pinged = true,
            8 => break frame,
            _ => {}
        }
    };
    assert_eq!(close.close_code(), Some(4001));
    assert!(pinged, "a ping comes first");
    assert!(
        started.elapsed() >= Duration::from_millis(1200),
        "after {:?}",
        started.elapsed()
    );
    silent.expect_end();
    eventually("it is gone", || server.health()["connections"] == 0);
}

#[test]
fn limits_a_client_that_answers_pings_stays() {
    let server = Server::builder()
        .env("PING_INTERVAL", "2s")
        .env("PONG_TIMEOUT", "2s")
        .start();
    let mut ws = RawWs::connect(&server, "s1", "u1", "agent");
    let mut pings = 0;
    // The third comes after 6 s; without a pong it is over after 4.
    while pings < 3 {
        let frame = ws.read_frame().expect("a ping, not the end of the stream");
        assert!(!frame.is(Opcode::Close), "closed after {pings} pongs: {frame:?}");
        if frame.is(Opcode::Ping) {
            pings += 1;
            ws.send(Frame::pong(frame.payload));
        }
    }
    ws.expect_alive();
}

#[test]
fn limits_a_half_open_connection_is_dropped() {
    let server = Server::builder()
        .env("PING_INTERVAL", "1s")
        .env("PONG_TIMEOUT", "500ms")
        .start();
    let silent = RawWs::connect(&server, "s1", "u1", "agent");
    // It reads nothing and sends nothing, not even an answer to the close frame.
    eventually("it is gone", || server.health()["connections"] == 0);
    eventually("its user left", || {
        server.connection_status("s1")["total_agent"] == 0
    });
    drop(silent);
}

#[test]
fn limits_by_default_leave_descriptors_for_everything_else() {
    let server = Server::builder().descriptors(256).start();
    let mut clients = Vec::new();
    let refusal = loop {
        let path = format!("/ws/s1/u{}/agent", clients.len());
        match RawWs::try_connect(server.http_addr(), &path, &[]) {
            Ok(client) => clients.push(client),
            Err(refusal) => break refusal,
        }
        assert!(clients.len() < 256, "more connections than descriptors");
    };
    refusal.assert_error(503);
    assert!(
        clients.len() >= 128,
        "only {} of 256 descriptors are used",
        clients.len()
    );
    for _ in 0..20 {
        assert_eq!(server.health()["status"], "ok");
        assert_eq!(server.health()["connections"], clients.len());
    }
}

#[test]
fn limits_without_descriptors_accepting_does_not_spin() {
    let server = Server::builder().descriptors(128).start();
    let mut client = RawWs::connect(&server, "s1", "u1", "agent");
    // More silent sockets than descriptors; the kernel's queue holds those that are not accepted.
    let opened = Instant::now();
    let silent: Vec<_> = (0..200).map(|_| Http::connect(server.http_addr())).collect();
    eventually(
        "the descriptors are used up, or silent sockets are closed",
        || {
            client.expect_alive();
            server.fd_count() >= 100
        },
    );
    let before = server.cpu_time();
    std::thread::sleep(Duration::from_secs(2));
    let used = server.cpu_time() - before;
    assert!(
        used < Duration::from_millis(660),
        "{used:?} of 2 s spent on nothing"
    );
    client.expect_alive();
    // They are closed for connections that send something, before they time out after 10 s.
    for address in ["127.0.0.2", "127.0.0.1"] {
        for _ in 0..10 {
            let mut http = Http::connect_from(address, server.http_addr());
            assert!(http.still_answers(), "{address} is kept out");
        }
    }
    assert!(
        opened.elapsed() < Duration::from_secs(10),
        "{:?}",
        opened.elapsed()
    );
    server.wait_log("no descriptor is left");
    drop(silent);
    client.expect_alive();
    assert!(
        server.log().len() < 1_000,
        "log lines are limited, too: {}",
        server.log().len()
    );
}

/// Idle sockets on all ports together leave some for the admin port.
#[test]
fn limits_the_admin_port_answers_while_the_others_are_full() {
    let server = Server::builder()
        .env("WS_PORT", crate::config::free_port())
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .descriptors(256)
        .start();
    let ports = [server.http_addr(), server.ws_addr()];
    let silent: Vec<_> = (0..600).map(|n| Http::connect(ports[n % 2])).collect();
    eventually("sockets give way", || {
        server.metric("livechat_sockets_evicted_total") > 0.0
    });
    for _ in 0..20 {
        assert_eq!(Http::get(server.admin_addr(), "/live").status, 200);
    }
    drop(silent);
}

/// Balancer connections without a PROXY header do not block those that send one.
#[test]
fn limits_without_descriptors_silent_balancer_connections_are_closed() {
    let server = Server::builder()
        .env("PROXY_PROTOCOL", "true")
        .env("TRUSTED_PROXIES", "127.0.0.1")
        .env("WS_PORT", "")
        .descriptors(128)
        .start_listening();
    let opened = Instant::now();
    let silent: Vec<_> = (0..200).map(|_| Http::connect(server.http_addr())).collect();
    for _ in 0..10 {
        let mut http = Http::connect(server.http_addr());
        http.write(b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 80\r\n");
        assert!(http.still_answers(), "kept out");
    }
    assert!(
        opened.elapsed() < Duration::from_secs(10),
        "{:?}",
        opened.elapsed()
    );
    drop(silent);
}

/// Nor do idle connections of the admin port keep clients out.
#[test]
fn limits_without_descriptors_idle_admin_connections_are_closed() {
    let server = Server::builder()
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .descriptors(200)
        .start();
    let mut idle = Vec::new();
    for _ in 0..300 {
        let mut http = Http::connect(server.admin_addr());
        http.send("GET", "/live", &[]);
        http.read();
        idle.push(http);
    }
    for _ in 0..20 {
        let _client = RawWs::connect(&server, "s1", "u1", "customer");
    }
    assert_eq!(Http::get(server.admin_addr(), "/live").status, 200);
    drop(idle);
}

#[test]
fn limits_closes_are_counted_by_their_reason() {
    let server = Server::builder().env("ADMIN_ADDR", "127.0.0.1:0").start();
    let cases = [
        (Frame::new(Opcode::Binary, "x"), 1003, "unsupported_data"),
        (Frame::text("x").unmasked(), 1002, "protocol_error"),
        (Frame::text([0xff]), 1007, "invalid_utf8"),
        (Frame::text("x".repeat(70_000)), 1009, "too_big"),
        (Frame::close(1000, ""), 1000, "normal"),
    ];
    for (frame, code, _) in &cases {
        let mut ws = RawWs::connect(&server, "a-session", "a-user", "agent");
        ws.send(frame.clone());
        assert_eq!(ws.expect_close(), *code);
    }
    eventually("all are counted", || {
        let metrics = Http::get(server.admin_addr(), "/metrics").text();
        assert!(
            !metrics.contains("a-session") && !metrics.contains("a-user"),
            "a label by session or user"
        );
        cases.iter().all(|(_, _, reason)| {
            metrics
                .lines()
                .any(|line| line.contains(&format!("\"{reason}\"")) && line.ends_with(" 1"))
        })
    });
}
