//! Shutdown by signal: the server reports it, closes its connections and exits with 0; a second signal ends it at once.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::raw::handshake;
use crate::support::{Client, Frame, Http, PATIENCE, RawWs, Server, eventually};

/// So many connections that a drain takes a while: at most a hundred are closed each second.
fn crowd(server: &Server, connections: usize) -> Vec<RawWs> {
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let connect = |n| RawWs::connect(server, &format!("crowd{n}"), "u", "agent");
    (0..connections).map(connect).collect()
}

fn wait_until_draining(server: &Server) {
    let addr = server.http_addr();
    eventually("draining", || {
        Http::try_get(addr, "/ready").is_ok_and(|ready| ready.status == 503)
    });
}

#[test]
fn shutdown_drains_refuses_and_exits_0() {
    for signal in ["TERM", "INT", "QUIT"] {
        let port = crate::config::free_port();
        let server = Server::builder()
            .env("DRAIN_TIMEOUT", "60s")
            .env("WS_PORT", port)
            .env("ADMIN_ADDR", "127.0.0.1:0")
            .start();
        let mut clients = crowd(&server, 1_000);
        let listeners = [server.http_addr(), server.ws_addr(), server.admin_addr()];
        let mut kept: Vec<_> = listeners.map(Http::connect).into();
        assert!(kept.iter_mut().all(Http::still_answers));
        server.signal(signal);

        // Not ready on every port, but alive; upgrades are refused on both that have them.
        for addr in listeners {
            eventually("not ready", || {
                Http::try_get(addr, "/ready").is_ok_and(|ready| ready.status == 503)
            });
            assert_eq!(Http::get(addr, "/live").status, 200, "draining is not dying");
        }
        for addr in [server.http_addr(), server.ws_addr()] {
            let refusal = RawWs::try_connect(addr, "/ws/s1/late/agent", &[])
                .err()
                .expect("a refusal");
            refusal.assert_error(503);
            assert!(
                refusal
                    .header("retry-after")
                    .is_some_and(|value| value.parse::<u32>().is_ok()),
                "{refusal:?}"
            );
        }
        for client in &mut clients {
            assert_eq!(client.expect_close(), 1001);
        }
        assert_eq!(server.wait_exit(PATIENCE), Some(0), "{signal}");
        assert!(Http::try_connect(server.http_addr()).is_err());
    }
}

/// A client that connects as the drain starts gets 503 or 1001: a bare disconnect would look like a failure.
#[test]
fn shutdown_closes_connections_that_are_just_joining() {
    let (mut greeted, mut refused) = (0, 0);
    for try_number in 0..12 {
        let server = Server::builder().env("DRAIN_TIMEOUT", "3s").start();
        // It never answers its close: the listeners stay for it.
        let deaf = RawWs::connect(&server, "s0", "deaf", "agent");
        let request = handshake(&format!("/ws/s{try_number}/u/agent"), &[]);
        let (all_but_the_end, end) = request.split_at(request.len() - 2);
        let mut waiting: Vec<_> = (0..150)
            .map(|_| {
                let mut http = Http::connect(server.http_addr());
                http.write(all_but_the_end.as_bytes());
                http
            })
            .collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(fastrand::u64(0..6_000)));
                server.signal("TERM");
            });
            // Spread over the moment of the signal.
            for http in &mut waiting {
                http.write(end.as_bytes());
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        for http in waiting {
            match RawWs::upgraded(http) {
                Ok(mut ws) => {
                    assert_eq!(ws.expect_close(), 1001);
                    greeted += 1;
                }
                Err(refusal) => {
                    refusal.assert_error(503);
                    refused += 1;
                }
            }
        }
        drop(deaf);
    }
    eprintln!("{greeted} greeted, {refused} refused");
    assert!(
        greeted > 0 && refused > 0,
        "{greeted} greeted, {refused} refused: not near the moment"
    );
}

#[test]
fn shutdown_without_clients_is_quick() {
    let server = Server::builder().env("DRAIN_TIMEOUT", "600s").start();
    server.signal("TERM");
    assert_eq!(server.wait_exit(PATIENCE), Some(0), "with nobody to send away");
}

#[test]
fn shutdown_spreads_closes_over_the_drain() {
    let server = Server::builder().env("DRAIN_TIMEOUT", "10s").start();
    let clients = crowd(&server, 600);
    server.signal("TERM");
    let waits: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                assert_eq!(client.expect_close(), 1001);
                Instant::now()
            })
        })
        .collect();
    let ends: Vec<_> = waits
        .into_iter()
        .map(|wait| wait.join().expect("a client"))
        .collect();
    let (first, last) = (ends.iter().min().expect("one"), ends.iter().max().expect("one"));
    // Closed all at once, they would all reconnect at once. This spread is far more than scheduling explains.
    assert!(
        last.duration_since(*first) > Duration::from_secs(2),
        "all within {:?}",
        last.duration_since(*first)
    );
    assert_eq!(server.wait_exit(PATIENCE), Some(0));
}

/// What few connections need is a moment, however long a drain may take.
#[test]
fn shutdown_takes_no_longer_than_its_connections_need() {
    for connections in [1, 2, 20, 200] {
        let server = Server::builder().env("DRAIN_TIMEOUT", "3600s").start();
        let mut clients = crowd(&server, connections);
        server.signal("TERM");
        for client in &mut clients {
            assert_eq!(client.expect_close(), 1001);
        }
        // A hundred a second are two seconds at most. Spread over what the drain may take it would be half an hour.
        assert_eq!(server.wait_exit(PATIENCE), Some(0), "{connections} connections");
    }
}

#[test]
fn shutdown_at_once_when_the_drain_is_zero() {
    let server = Server::builder().env("DRAIN_TIMEOUT", "0s").start();
    let mut client = RawWs::connect(&server, "s1", "u1", "agent");
    server.signal("TERM");
    assert_eq!(client.expect_close(), 1001);
    assert_eq!(server.wait_exit(PATIENCE), Some(0));
}

#[test]
fn shutdown_does_not_wait_for_clients_that_never_answer() {
    let server = Server::builder().env("DRAIN_TIMEOUT", "1s").start();
    let deaf: Vec<_> = (0..5)
        .map(|n| RawWs::connect(&server, "s1", &format!("u{n}"), "agent"))
        .collect();
    let mut head = Http::connect(server.http_addr());
    head.write(b"GET /heal");
    let idle = Http::connect(server.http_addr());
    server.signal("TERM");
    assert_eq!(server.wait_exit(PATIENCE), Some(0));
    drop((deaf, head, idle));
}

#[test]
fn shutdown_is_immediate_at_the_second_signal() {
    for (first, second) in [("TERM", "TERM"), ("INT", "TERM"), ("TERM", "INT")] {
        let server = Server::builder().env("DRAIN_TIMEOUT", "600s").start();
        // Half a minute of closes.
        let _clients = crowd(&server, 3_000);
        server.signal(first);
        wait_until_draining(&server);
        // Neither counts as the second.
        server.signal("HUP");
        server.signal("USR1");
        server.wait_log("SIGUSR1");
        assert!(!server.has_exited());
        server.signal(second);
        // A drain would end with 0.
        assert_eq!(server.wait_exit(PATIENCE), Some(1), "{first}, {second}");
        server.wait_log("second signal");
    }
}

#[tokio::test]
async fn shutdown_serves_connections_until_they_are_closed() {
    let server = Server::builder()
        .env("DRAIN_TIMEOUT", "600s")
        .env("RATE_LIMIT_MESSAGES", 0)
        .start();
    let _crowd = crowd(&server, 3_000);
    let mut clients = Vec::new();
    for number in 0..40 {
        let session = format!("s{number}");
        clients.push(Client::connect(&server, &session, "u", "agent").await);
    }
    server.signal("TERM");
    wait_until_draining(&server);
    // They are sent away within half a minute: most of them are still here.
    let mut served = 0;
    for client in &mut clients {
        let late = json!({"type": "send_message", "request_id": "late", "data": {"message": "late"}});
        if client.try_send(late).await
            && let Some(answer) = client.next_or_end(|frame| frame["request_id"] == "late").await
        {
            assert_eq!(answer["type"], "message_sent", "{answer}");
            served += 1;
        }
    }
    assert!(served >= 1, "nobody was served while draining");
}

#[test]
fn shutdown_under_load_answers_or_closes_everyone() {
    // They read one after the other, which takes long on a busy machine.
    let server = Server::builder()
        .env("DRAIN_TIMEOUT", "10s")
        .env("RATE_LIMIT_MESSAGES", 0)
        .start();
    let mut clients: Vec<_> = (0..20)
        .map(|n| RawWs::connect(&server, "s1", &format!("u{n}"), "agent"))
        .collect();
    for round in 0..50 {
        for client in &mut clients {
            client.send(Frame::text(
                json!({"type": "send_message", "data": {"message": format!("{round}")}}).to_string(),
            ));
        }
    }
    server.signal("TERM");
    for client in &mut clients {
        assert_eq!(client.expect_close(), 1001);
    }
    assert_eq!(server.wait_exit(PATIENCE), Some(0));
    let panicked = server.log().into_iter().find(|line| line.contains("panicked"));
    assert!(panicked.is_none(), "{panicked:?}");
}
