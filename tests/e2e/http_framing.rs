//! Request smuggling (RFC 9112, section 11.2): a head that gives its body's length twice is refused wherever it stands
//! on a connection, whatever was asked before it.

use crate::support::http::head;
use crate::support::{Http, Server};

/// Heads whose length can be read in two ways, with what follows them.
const AMBIGUOUS: [(&[(&str, &str)], &str); 4] = [
    (
        &[("Transfer-Encoding", "chunked"), ("Content-Length", "5")],
        "0\r\n\r\n",
    ),
    (
        &[("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
        "0\r\n\r\n",
    ),
    (&[("Content-Length", "5"), ("Content-Length", "5")], "hello"),
    (&[("Content-Length", "0"), ("Content-Length", "0")], ""),
];

/// Requests that are answered, each with a body, on every kind of answer that the router gives.
fn firsts() -> Vec<String> {
    let bodies = [
        ("Content-Length: 5", "hello"),
        ("Content-Length: 0", ""),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
    ];
    let long = format!("/{}", "a".repeat(8_500));
    let heads = [
        ("POST", "/live", "Host: x\r\n"),
        ("GET", "/live", "Host: x\r\n"),
        ("GET", "/nothing", "Host: x\r\n"),
        ("OPTIONS", "/live", "Host: x\r\n"),
        ("HEAD", "/live", "Host: x\r\n"),
        ("POST", "/live", ""),
        ("POST", "/live", "Host: x\r\nHost: y\r\n"),
        ("POST", long.as_str(), "Host: x\r\n"),
        ("GET", "/ws/s/u/customer", "Host: x\r\n"),
        ("GET", "/api/session/%00/connection-status", "Host: x\r\n"),
    ];
    let mut firsts = Vec::new();
    for (method, path, host) in heads {
        for (length, body) in bodies {
            firsts.push(format!(
                "{method} {path} HTTP/1.1\r\n{host}{length}\r\n\r\n{body}"
            ));
        }
    }
    firsts
}

/// The second request is refused, or the connection ended before it.
#[track_caller]
fn expect_refusal(http: &mut Http, after: &str) {
    if let Some(response) = http.read() {
        assert_eq!(
            response.status,
            400,
            "served after {}: {response:?}",
            after.escape_debug()
        );
        http.expect_closed();
    }
}

#[test]
fn framing_is_watched_after_every_kind_of_answer() {
    let server = Server::builder().env("ADMIN_ADDR", "127.0.0.1:0").start();
    for address in [server.http_addr(), server.admin_addr()] {
        for first in firsts() {
            let method = first.split(' ').next().expect("a method");
            for (framing, rest) in AMBIGUOUS {
                let second = head("GET", "/live", framing) + rest;
                // In one packet, and after the answer.
                let mut http = Http::connect(address);
                http.write(format!("{first}{second}").as_bytes());
                let answer = http.read_for(method).expect("an answer to the first");
                assert_ne!(answer.status, 101);
                expect_refusal(&mut http, &first);
                let mut http = Http::connect(address);
                http.write(first.as_bytes());
                http.read_for(method).expect("an answer to the first");
                http.write(second.as_bytes());
                expect_refusal(&mut http, &first);
            }
        }
    }
    assert_eq!(server.health()["status"], "ok");
}

/// A body of a known length ends where it says: the connection is kept, and what follows is watched.
#[test]
fn framing_of_known_bodies_keeps_the_connection() {
    let server = Server::start();
    let mut http = Http::connect(server.http_addr());
    for length in [0, 1, 5, 200] {
        let length_text = length.to_string();
        http.write(head("POST", "/live", &[("Content-Length", &length_text)]).as_bytes());
        http.write("\n".repeat(length).as_bytes());
        // Whether hyper has the body before the answer decides whether it keeps the connection: asked in one packet.
        let answer = http.read();
        assert_eq!(answer.map(|answer| answer.status), Some(405), "{length}");
        http = Http::connect(server.http_addr());
        let first = head("POST", "/live", &[("Content-Length", &length_text)]) + &"\n".repeat(length);
        http.write((first.clone() + &head("GET", "/live", &[])).as_bytes());
        assert_eq!(http.read().map(|answer| answer.status), Some(405), "{length}");
        assert_eq!(http.read().map(|answer| answer.status), Some(200), "{length}");
        let (framing, rest) = AMBIGUOUS[0];
        http.write((first + &head("GET", "/live", framing) + rest).as_bytes());
        assert_eq!(http.read().map(|answer| answer.status), Some(405), "{length}");
        assert_eq!(http.read().map(|answer| answer.status), Some(400), "{length}");
        http.expect_closed();
        http = Http::connect(server.http_addr());
    }
}
