//! Keep-alive as load balancers use it: an idle connection lives for `HTTP_KEEP_ALIVE`, and no longer when its
//! descriptor is needed.

use std::time::{Duration, Instant};

use crate::support::raw::handshake;
use crate::support::{Http, PATIENCE, RawWs, Server, eventually};

#[test]
fn keep_alive_lasts_longer_than_a_head_may_take() {
    let server = Server::start();
    // As HAProxy did: a health check, and a handshake on the same connection 9.96 s later. Others wait for 12 s.
    let mut checks: Vec<_> = [9_960, 12_000]
        .into_iter()
        .map(|pause| {
            let mut http = Http::connect(server.http_addr());
            assert!(http.still_answers());
            (Duration::from_millis(pause), Instant::now(), http)
        })
        .collect();
    let mut kept = checks.pop().expect("two").2;
    let (pause, asked, http) = checks.pop().expect("one");
    std::thread::sleep(pause.saturating_sub(asked.elapsed()));
    let mut http = http;
    http.write(handshake("/ws/s/u/customer", &[]).as_bytes());
    let mut ws = RawWs::upgraded(http).expect("an upgrade after 9.96 s");
    assert_eq!(ws.read_json()["type"], "connection_established");
    std::thread::sleep(Duration::from_millis(12_000).saturating_sub(asked.elapsed()));
    for _ in 0..3 {
        assert!(kept.still_answers(), "after 12 s");
    }
    // A head that was started has ten seconds to complete.
    kept.write(b"GET /live HTTP/1.1\r\nHost: x\r\n");
    let began = Instant::now();
    assert!(kept.read().is_none(), "half a head was answered");
    assert!(began.elapsed() > Duration::from_secs(5), "{:?}", began.elapsed());
    ws.expect_alive();
}

#[test]
fn keep_alive_ends_cleanly_and_only_between_requests() {
    let server = Server::builder().env("HTTP_KEEP_ALIVE", "1500ms").start();
    let mut idle = Http::connect(server.http_addr());
    let mut busy = Http::connect(server.http_addr());
    assert!(idle.still_answers());
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        assert!(
            busy.still_answers(),
            "a connection in use was closed after {:?}",
            began.elapsed()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    idle.expect_closed();
    assert!(
        began.elapsed() < Duration::from_secs(9),
        "closed only after {:?}",
        began.elapsed()
    );
    // The first half of a head is a request that has begun: the idle time no longer counts.
    busy.write(b"GET /live HTTP/1.1\r\nHo");
    std::thread::sleep(Duration::from_millis(2_500));
    busy.write(b"st: x\r\n\r\n");
    assert_eq!(busy.read().map(|answer| answer.status), Some(200));
    let answered = Instant::now();
    busy.expect_closed();
    assert!(
        answered.elapsed() >= Duration::from_millis(1_000),
        "{:?}",
        answered.elapsed()
    );
}

/// Answers announce how long the connection is kept, or that it is closed.
#[test]
fn keep_alive_is_announced() {
    let server = Server::start();
    let mut http = Http::connect(server.http_addr());
    for _ in 0..2 {
        http.send("GET", "/live", &[]);
        let answer = http.read().expect("an answer");
        assert_eq!(answer.header("keep-alive"), Some("timeout=75"), "{answer:?}");
        assert_eq!(answer.header("connection"), Some("keep-alive"), "{answer:?}");
    }
    http.send("GET", "/live", &[("Connection", "close")]);
    let answer = http.read().expect("an answer");
    assert_eq!(answer.header("keep-alive"), None, "{answer:?}");
    assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
    http.expect_closed();

    let server = Server::builder().env("HTTP_KEEP_ALIVE", "0s").start();
    let mut http = Http::connect(server.http_addr());
    http.send("GET", "/live", &[]);
    let answer = http.read().expect("an answer");
    assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
    http.expect_closed();
}

#[test]
fn keep_alive_ends_with_an_answer_while_draining() {
    let server = Server::builder().env("DRAIN_TIMEOUT", "5s").start();
    // A client that does not answer the close frame prolongs the drain.
    let _ws = RawWs::connect(&server, "s", "u", "customer");
    let mut http = Http::connect(server.http_addr());
    assert!(http.still_answers());
    server.signal("TERM");
    eventually("not ready", || server.get("/ready").status == 503);
    http.send("GET", "/live", &[]);
    let answer = http.read().expect("an answer");
    assert_eq!(
        (answer.status, answer.header("connection")),
        (200, Some("close")),
        "{answer:?}"
    );
    http.expect_closed();
    assert_eq!(server.wait_exit(PATIENCE), Some(0));
}

/// When descriptors run out, the longest idle connection is closed first, so that health is still answered.
#[test]
fn idle_connections_are_closed_when_descriptors_run_out() {
    let server = Server::builder()
        .env("ADMIN_ADDR", "127.0.0.1:0")
        .descriptors(128)
        .start();
    let mut client = RawWs::connect(&server, "s1", "u1", "agent");
    let mut idle = Vec::new();
    for number in 0..300 {
        let mut http = Http::connect(server.http_addr());
        assert!(http.still_answers(), "connection {number} was refused");
        idle.push(http);
    }
    // The first ones are closed, the last ones are not.
    idle[0].expect_closed();
    assert!(
        idle.last_mut().expect("300").still_answers(),
        "the newest was closed"
    );
    assert!(server.fd_count() < 128);
    for _ in 0..20 {
        assert_eq!(server.health()["status"], "ok");
        assert_eq!(Http::get(server.admin_addr(), "/live").status, 200);
    }
    assert_eq!(server.metric("livechat_accept_errors_total"), 0.0);
    client.expect_alive();
}
