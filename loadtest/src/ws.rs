//! As much of RFC 6455 as a load generator needs: the client's handshake, frame headers, and masked frames to send.

/// Any 16 bytes; this is RFC 6455's example.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

pub const TEXT: u8 = 1;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// The bytes of an upgrade request.
pub fn handshake(host: &str, path: &str) -> Vec<u8> {
    handshake_with(host, path, &[])
}

/// The same with more headers.
pub fn handshake_with(host: &str, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
    );
    for (name, value) in headers {
        request.extend([name, ": ", value, "\r\n"]);
    }
    request.push_str("\r\n");
    request.into_bytes()
}

/// The answer to an upgrade request.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// More bytes are needed.
    Partial,
    /// Accepted; frames start at this offset.
    Upgraded(usize),
    /// The first line of the refusal.
    Refused(String),
}

pub fn read_answer(bytes: &[u8]) -> Answer {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
        return Answer::Partial;
    };
    if bytes.starts_with(b"HTTP/1.1 101") {
        return Answer::Upgraded(end + 4);
    }
    let line = bytes.split(|&byte| byte == b'\r').next().unwrap_or_default();
    Answer::Refused(String::from_utf8_lossy(line).into_owned())
}

/// The head of a frame from a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub opcode: u8,
    /// The head's own length.
    pub head: usize,
    pub payload: usize,
}

impl Head {
    pub fn frame(self) -> usize {
        self.head + self.payload
    }
}

/// The head at the start of these bytes, or `None` when more are needed.
pub fn read_head(bytes: &[u8]) -> Option<Head> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (head, payload) = match second & 0x7f {
        126 => (4, u64::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?)),
        short => (2, u64::from(short)),
    };
    Some(Head {
        opcode: first & 15,
        head,
        payload: usize::try_from(payload).ok()?,
    })
}

/// Appends the head of an unmasked frame, as servers send it.
pub fn write_head(out: &mut Vec<u8>, opcode: u8, payload: usize) {
    write_head_with(out, opcode, payload, 0);
}

/// Appends a whole frame as clients must send it. The mask is all zeros: legal, and nothing has to be masked.
pub fn write_masked(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    write_head_with(out, opcode, payload.len(), 0x80);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
}

fn write_head_with(out: &mut Vec<u8>, opcode: u8, payload: usize, masked: u8) {
    out.push(0x80 | opcode);
    if payload < 126 {
        out.push(masked | payload as u8);
    } else if let Ok(length) = u16::try_from(payload) {
        out.push(masked | 126);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.push(masked | 127);
        out.extend_from_slice(&(payload as u64).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_every_length_are_read_as_written() {
        for payload in [0, 1, 125, 126, 127, 65_535, 65_536, 1_000_000] {
            let mut bytes = Vec::new();
            write_head(&mut bytes, TEXT, payload);
            let head = read_head(&bytes).unwrap();
            assert_eq!((head.opcode, head.payload), (TEXT, payload));
            assert_eq!(head.head, bytes.len());
            for cut in 0..bytes.len() {
                assert_eq!(read_head(&bytes[..cut]), None, "{cut} of {}", bytes.len());
            }
        }
    }

    #[test]
    fn masked_frames_carry_the_mask_bit_and_four_more_bytes() {
        let mut bytes = Vec::new();
        write_masked(&mut bytes, PONG, b"abc");
        assert_eq!(bytes, [0x8a, 0x83, 0, 0, 0, 0, b'a', b'b', b'c']);
    }

    #[test]
    fn answers_are_told_apart() {
        assert_eq!(read_answer(b"HTTP/1.1 101 Switching"), Answer::Partial);
        let upgraded = b"HTTP/1.1 101 Switching Protocols\r\nA: b\r\n\r\n\x81\x00";
        assert_eq!(read_answer(upgraded), Answer::Upgraded(upgraded.len() - 2));
        let refused = read_answer(b"HTTP/1.1 503 Service Unavailable\r\n\r\n");
        assert_eq!(
            refused,
            Answer::Refused("HTTP/1.1 503 Service Unavailable".into())
        );
    }
}
