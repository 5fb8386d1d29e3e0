//! Request smuggling (RFC 9112, section 11.2): a head that gives its body's length twice is refused wherever it stands
//! on a connection, whatever was asked before it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::mpsc;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;

use crate::support::http::head;
use crate::support::{Http, Server};

/// What becomes of a request, and of the one that is pipelined behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    /// The framing guard answers 400; hyper alone would serve it.
    RefusedByGuard,
    /// hyper answers 400 by itself.
    RefusedByHyper,
    /// It is answered, and its connection closed.
    Last,
    /// Both are answered.
    Kept,
}

/// The version, how the head gives the length of its body, the body, and the verdict.
const FRAMINGS: [(&str, &[&str], &str, Verdict); 20] = {
    use Verdict::{Kept, Last, RefusedByGuard, RefusedByHyper};
    const CHUNKS: &str = "5\r\nhello\r\n0\r\n\r\n";
    const CHUNKED: &str = "Transfer-Encoding: chunked";
    const FIVE: &str = "Content-Length: 5";
    [
        ("1.1", &[CHUNKED, FIVE], CHUNKS, RefusedByGuard),
        ("1.1", &[FIVE, CHUNKED], CHUNKS, RefusedByGuard),
        ("1.1", &[FIVE, FIVE], "hello", RefusedByGuard),
        ("1.0", &[FIVE, FIVE], "hello", RefusedByGuard),
        // hyper does not read a length that it ignores.
        ("1.1", &[CHUNKED, "Content-Length: x"], CHUNKS, RefusedByGuard),
        (
            "1.1",
            &["Content-Length: 5", "Content-Length: 05"],
            "hello",
            RefusedByGuard,
        ),
        (
            "1.1",
            &["Content-Length: 5", "Content-Length: 6"],
            "hello",
            RefusedByHyper,
        ),
        ("1.1", &["Content-Length: 5, 5"], "hello", RefusedByHyper),
        ("1.1", &["Content-Length: x"], "hello", RefusedByHyper),
        ("1.1", &["Content-Length: +5"], "hello", RefusedByHyper),
        ("1.1", &["Content-Length:"], "hello", RefusedByHyper),
        (
            "1.1",
            &["Content-Length: 99999999999999999999"],
            "hello",
            RefusedByHyper,
        ),
        ("1.1", &["Content-Length : 5"], "hello", RefusedByHyper),
        ("1.1", &["Transfer-Encoding: gzip"], "hello", RefusedByHyper),
        (
            "1.1",
            &["Transfer-Encoding: chunked, gzip"],
            CHUNKS,
            RefusedByHyper,
        ),
        ("1.0", &[CHUNKED], CHUNKS, RefusedByHyper),
        ("1.1", &[CHUNKED], CHUNKS, Last),
        ("1.1", &["Transfer-Encoding: gzip, chunked"], CHUNKS, Last),
        ("1.1", &[FIVE], "hello", Kept),
        ("1.1", &["Content-Length: 0"], "", Kept),
    ]
};

/// A request with this framing, and a plain one behind it.
fn pipelined((version, framing, body, _): (&str, &[&str], &str, Verdict)) -> String {
    let lines = framing.join("\r\n");
    let second = head("GET", "/live", &[]);
    format!("POST /live HTTP/{version}\r\nHost: x\r\n{lines}\r\n\r\n{body}{second}")
}

/// docs/ARCHITECTURE.md ("Plain HTTP") has this table.
#[test]
fn framing_is_refused_by_the_guard_or_by_hyper() {
    let server = Server::start();
    for row in FRAMINGS {
        let mut http = Http::connect(server.http_addr());
        http.write(pipelined(row).as_bytes());
        let first = http.read().unwrap_or_else(|| panic!("no answer: {row:?}"));
        match row.3 {
            Verdict::RefusedByGuard => {
                let body = first.assert_error(400).json();
                assert_eq!(body["error"], "the length of the body is given twice", "{row:?}");
                http.expect_closed();
            }
            Verdict::RefusedByHyper => {
                assert_eq!((first.status, first.text().as_str()), (400, ""), "{row:?}");
                http.expect_closed();
            }
            Verdict::Last => {
                assert_eq!(first.status, 405, "{row:?}");
                assert_eq!(first.header("connection"), Some("close"), "{row:?}");
                http.expect_closed();
            }
            Verdict::Kept => {
                assert_eq!(first.status, 405, "{row:?}");
                assert_eq!(http.read().map(|second| second.status), Some(200), "{row:?}");
            }
        }
    }
}

/// What the guard is for: should hyper refuse one of these by itself one day, the guard need not.
#[test]
fn framing_that_the_guard_refuses_is_served_by_hyper_alone() {
    let address = hyper_alone();
    for row in FRAMINGS {
        let mut http = Http::connect_foreign(address);
        http.write(pipelined(row).as_bytes());
        let answer = http.read().map(|answer| answer.status);
        let expected = match row.3 {
            Verdict::RefusedByHyper => 400,
            Verdict::RefusedByGuard | Verdict::Last | Verdict::Kept => 204,
        };
        assert_eq!(answer, Some(expected), "{row:?}");
    }
}

/// hyper's server without ours around it; it answers every request with 204.
fn hyper_alone() -> SocketAddr {
    let (bound, address) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
                .await
                .expect("a listener");
            bound
                .send(listener.local_addr().expect("an address"))
                .expect("the test waits");
            while let Ok((socket, _)) = listener.accept().await {
                let service = service_fn(|_| async {
                    let mut answer = Response::new(Empty::<Bytes>::new());
                    *answer.status_mut() = StatusCode::NO_CONTENT;
                    Ok::<_, Infallible>(answer)
                });
                let connection = http1::Builder::new().serve_connection(TokioIo::new(socket), service);
                tokio::spawn(connection);
            }
        });
    });
    address.recv().expect("the thread binds")
}

/// Heads with an ambiguous length, and what follows them.
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
fn framing_is_enforced_after_every_kind_of_answer() {
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

/// A body of known length ends where its header says: the connection is kept, and framing is still enforced.
#[test]
fn bodies_of_known_length_keep_the_connection_open() {
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
