//! WebSocket frames that the server sends (RFC 6455, section 5.2): unmasked, never fragmented.

use bytes::{BufMut, Bytes, BytesMut};

use super::code::CloseCode;

const FIN_TEXT: u8 = 0x81;
const FIN_CLOSE: u8 = 0x88;
const FIN_PING: u8 = 0x89;
const FIN_PONG: u8 = 0x8A;

/// An empty ping, ready to send.
pub const PING: Bytes = Bytes::from_static(PING_BYTES);
pub const PING_BYTES: &[u8] = &[FIN_PING, 0];

/// The length of a text frame with `payload_len` bytes of payload.
pub fn text_frame_len(payload_len: usize) -> usize {
    payload_len + header_len(payload_len)
}

fn header_len(payload_len: usize) -> usize {
    match payload_len {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    }
}

fn put_header(out: &mut impl BufMut, first: u8, payload_len: usize) {
    match payload_len {
        0..=125 => out.put_slice(&[first, payload_len as u8]),
        126..=0xFFFF => {
            out.put_slice(&[first, 126]);
            out.put_slice(&(payload_len as u16).to_be_bytes());
        }
        _ => {
            out.put_slice(&[first, 127]);
            out.put_slice(&(payload_len as u64).to_be_bytes());
        }
    }
}

/// Appends one text frame: header and payload, contiguous.
pub fn put_text(out: &mut Vec<u8>, payload: &[u8]) {
    out.reserve(text_frame_len(payload.len()));
    put_header(out, FIN_TEXT, payload.len());
    out.extend_from_slice(payload);
}

/// The same, into a buffer that has room for it.
pub fn put_text_into(out: &mut BytesMut, payload: &[u8]) {
    put_header(out, FIN_TEXT, payload.len());
    out.extend_from_slice(payload);
}

/// The payload of a whole frame of ours.
pub fn payload(frame: &[u8]) -> &[u8] {
    let header = match frame.get(1) {
        Some(127) => 10,
        Some(126) => 4,
        _ => 2,
    };
    frame.get(header..).unwrap_or_default()
}

/// One text frame.
pub fn text(payload: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(text_frame_len(payload.len()));
    put_text(&mut out, payload);
    out.into()
}

/// A pong with the ping's payload, which is at most 125 bytes, as the reader has checked.
pub fn pong(payload: &[u8]) -> Bytes {
    control(FIN_PONG, payload)
}

/// A close frame with a code and a reason.
pub fn close(code: CloseCode, reason: &str) -> Bytes {
    let mut payload = Vec::with_capacity(2 + reason.len());
    payload.extend_from_slice(&code.code().to_be_bytes());
    // A control frame's payload is at most 125 bytes, two of which are the code (RFC 6455, section 5.5).
    let mut end = reason.len().min(123);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    payload.extend_from_slice(&reason.as_bytes()[..end]);
    control(FIN_CLOSE, &payload)
}

/// The echo of a client's close frame: the same code without a reason, or empty if the client sent none.
pub fn close_echo(code: Option<u16>) -> Bytes {
    match code {
        Some(code) => control(FIN_CLOSE, &code.to_be_bytes()),
        None => control(FIN_CLOSE, &[]),
    }
}

fn control(first: u8, payload: &[u8]) -> Bytes {
    debug_assert!(payload.len() <= 125);
    let mut out = Vec::with_capacity(2 + payload.len());
    put_header(&mut out, first, payload.len());
    out.extend_from_slice(payload);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_encoded_in_the_shortest_form() {
        for (len, header) in [(0, 2), (125, 2), (126, 4), (65535, 4), (65536, 10)] {
            let frame = text(&vec![b'x'; len]);
            assert_eq!(frame.len(), len + header);
            assert_eq!(frame.len(), text_frame_len(len));
            assert_eq!(frame[0], 0x81);
        }
        assert_eq!(&text(&[b'x'; 126])[..4], [0x81, 126, 0, 126]);
        assert_eq!(&text(&[b'x'; 65536])[..10], [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_long_close_reason_is_cut_at_a_character() {
        let frame = close(CloseCode::Policy, &"é".repeat(100));
        assert_eq!(frame.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&frame[4..]).is_ok());
        assert_eq!(&frame[2..4], 1008u16.to_be_bytes());
    }

    #[test]
    fn a_close_frame_is_echoed_with_its_code() {
        assert_eq!(close_echo(None).as_ref(), [0x88, 0]);
        assert_eq!(close_echo(Some(1000)).as_ref(), [0x88, 2, 0x03, 0xE8]);
    }
}
