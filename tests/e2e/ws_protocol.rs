//! RFC 6455 byte by byte: violations, and the code with which the connection then ends.

use serde_json::json;

use crate::support::{Frame, Opcode, RawWs, Server};

fn connect(server: &Server) -> RawWs {
    RawWs::connect(server, "s1", "u1", "customer")
}

fn ping(id: impl Into<serde_json::Value>) -> String {
    json!({"type": "ping", "request_id": id.into()}).to_string()
}

/// Sends the frames as one segment: the connection ends with one of these codes.
#[track_caller]
fn ends(server: &Server, name: &str, frames: &[Frame], codes: &[u16]) {
    let mut ws = connect(server);
    let bytes: Vec<_> = frames.iter().flat_map(Frame::encode).collect();
    ws.write(&bytes);
    let code = ws.expect_close();
    assert!(
        codes.contains(&code),
        "{name}: closed with {code} instead of {codes:?}"
    );
}

#[test]
fn rfc6455_violations_are_1002() {
    let server = Server::start();
    let control = |opcode, size| Frame::raw(opcode, vec![b'x'; size]);
    let mut cases = vec![
        ("an unmasked text", vec![Frame::text(ping(1)).unmasked()]),
        ("an unmasked empty text", vec![Frame::text("").unmasked()]),
        ("an unmasked ping", vec![Frame::ping("x").unmasked()]),
        ("an unmasked close", vec![Frame::close(1000, "").unmasked()]),
        ("RSV1", vec![Frame::text(ping(1)).rsv(4)]),
        ("RSV2", vec![Frame::text(ping(1)).rsv(2)]),
        ("RSV3", vec![Frame::text(ping(1)).rsv(1)]),
        ("RSV1 to 3 on a ping", vec![Frame::ping("x").rsv(7)]),
        (
            "RSV1 on a continuation",
            vec![Frame::text("a").not_fin(), Frame::continuation("b").rsv(4)],
        ),
        (
            "a ping in fragments",
            vec![Frame::ping("x").not_fin(), Frame::continuation("y")],
        ),
        ("a pong in fragments", vec![Frame::pong("x").not_fin()]),
        ("a close in fragments", vec![Frame::close(1000, "").not_fin()]),
        ("a ping of 126 bytes", vec![control(9, 126)]),
        ("a pong of 126 bytes", vec![control(10, 126)]),
        ("a close of 126 bytes", vec![Frame::close(1000, &"x".repeat(124))]),
        ("a ping of 70,000 bytes", vec![control(9, 70_000)]),
        (
            "a text inside a message",
            vec![Frame::text("a").not_fin(), Frame::text(ping(1))],
        ),
        (
            "a first fragment inside a message",
            vec![Frame::text("a").not_fin(), Frame::text("b").not_fin()],
        ),
        ("a continuation of nothing", vec![Frame::continuation(ping(1))]),
        ("a fragment of nothing", vec![Frame::continuation("a").not_fin()]),
        (
            "a continuation after the end",
            vec![Frame::text(ping(1)), Frame::continuation("x")],
        ),
    ];
    for opcode in (3..=7).chain(11..=15) {
        cases.push(("a reserved opcode", vec![Frame::raw(opcode, "x")]));
        cases.push(("a reserved opcode, empty", vec![Frame::raw(opcode, "")]));
    }
    for (name, frames) in cases {
        ends(&server, name, &frames, &[1002]);
    }
    ends(
        &server,
        "binary inside a text",
        &[Frame::text("a").not_fin(), Frame::new(Opcode::Binary, "b")],
        &[1002, 1003],
    );
    assert_eq!(server.health()["status"], "ok");
}

#[test]
fn rfc6455_violations_are_detected_at_any_segmentation() {
    let server = Server::start();
    let cases = [
        (vec![Frame::text("hello").unmasked()], 1002),
        (vec![Frame::text("hello").rsv(2)], 1002),
        (vec![Frame::raw(3, "hello")], 1002),
        (vec![Frame::text("a").not_fin(), Frame::text("b")], 1002),
        (vec![Frame::text(b"h\xc3\xa4\xff")], 1007),
        (vec![Frame::new(Opcode::Binary, "hello")], 1003),
        (vec![Frame::close(1005, "")], 1002),
        (vec![Frame::close(4321, "why")], 4321),
    ];
    for (frames, code) in cases {
        let bytes: Vec<_> = frames.iter().flat_map(Frame::encode).collect();
        for cut in 1..bytes.len() {
            let mut ws = connect(&server);
            ws.write_split(&bytes, cut);
            assert_eq!(ws.expect_close(), code, "{frames:?} cut at {cut}");
        }
    }
}

#[test]
fn rfc6455_valid_frames_are_read_at_any_segmentation() {
    let server = Server::builder().env("RATE_LIMIT_MESSAGES", 0).start();
    let text = ping("é€\u{1F600}");
    let (a, b) = text.as_bytes().split_at(text.len() - 5);
    let frames = [
        Frame::text(a).not_fin(),
        Frame::ping("p"),
        Frame::continuation(b"").not_fin(),
        Frame::continuation(b),
        Frame::text(ping("next")),
    ];
    let bytes: Vec<_> = frames.iter().flat_map(Frame::encode).collect();
    let mut ws = connect(&server);
    for cut in 1..bytes.len() {
        ws.write_split(&bytes, cut);
        assert_eq!(ws.next_pong_payload(), b"p", "cut at {cut}");
        assert_eq!(ws.next("pong")["request_id"], "é€\u{1F600}", "cut at {cut}");
        assert_eq!(ws.next("pong")["request_id"], "next", "cut at {cut}");
    }
    // And byte by byte.
    for byte in &bytes {
        ws.write(&[*byte]);
    }
    assert_eq!(ws.next_pong_payload(), b"p");
    assert_eq!(ws.next("pong")["request_id"], "é€\u{1F600}");
    assert_eq!(ws.next("pong")["request_id"], "next");
}

#[test]
fn rfc6455_illegal_or_excessive_lengths_are_refused_at_their_header() {
    let server = Server::start();
    for length in [1 << 63, u64::MAX, (1 << 63) | 5] {
        let mut ws = connect(&server);
        ws.write(&Frame::text("").header(length));
        let code = ws.expect_close();
        assert!(matches!(code, 1002 | 1009), "{length:#x}: {code}");
    }
    let before = server.rss_kib();
    for length in [
        65_537,
        1 << 20,
        1 << 31,
        u64::from(u32::MAX),
        (1 << 62) + 7,
        i64::MAX as u64,
    ] {
        let mut ws = connect(&server);
        // Only the header is sent: no memory may be reserved for the claimed length.
        ws.write(&Frame::text("").header(length));
        assert_eq!(ws.expect_close(), 1009, "{length:#x}");
    }
    let grown = server.rss_kib().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB more after claims of lengths");
}

#[test]
fn rfc6455_lengths_not_in_their_shortest_form_do_no_harm() {
    let server = Server::start();
    // RFC 6455 forbids senders to use them, and leaves the receiver's reaction open.
    for header in [
        &[0x81, 0xfe, 0, 2, 0, 0, 0, 0][..],
        &[0x81, 0xff, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0],
    ] {
        let mut ws = connect(&server);
        ws.write(&[header, b"{}"].concat());
        let frame = loop {
            let frame = ws.read_frame().expect("an answer");
            if frame.is(Opcode::Close) || frame.payload.windows(5).any(|part| part == b"error") {
                break frame;
            }
        };
        assert!(
            frame.is(Opcode::Text) || frame.close_code() == Some(1002),
            "{frame:?}"
        );
    }
}

#[test]
fn rfc6455_binary_is_1003() {
    let server = Server::start();
    ends(&server, "binary", &[Frame::new(Opcode::Binary, ping(1))], &[1003]);
    ends(
        &server,
        "empty binary",
        &[Frame::new(Opcode::Binary, "")],
        &[1003],
    );
    ends(
        &server,
        "a binary fragment",
        &[Frame::new(Opcode::Binary, "x").not_fin()],
        &[1003],
    );
}

#[test]
fn rfc6455_text_that_is_not_utf8_is_1007() {
    let server = Server::start();
    let bad: [&[u8]; 10] = [
        b"\xff",
        b"\xc3\x28",
        b"\xa0\xa1",
        b"\xe2\x28\xa1",
        b"\xf0\x28\x8c\xbc",
        b"\xed\xa0\x80",
        b"\xc0\xaf",
        b"\xf4\x90\x80\x80",
        b"\xc3",
        b"{\"type\":\"ping\",\"x\":\"\xf0\x9f\x98\"}",
    ];
    for text in bad {
        ends(&server, "one frame", &[Frame::text(text)], &[1007]);
        for cut in 0..=text.len() {
            let (a, b) = text.split_at(cut);
            ends(
                &server,
                "two fragments",
                &[Frame::text(a).not_fin(), Frame::continuation(b)],
                &[1007],
            );
        }
    }
}

#[test]
fn rfc6455_text_may_be_fragmented_within_a_character() {
    let server = Server::builder().env("RATE_LIMIT_MESSAGES", 0).start();
    let mut ws = connect(&server);
    let text = ping("\u{1F600}é");
    for cut in 0..=text.len() {
        let (a, b) = text.as_bytes().split_at(cut);
        ws.send(Frame::text(a).not_fin());
        ws.send(Frame::continuation(b));
        assert_eq!(ws.next("pong")["request_id"], "\u{1F600}é", "cut at {cut}");
    }
}

#[test]
fn rfc6455_pings_between_fragments_are_answered() {
    let server = Server::start();
    let mut ws = connect(&server);
    ws.send(Frame::text(r#"{"type":"#).not_fin());
    for payload in [&b""[..], b"one", &[0xff; 125]] {
        ws.send(Frame::ping(payload));
        assert_eq!(ws.next_pong_payload(), payload);
    }
    ws.send(Frame::pong("nobody asked"));
    ws.send(Frame::continuation(r#""ping"}"#));
    ws.next("pong");
    ws.send(Frame::pong(""));
    ws.expect_alive();
}

#[test]
fn rfc6455_a_close_is_echoed_or_1002() {
    let server = Server::start();
    let echoed = [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4008, 4999,
    ];
    for code in echoed {
        for reason in ["", "bye", "é\u{1F600}", &"x".repeat(123)] {
            let mut ws = connect(&server);
            ws.send(Frame::close(code, reason));
            assert_eq!(ws.expect_close(), code, "{code} {reason:?}");
        }
    }
    for code in [
        0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535,
    ] {
        ends(
            &server,
            "a code nobody may send",
            &[Frame::close(code, "")],
            &[1002],
        );
        ends(
            &server,
            "a code nobody may send",
            &[Frame::close(code, "reason")],
            &[1002],
        );
    }
    ends(
        &server,
        "a close of one byte",
        &[Frame::new(Opcode::Close, [3])],
        &[1002],
    );
    ends(
        &server,
        "a reason that is not UTF-8",
        &[Frame::new(Opcode::Close, b"\x03\xe8\xff\xfe")],
        &[1007],
    );
    ends(
        &server,
        "a reason cut short",
        &[Frame::new(Opcode::Close, b"\x03\xe8a\xc3")],
        &[1007],
    );
    // Empty: the echo is empty, too.
    ends(
        &server,
        "an empty close",
        &[Frame::new(Opcode::Close, "")],
        &[1005],
    );
    ends(
        &server,
        "a close inside a message",
        &[Frame::text("a").not_fin(), Frame::close(1000, "")],
        &[1000],
    );
}

#[test]
fn rfc6455_data_after_a_close_is_ignored() {
    let server = Server::start();
    let mut other = RawWs::connect(&server, "s1", "other", "agent");
    let mut ws = connect(&server);
    let message =
        |text: &str| Frame::text(json!({"type": "send_message", "data": {"message": text}}).to_string());
    let bytes = [
        message("before").encode(),
        Frame::close(1000, "").encode(),
        message("after").encode(),
        Frame::ping("x").encode(),
    ];
    ws.write(&bytes.concat());
    assert_eq!(ws.expect_close(), 1000);
    assert_eq!(other.next("new_message")["data"]["message"], "before");
    other.send(message("fence"));
    assert_eq!(other.next("new_message")["data"]["message"], "fence");
}

#[test]
fn rfc6455_a_peer_that_never_closes_is_dropped() {
    let server = Server::start();
    // The client neither answers the close frame nor closes its socket; `expect_end` waits for the server to give up.
    for first in [Frame::new(Opcode::Binary, "x"), Frame::close(1000, "")] {
        let mut ws = connect(&server);
        ws.send(first);
        ws.read_close().expect("a close frame");
        ws.expect_end();
    }
    // One that goes on sending is dropped as well.
    let mut ws = connect(&server);
    ws.send(Frame::new(Opcode::Binary, "x"));
    ws.read_close().expect("a close frame");
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while ws.try_write(&Frame::text(ping(1)).encode()) {
        assert!(
            std::time::Instant::now() < deadline,
            "still connected after the close"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    crate::support::eventually("no connection is left", || server.health()["connections"] == 0);
}

#[test]
fn rfc6455_the_largest_message_is_exactly_the_limit() {
    let server = Server::start();
    let padded = |size: usize| ping("big") + &" ".repeat(size - ping("big").len());
    let mut ws = connect(&server);
    ws.send(Frame::text(padded(65_536)));
    assert_eq!(ws.next("pong")["request_id"], "big");
    let (text, half) = (padded(65_536), 32_768);
    ws.send(Frame::text(&text[..half]).not_fin());
    ws.send(Frame::continuation(&text[half..]));
    assert_eq!(ws.next("pong")["request_id"], "big");

    ends(&server, "one byte more", &[Frame::text(padded(65_537))], &[1009]);
    let text = padded(65_537);
    for cut in [1, half, 65_536] {
        let frames = [
            Frame::text(&text[..cut]).not_fin(),
            Frame::continuation(&text[cut..]),
        ];
        ends(&server, "one byte more in two fragments", &frames, &[1009]);
    }
    let mut many = vec![Frame::text(&text[..1000]).not_fin()];
    many.extend((1..80).map(|_| Frame::continuation("x".repeat(1000)).not_fin()));
    ends(&server, "fragments that never end", &many, &[1009]);
}

#[test]
fn rfc6455_the_limit_is_configurable() {
    let server = Server::builder().env("MAX_MESSAGE_BYTES", 100).start();
    let mut ws = connect(&server);
    ws.send(Frame::text(format!("{:100}", ping(1))));
    assert_eq!(ws.next("pong")["request_id"], 1);
    ws.send(Frame::text(format!("{:101}", ping(2))));
    assert_eq!(ws.expect_close(), 1009);
}

#[test]
fn rfc6455_endless_empty_fragments_are_1008() {
    let server = Server::start();
    let mut ws = connect(&server);
    ws.send(Frame::text("").not_fin());
    let thousand = Frame::continuation("").not_fin().encode().repeat(1000);
    for _ in 0..200 {
        if !ws.try_write(&thousand) {
            break;
        }
    }
    assert_eq!(ws.expect_close(), 1008);
}
