//! What real clients put into a handshake: lengths of nothing, subprotocols, lists of tokens.

use serde_json::json;

use crate::support::raw::{HANDSHAKE, handshake, handshake_with};
use crate::support::{Frame, Http, RawWs, Response, Server, eventually};

const PATH: &str = "/ws/s1/u1/customer";

#[track_caller]
fn open(server: &Server, headers: &[(&str, &str)]) -> Response {
    Http::request(server.http_addr(), "GET", PATH, headers)
}

/// The JDK's WebSocket client sends it (RFC 9112, section 6: a length of zero is no body).
#[test]
fn handshake_with_a_length_of_zero_has_no_body() {
    let server = Server::start();
    for zero in ["0", "00", " 0 "] {
        let mut http = Http::connect(server.http_addr());
        let frame = Frame::text(json!({"type": "ping", "request_id": "early"}).to_string()).encode();
        http.write(&[handshake(PATH, &[("Content-Length", zero)]).into_bytes(), frame].concat());
        let response = http.read().expect("an answer");
        assert_eq!(response.status, 101, "{zero:?}: {response:?}");
        assert!(
            response
                .header("connection")
                .is_some_and(|value| value.eq_ignore_ascii_case("upgrade")),
            "{response:?}"
        );
        assert_eq!(response.header("content-length"), None);
        assert_eq!(response.header("transfer-encoding"), None);
        let mut ws = RawWs::over(http);
        assert_eq!(ws.read_json()["type"], "connection_established");
        assert_eq!(ws.next("pong")["request_id"], "early");
    }
}

#[test]
fn handshake_with_a_body_is_refused_and_counted() {
    let server = Server::builder().env("ADMIN_ADDR", "127.0.0.1:0").start();
    for framing in [
        &[("Content-Length", "5")][..],
        &[("Content-Length", "10")],
        &[("Transfer-Encoding", "chunked")],
    ] {
        let response = open(&server, &[&HANDSHAKE[..], framing].concat());
        assert_eq!(response.status, 400, "{framing:?}: {response:?}");
    }
    assert_eq!(upgrades_refused(&server, "body"), 3.0);
    for framing in [
        &[("Content-Length", "0"), ("Content-Length", "0")][..],
        &[("Content-Length", "0"), ("Transfer-Encoding", "chunked")],
    ] {
        let response = open(&server, &[&HANDSHAKE[..], framing].concat());
        assert_eq!(response.status, 400, "{framing:?}: {response:?}");
    }
    assert_eq!(requests_refused(&server, "ambiguous_length"), 2.0);
    for length in ["0, 0", "+0", "-0", "0x0", ""] {
        let bytes = handshake(PATH, &[("Content-Length", length)]);
        let response = Http::exchange(server.http_addr(), bytes.as_bytes());
        assert!(
            response.as_ref().is_none_or(|response| response.status == 400),
            "{length:?}: {response:?}"
        );
    }
    eventually("all are counted", || {
        requests_refused(&server, "malformed") == 5.0
    });
    assert_eq!(server.health()["connections"], 0);
}

#[test]
fn handshake_accepts_the_subprotocol_livechat_v1_if_offered() {
    let server = Server::start();
    let name = "Sec-WebSocket-Protocol";
    for offers in [
        &["livechat.v1"][..],
        &["livechat.v1, chat"],
        &["chat,superchat ,livechat.v1"],
        &["chat", "livechat.v1"],
        &["livechat.v1", "chat"],
        &["livechat.v1, livechat.bearer.c2VjcmV0"],
        &["livechat.bearer.c2VjcmV0,\tlivechat.v1"],
        &["chat, \u{e9}", "livechat.v1"],
        &["\u{e9}, livechat.v1"],
    ] {
        let offers: Vec<_> = offers.iter().map(|offer| (name, *offer)).collect();
        let response = open(&server, &[&HANDSHAKE[..], &offers].concat());
        assert_eq!(response.status, 101, "{offers:?}: {response:?}");
        assert_eq!(
            response.header("sec-websocket-protocol"),
            Some("livechat.v1"),
            "{offers:?}"
        );
    }
    for offer in [
        "",
        ",",
        "chat",
        "Livechat.V1",
        "livechat.v2",
        "livechat.v1.1",
        "xlivechat.v1",
        "livechat .v1",
        "\"livechat.v1\"",
        "livechat.v1;q=1",
        "livechat.bearer.livechat.v1",
    ] {
        let response = open(&server, &[&HANDSHAKE[..], &[(name, offer)]].concat());
        assert_eq!(response.status, 101, "{offer:?}: {response:?}");
        assert_eq!(response.header("sec-websocket-protocol"), None, "{offer:?}");
    }
    // Where it is refused nothing is chosen.
    let refused = open(&server, &[(name, "livechat.v1")]);
    assert_eq!(refused.status, 426);
    assert_eq!(refused.header("sec-websocket-protocol"), None);
}

#[test]
fn handshake_never_shows_or_logs_a_token_or_a_query() {
    let server = Server::builder().env("LOG_LEVEL", "trace").start();
    let secret = "c2VjcmV0LXRva2Vu";
    let path = format!("/ws/s1/u1/customer?token={secret}&since=x#{secret}");
    let offer = format!("livechat.v1, livechat.bearer.{secret}");
    let headers = [
        ("Sec-WebSocket-Protocol", offer.as_str()),
        ("Authorization", "Bearer c2VjcmV0LXRva2Vu"),
    ];
    let mut ws = RawWs::try_connect(server.http_addr(), &path, &headers).expect("an upgrade");
    ws.expect_alive();
    for path in [&path, &format!("/ws/s1/u1/nobody?token={secret}")] {
        // Refused: no handshake, or a bad type.
        let response = Http::request(server.http_addr(), "GET", path, &headers);
        assert!(
            !format!("{response:?}{}", response.text()).contains(secret),
            "{response:?}"
        );
    }
    server.get("/live?afterwards");
    server.wait_log("GET /live");
    let shown: Vec<_> = server
        .log()
        .into_iter()
        .filter(|line| line.contains(secret) || line.contains("since=x") || line.contains("afterwards"))
        .collect();
    assert!(shown.is_empty(), "{shown:?}");
}

/// RFC 9110, sections 7.6.1 and 7.8: lists of tokens, in any case, over several headers.
#[test]
fn handshake_accepts_lists_of_tokens() {
    let server = Server::start();
    let good: [&[(&str, &str)]; 9] = [
        &[("Connection", "keep-alive, Upgrade"), ("Upgrade", "websocket")],
        &[("Connection", "keep-alive,\tUPGRADE ,"), ("Upgrade", "WebSocket")],
        &[
            ("Connection", "keep-alive"),
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
        ],
        &[("Connection", "Upgrade"), ("Upgrade", "websocket, foo")],
        &[("Connection", "Upgrade"), ("Upgrade", "foo/1.0, WEBSOCKET")],
        &[
            ("Connection", "Upgrade"),
            ("Upgrade", "foo"),
            ("Upgrade", "websocket"),
        ],
        &[
            ("Connection", "Upgrade, HTTP2-Settings"),
            ("Upgrade", "h2c,websocket"),
        ],
        &[("connection", ",,upgrade"), ("UPGRADE", " websocket ")],
        &[("Connection", "\u{e9}, Upgrade"), ("Upgrade", "websocket")],
    ];
    let bad: [&[(&str, &str)]; 6] = [
        &[("Connection", "Upgrade-Insecure"), ("Upgrade", "websocket")],
        &[("Connection", "keep-alive Upgrade"), ("Upgrade", "websocket")],
        &[("Connection", "Upgrade"), ("Upgrade", "websocket/13")],
        &[("Connection", "Upgrade"), ("Upgrade", "websockets")],
        &[("Connection", "Upgrade"), ("Upgrade", "\"websocket\"")],
        &[("Connection", "websocket"), ("Upgrade", "Upgrade")],
    ];
    let with = |headers: &[(&'static str, &'static str)]| [&HANDSHAKE[2..], headers].concat();
    for headers in good {
        let response = open(&server, &with(headers));
        assert_eq!(response.status, 101, "{headers:?}: {response:?}");
    }
    for headers in bad {
        open(&server, &with(headers)).assert_error(426);
    }
}

#[test]
fn handshake_accepts_only_version_13() {
    let server = Server::start();
    let version = "Sec-WebSocket-Version";
    for versions in [
        &["13", "8"][..],
        &["8", "13"],
        &["13, 8"],
        &["013"],
        &["+13"],
        &[],
    ] {
        let mut headers = handshake_with(version, None);
        headers.extend(versions.iter().map(|value| (version, *value)));
        let response = open(&server, &headers);
        response.assert_error(426);
        assert_eq!(
            response.header("sec-websocket-version"),
            Some("13"),
            "{versions:?}"
        );
        assert_eq!(response.header("upgrade"), Some("websocket"), "{versions:?}");
    }
}

/// A series of `livechat_upgrades_refused_total`.
#[track_caller]
pub fn upgrades_refused(server: &Server, reason: &str) -> f64 {
    series(server, "livechat_upgrades_refused_total", reason)
}

/// A series of `livechat_requests_refused_total`.
#[track_caller]
pub fn requests_refused(server: &Server, reason: &str) -> f64 {
    series(server, "livechat_requests_refused_total", reason)
}

#[track_caller]
fn series(server: &Server, name: &str, reason: &str) -> f64 {
    let page = Http::get(server.admin_addr(), "/metrics").text();
    let name = format!("{name}{{reason=\"{reason}\"}} ");
    let value = page.lines().find_map(|line| line.strip_prefix(&name));
    let value = value.unwrap_or_else(|| panic!("no {name}in: {page}"));
    value.parse().expect("a number")
}
