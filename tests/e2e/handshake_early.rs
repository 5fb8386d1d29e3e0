//! Frames that a client sends right after its handshake, without waiting for the answer.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::raw::handshake;
use crate::support::{Frame, Http, Opcode, RawWs, Server};

/// Frames that come in one piece with the end of a handshake: whichever of them straddles the end of a buffer, none
/// overtakes another.
#[test]
fn frames_sent_with_the_handshake_keep_their_order() {
    const FRAMES: usize = 400;
    let server = Server::builder().env("RATE_LIMIT_MESSAGES", 0).start();
    for size in (56..=72).chain([125, 131, 200, 1_000]) {
        let mut bytes = handshake("/ws/s1/u1/customer", &[]).into_bytes();
        for number in 0..FRAMES {
            let text = json!({"type": "ping", "request_id": number}).to_string();
            // A frame of exactly this size: its head is 6 bytes, or 8 from 126 of payload on.
            let head = if size < 132 { 6 } else { 8 };
            bytes.extend(Frame::text(format!("{text:<width$}", width = size - head)).encode());
        }
        let mut http = Http::connect(server.http_addr());
        // Likely read separately: then there is room for more than 8 KiB after the head.
        let (first, rest) = bytes.split_at(20);
        http.write(first);
        std::thread::sleep(Duration::from_millis(20));
        http.write(rest);
        let mut ws = RawWs::upgraded(http).expect("an upgrade");
        for number in 0..FRAMES {
            let frame = loop {
                let frame = ws.read_frame().expect("an answer, not the end of the stream");
                assert!(
                    !frame.is(Opcode::Close),
                    "frames of {size}: closed with {:?} after {number}",
                    frame.close_code()
                );
                let frame: Value = serde_json::from_slice(&frame.payload).expect("JSON");
                if frame["type"] == "pong" {
                    break frame;
                }
            };
            assert_eq!(frame["request_id"], number, "frames of {size}");
        }
    }
}
