//! Random frames against a running server: it stays healthy, and other clients are not affected.

use std::io::Write;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;

use crate::support::http::is_reset;
use crate::support::raw::handshake;
use crate::support::{Frame, Http, Opcode, RawWs, Server};

fn frame() -> impl Strategy<Value = Frame> {
    let payload = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        "\\PC{0,60}".prop_map(String::into_bytes),
        json_text().prop_map(String::into_bytes),
        (0u16..5100, "[a-z]{0,130}")
            .prop_map(|(code, reason)| [&code.to_be_bytes()[..], reason.as_bytes()].concat()),
    ];
    let opcode = prop_oneof![4 => Just(1u8), 2 => Just(0u8), 1 => 0u8..16];
    let mask = prop_oneof![9 => any::<[u8; 4]>().prop_map(Some), 1 => Just(None)];
    (
        prop::bool::weighted(0.8),
        prop_oneof![9 => Just(0u8), 1 => 0u8..8],
        opcode,
        mask,
        payload,
    )
        .prop_map(|(fin, rsv, opcode, mask, payload)| Frame {
            fin,
            rsv,
            opcode,
            mask,
            payload,
        })
}

fn json_text() -> impl Strategy<Value = String> {
    let kind = prop_oneof![
        Just("ping"),
        Just("join_session"),
        Just("typing_start"),
        Just("typing_stop"),
        Just("agent_typing"),
        Just("send_message"),
        Just("dance"),
    ];
    let data = prop_oneof![
        Just(r#"{"message":"fuzz"}"#.to_owned()),
        Just(r#"{"is_typing":false}"#.to_owned()),
        "[\\[\\]{}:,\"a1 ]{0,30}",
        "\\PC{0,20}".prop_map(|text| json!({ "message": text, "attachments": [text] }).to_string()),
    ];
    (kind, data).prop_map(|(kind, data)| format!(r#"{{"type":"{kind}","data":{data}}}"#))
}

/// Reads to the end of the stream; every frame must be a good one, and text must be JSON with a type.
fn read_out(ws: &mut RawWs) {
    loop {
        match ws.try_read_frame() {
            Ok(None) => return,
            Ok(Some(frame)) if frame.is(Opcode::Text) => {
                let value: serde_json::Value = serde_json::from_slice(&frame.payload).expect("JSON");
                assert!(
                    value["type"].is_string() && value["success"].is_boolean(),
                    "{value}"
                );
            }
            Ok(Some(frame)) if frame.is(Opcode::Close) => {
                let code = frame.close_code().unwrap_or(1000);
                assert_ne!(code, 1011, "a bug of ours");
                ws.try_write(&Frame::new(Opcode::Close, &frame.payload).encode());
            }
            Ok(Some(frame)) => assert!(frame.is(Opcode::Ping) || frame.is(Opcode::Pong), "{frame:?}"),
            Err(error) => panic!("the server neither answers nor closes: {error}"),
        }
    }
}

fn cases(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 50,
        ..Config::default()
    })
}

#[track_caller]
fn healthy(server: &Server) {
    assert_eq!(server.health()["status"], "ok");
    let panicked = server.log().into_iter().find(|line| line.contains("panicked"));
    assert!(panicked.is_none(), "{panicked:?}");
}

#[test]
fn fuzz_random_frames_do_no_harm() {
    // The bystander answers no pings.
    let server = Server::builder().env("PING_INTERVAL", "600s").start();
    let mut bystander = RawWs::connect(&server, "bystander", "b", "agent");
    let before = (server.fd_count(), server.rss_kib());
    let strategy = (
        proptest::collection::vec(frame(), 1..12),
        any::<prop::sample::Index>(),
    );
    let outcome = cases(300).run(&strategy, |(frames, cut)| {
        let mut ws = RawWs::connect(&server, "fuzz", "f", "customer");
        let mut bytes: Vec<_> = frames.iter().flat_map(Frame::encode).collect();
        bytes.extend(Frame::close(1000, "").encode());
        ws.write_split(&bytes, cut.index(bytes.len()));
        // An unfinished message may swallow our close: then the end of our stream must end it.
        ws.shutdown_write();
        read_out(&mut ws);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    bystander.expect_alive();
    healthy(&server);
    crate::support::eventually("only the bystander is left", || {
        server.health()["connections"] == 1
    });
    crate::support::eventually("descriptors are back", || server.fd_count() <= before.0 + 1);
    let grown = server.rss_kib().saturating_sub(before.1);
    assert!(grown < 16 * 1024, "{grown} KiB more after 300 small connections");
}

#[test]
fn fuzz_random_bytes_after_the_handshake_do_no_harm() {
    let server = Server::start();
    let outcome = cases(200).run(&proptest::collection::vec(any::<u8>(), 0..400), |bytes| {
        let mut ws = RawWs::connect(&server, "fuzz", "f", "customer");
        ws.write(&bytes);
        ws.shutdown_write();
        read_out(&mut ws);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    healthy(&server);
}

#[test]
fn fuzz_random_requests_do_no_harm() {
    let server = Server::start();
    let piece = prop_oneof![
        "[ -~]{0,30}",
        Just("\r\n".to_owned()),
        Just("\r\n\r\n".to_owned()),
        Just("GET /health HTTP/1.1\r\n".to_owned()),
        Just("Content-Length: 10\r\n".to_owned()),
        Just("Transfer-Encoding: chunked\r\n".to_owned()),
        Just(handshake("/ws/s/u/agent", &[])),
        "/ws/[!-~]{0,20}/[!-~]{0,20}/(customer|agent|[a-z]{3})".prop_map(|path| handshake(&path, &[])),
        "/api/session/[!-~]{0,40}/connection-status"
            .prop_map(|path| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")),
    ];
    let outcome = cases(300).run(&proptest::collection::vec(piece, 1..8), |pieces| {
        let http = Http::connect(server.http_addr());
        http.set_read_timeout(Duration::from_secs(45));
        let (mut stream, _) = http.into_parts();
        let _ = stream.write_all(pieces.concat().as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        // The connection must end; the code depends on the case.
        match std::io::copy(&mut stream, &mut std::io::sink()) {
            Err(error) if !is_reset(&error) => panic!("neither answered nor closed: {error}"),
            _ => Ok(()),
        }
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    healthy(&server);
    crate::support::eventually("nobody is left", || server.health()["connections"] == 0);
}
