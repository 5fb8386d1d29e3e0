//! Hostile requests: each is refused or closed before a route runs, and the server continues.

use std::time::{Duration, Instant};

use crate::support::http::head;
use crate::support::raw::handshake;
use crate::support::{Http, Server};

/// Sends the bytes: a refusal with one of these statuses (the connection is closed after it), or a mere close.
#[track_caller]
fn refused(server: &Server, bytes: impl AsRef<[u8]>, statuses: &[u16]) {
    let bytes = bytes.as_ref();
    let shown = bytes[..bytes.len().min(80)].escape_ascii();
    let mut http = Http::connect(server.http_addr());
    http.write(bytes);
    if let Some(response) = http.read() {
        assert!(
            statuses.contains(&response.status),
            "{shown}: {} instead of {statuses:?}",
            response.status
        );
        http.expect_closed();
    }
    assert_eq!(server.get("/health").json()["status"], "ok", "after {shown}");
}

/// As [`refused`], but requires an answer with exactly this status.
#[track_caller]
fn answered(server: &Server, bytes: impl AsRef<[u8]>, status: u16) {
    let bytes = bytes.as_ref();
    let shown = bytes[..bytes.len().min(80)].escape_ascii();
    let response = Http::exchange(server.http_addr(), bytes)
        .unwrap_or_else(|| panic!("{shown}: closed without an answer"));
    assert_eq!(response.status, status, "{shown}: {response:?}");
    assert_eq!(server.get("/health").json()["status"], "ok", "after {shown}");
}

#[test]
fn http_a_long_uri_is_414() {
    let server = Server::start();
    for length in [8193, 9000, 12_000] {
        let path = format!("/{}", "a".repeat(length - 1));
        answered(&server, head("GET", &path, &[]), 414);
        // Before any route and any check of ids.
        let path = format!("/api/session/{}/connection-status", "a".repeat(length));
        answered(&server, head("GET", &path, &[]), 414);
        answered(
            &server,
            handshake(&format!("/ws/{}/u/customer", "a".repeat(length)), &[]),
            414,
        );
    }
    let path = format!("/{}", "a".repeat(8191));
    answered(&server, head("GET", &path, &[]), 404);
    refused(
        &server,
        head("GET", &format!("/{}", "a".repeat(100_000)), &[]),
        &[414, 431],
    );
}

#[test]
fn http_a_big_head_is_431() {
    let server = Server::start();
    for size in [17_000, 100_000, 2_000_000] {
        let value = "a".repeat(size);
        answered(&server, head("GET", "/health", &[("X-Big", &value)]), 431);
    }
    let value = "a".repeat(12_000);
    answered(&server, head("GET", "/health", &[("X-Big", &value)]), 200);
}

#[test]
fn http_many_headers_are_431() {
    let server = Server::start();
    let with = |count: usize| {
        let names: Vec<_> = (0..count - 1).map(|i| format!("X-{i}")).collect();
        let headers: Vec<_> = names.iter().map(|name| (name.as_str(), "v")).collect();
        head("GET", "/health", &headers) // `Host` is one more
    };
    answered(&server, with(64), 200);
    answered(&server, with(65), 431);
    answered(&server, with(400), 431);
}

#[test]
fn http_two_lengths_are_400_before_any_route() {
    let server = Server::start();
    let framings: [&[(&str, &str)]; 8] = [
        &[("Transfer-Encoding", "chunked"), ("Content-Length", "5")],
        &[("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
        &[("Transfer-Encoding", "chunked"), ("Content-Length", "0")],
        &[("Content-Length", "5"), ("Content-Length", "5")],
        &[("Content-Length", "5"), ("Content-Length", "6")],
        &[("Content-Length", "0"), ("Content-Length", "0")],
        &[("Content-Length", "5, 5")],
        &[("Content-Length", "+5")],
    ];
    // On unknown paths and with wrong methods too: no 404 or 405 in front of it.
    for (method, path) in [
        ("GET", "/health"),
        ("POST", "/health"),
        ("POST", "/nothing"),
        ("GET", "/ws/s/u/customer"),
    ] {
        for framing in framings {
            refused(&server, head(method, path, framing) + "0\r\n\r\n", &[400]);
        }
    }
}

#[test]
fn http_smuggled_requests_are_never_run() {
    let server = Server::builder().env("LOG_LEVEL", "debug").start();
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    for framing in [
        [("Transfer-Encoding", "chunked"), ("Content-Length", "4")],
        [("Content-Length", "5"), ("Content-Length", "50")],
        [
            ("Transfer-Encoding", "chunked"),
            ("Transfer-Encoding", "identity"),
        ],
        [("Transfer-Encoding", "xchunked"), ("Content-Length", "4")],
    ] {
        refused(
            &server,
            head("POST", "/health", &framing) + smuggled,
            &[400, 405, 501],
        );
    }
    // Once a later request's log line is there, so are those of the earlier ones.
    server.get("/afterwards");
    server.wait_log("/afterwards");
    let ran = server.log().into_iter().find(|line| line.contains("/smuggled"));
    assert!(ran.is_none(), "{ran:?}");
}

#[test]
fn http_an_upgrade_with_a_body_is_400_or_closed() {
    let server = Server::start();
    for framing in [("Content-Length", "5"), ("Transfer-Encoding", "chunked")] {
        refused(
            &server,
            handshake("/ws/s/u/customer", &[framing]) + "hello",
            &[400],
        );
    }
    assert_eq!(server.health()["connections"], 0);
}

#[test]
fn http_a_missing_host_or_two_hosts_are_400() {
    let server = Server::builder().env("ADMIN_ADDR", "127.0.0.1:0").start();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (path, headers) in [
        ("/health", ""),
        ("/ready", ""),
        ("/nothing", ""),
        ("/ws/s/u/customer", upgrade),
    ] {
        for hosts in ["", "Host: a\r\nHost: b\r\n", "Host: a\r\nHost: a\r\n"] {
            let bytes = format!("GET {path} HTTP/1.1\r\n{hosts}{headers}\r\n");
            answered(&server, &bytes, 400);
        }
    }
    let bytes = b"GET /metrics HTTP/1.1\r\n\r\n";
    let admin = Http::exchange(server.admin_addr(), bytes).expect("an answer");
    assert_eq!(admin.status, 400, "{admin:?}");
    assert_eq!(server.health()["connections"], 0);
    // One is right, be it empty (RFC 9112, section 3.2); HTTP/1.0 had none.
    for good in [
        "GET /health HTTP/1.1\r\nHost:\r\n\r\n",
        "GET /health HTTP/1.0\r\n\r\n",
    ] {
        answered(&server, good, 200);
    }
}

#[test]
fn http_garbage_is_400_or_closed() {
    let server = Server::start();
    let inputs: [&[u8]; 14] = [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"garbage\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nNo colon here\r\n\r\n",
        b"GET /health HTTP/1.1\r\nBad Name: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
        b"GET /he\x00lth HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /he lth HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        // The start of a TLS handshake.
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n\r\n",
        // A WebSocket frame without a handshake.
        b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58\r\n\r\n",
        b"\xff\xfe\xfd\r\n\r\n",
    ];
    for input in inputs {
        refused(&server, input, &[400, 505]);
    }
}

#[test]
fn http_unusual_request_lines_do_no_harm() {
    let server = Server::start();
    // HTTP/1.0 is served, and closed afterwards.
    let mut http = Http::connect(server.http_addr());
    http.write(b"GET /live HTTP/1.0\r\n\r\n");
    assert_eq!(http.read().expect("an answer").status, 200);
    http.expect_closed();
    // A connection that requests keep-alive is kept, with `Connection: keep-alive`.
    let mut http = Http::connect(server.http_addr());
    for _ in 0..2 {
        http.write(b"GET /live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let answer = http.read().expect("an answer");
        assert_eq!(answer.header("connection"), Some("keep-alive"));
    }
    let closing = Server::builder().env("HTTP_KEEP_ALIVE", "0s").start();
    let asked = b"GET /live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    let answer = Http::exchange(closing.http_addr(), asked).expect("an answer");
    assert_eq!(answer.header("connection"), Some("close"));
    // The absolute form names the same route; the asterisk and the authority form name none.
    let absolute = format!(
        "GET http://{}/live HTTP/1.1\r\nHost: x\r\n\r\n",
        server.http_addr()
    );
    answered(&server, absolute, 200);
    for line in ["OPTIONS * HTTP/1.1", "CONNECT example.com:443 HTTP/1.1"] {
        let response = Http::exchange(
            server.http_addr(),
            format!("{line}\r\nHost: x\r\n\r\n").as_bytes(),
        );
        assert!(
            response.is_none_or(|response| response.status == 204 || response.status >= 400),
            "{line}"
        );
    }
    assert_eq!(server.health()["status"], "ok");
}

#[test]
fn http_an_unread_body_does_no_harm() {
    let server = Server::start();
    let mut http = Http::connect(server.http_addr());
    http.write(head("POST", "/health", &[("Content-Length", "11")]).as_bytes());
    http.write(b"hello world");
    assert_eq!(http.read().expect("an answer").status, 405);
    // Kept or closed, the body's bytes are never taken for a request.
    http.send("GET", "/live", &[]);
    assert!(http.read().is_none_or(|response| response.status == 200));
    let mut http = Http::connect(server.http_addr());
    http.write(head("POST", "/health", &[("Content-Length", "1000000000000")]).as_bytes());
    assert_eq!(http.read().expect("an answer").status, 405);
    let mut http = Http::connect(server.http_addr());
    http.write(
        head(
            "GET",
            "/live",
            &[("Content-Length", "11"), ("Expect", "100-continue")],
        )
        .as_bytes(),
    );
    assert!(
        http.read()
            .is_some_and(|response| matches!(response.status, 100 | 200 | 417))
    );
}

#[test]
fn http_a_slow_head_is_closed() {
    let server = Server::start();
    let started = Instant::now();
    let mut silent = Http::connect(server.http_addr());
    let mut stuck = Http::connect(server.http_addr());
    stuck.write(b"GET /health HT");
    // A byte now and then does not buy more time.
    let mut dripping = Http::connect(server.http_addr());
    dripping.write(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ");
    dripping.set_read_timeout(Duration::from_millis(300));
    let mut head = dripping.into_parts().0;
    loop {
        use std::io::{Read, Write};
        if head.write_all(b"a").is_err() {
            break;
        }
        match head.read(&mut [0; 1024]) {
            Ok(0) => break,
            Ok(_) => {} // a 408 before the close
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) => {}
            Err(_) => break,
        }
        assert!(
            started.elapsed() < Duration::from_secs(45),
            "a dripping head was not closed"
        );
    }
    for (http, name) in [(&mut silent, "silent"), (&mut stuck, "stuck")] {
        if let Some(response) = http.read() {
            assert_eq!(response.status, 408, "{name}");
            http.expect_closed();
        }
    }
    // The limit is ten seconds, and not much less.
    assert!(
        started.elapsed() > Duration::from_secs(5),
        "closed after only {:?}",
        started.elapsed()
    );
    assert_eq!(server.health()["status"], "ok");
}

#[test]
fn http_descriptors_of_refused_clients_are_freed() {
    let server = Server::start();
    server.get("/health");
    let before = server.fd_count();
    for _ in 0..50 {
        Http::exchange(server.http_addr(), b"garbage\r\n\r\n");
        drop(Http::connect(server.http_addr()));
        drop(Http::exchange(
            server.http_addr(),
            handshake("/ws/s/u/nobody", &[]).as_bytes(),
        ));
    }
    crate::support::eventually("all descriptors are back", || server.fd_count() <= before);
}
