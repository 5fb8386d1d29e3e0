//! The strict layer: checks frame headers before the bytes reach fastwebsockets, which is lenient.
//!
//! It enforces what RFC 6455 requires of a client's frames (sections 5.1 to 5.5) and our own limits before a payload is
//! buffered, and passes bytes on only up to the first header that breaks a rule. It also knows when the connection is
//! between frames with nothing buffered, so that the reader's buffer can be freed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, ReadBuf};

use crate::protocol::code::CloseCode;

/// The most fragments of one message: more of them cost more than they carry.
const MAX_FRAGMENTS: u32 = 1024;

/// The longest header of a masked frame: 2 + 8 of length + 4 of mask.
const MAX_HEADER: usize = 14;

const OP_CONTINUATION: u8 = 0x0;
const OP_TEXT: u8 = 0x1;
const OP_BINARY: u8 = 0x2;
const OP_CLOSE: u8 = 0x8;
const OP_PONG: u8 = 0xA;

/// A rule that a frame header breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    pub code: CloseCode,
    pub reason: &'static str,
}

/// Follows the frames of one connection.
pub struct Scanner {
    header: [u8; MAX_HEADER],
    /// Bytes of the header seen so far.
    have: u8,
    /// Bytes of the payload still to come.
    payload_left: u64,
    /// Fragments of the current message; 0 between messages.
    fragments: u32,
    /// Payload bytes of the current message.
    message_bytes: u64,
    max_message_bytes: u64,
    /// Complete frames that were passed on and that the reader has not taken yet.
    frames_ahead: u32,
    violation: Option<Violation>,
}

impl Scanner {
    pub fn new(max_message_bytes: usize) -> Self {
        Self {
            header: [0; MAX_HEADER],
            have: 0,
            payload_left: 0,
            fragments: 0,
            message_bytes: 0,
            max_message_bytes: max_message_bytes as u64,
            frames_ahead: 0,
            violation: None,
        }
    }

    /// The violation, once the bytes before it were passed on.
    pub fn violation(&self) -> Option<Violation> {
        self.violation
    }

    /// Notes that the reader has taken a frame.
    pub fn frame_read(&mut self) {
        self.frames_ahead = self.frames_ahead.saturating_sub(1);
    }

    /// Whether the connection is between frames and the reader has no byte of the next.
    pub fn is_idle(&self) -> bool {
        self.frames_ahead == 0 && self.have == 0 && self.payload_left == 0 && self.violation.is_none()
    }

    /// Whether no message is incomplete, so that there is no state to keep.
    pub fn is_between_messages(&self) -> bool {
        self.is_idle() && self.fragments == 0
    }

    /// Scans `bytes` and returns how many may be passed on: all, or those before a violation.
    pub fn scan(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() && self.violation.is_none() {
            if self.payload_left > 0 {
                let step = self.payload_left.min((bytes.len() - at) as u64);
                self.payload_left -= step;
                at += step as usize;
                if self.payload_left == 0 {
                    self.frames_ahead += 1;
                }
                continue;
            }
            self.header[usize::from(self.have)] = bytes[at];
            self.have += 1;
            match self.check_header() {
                Ok(()) => at += 1,
                Err(violation) => self.violation = Some(violation),
            }
        }
        at
    }

    /// Checks the header as far as it has arrived, and begins the payload once it is complete.
    fn check_header(&mut self) -> Result<(), Violation> {
        let protocol = |reason| {
            Err(Violation {
                code: CloseCode::Protocol,
                reason,
            })
        };
        let (first, second) = (self.header[0], self.header[1]);
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0F);
        let is_control = opcode & 0x08 != 0;
        let short_len = second & 0x7F;
        let extra = match (self.have > 1, short_len) {
            (true, 126) => 2,
            (true, 127) => 8,
            _ => 0,
        };
        if self.have == 1 {
            if first & 0x70 != 0 {
                return protocol("reserved bits are set");
            }
            match opcode {
                OP_BINARY => {
                    return Err(Violation {
                        code: CloseCode::Unsupported,
                        reason: "binary frames are not accepted",
                    });
                }
                OP_CONTINUATION if self.fragments == 0 => return protocol("continuation without a message"),
                OP_TEXT if self.fragments > 0 => return protocol("a new message inside a fragmented one"),
                OP_CONTINUATION | OP_TEXT => {}
                OP_CLOSE..=OP_PONG if !fin => return protocol("fragmented control frame"),
                OP_CLOSE..=OP_PONG => {}
                _ => return protocol("reserved opcode"),
            }
        } else if self.have == 2 {
            if second & 0x80 == 0 {
                return protocol("frame is not masked");
            }
            if is_control && short_len > 125 {
                return protocol("control frame over 125 bytes");
            }
        } else if self.have == 3 && short_len == 127 && self.header[2] & 0x80 != 0 {
            return protocol("64-bit length with the top bit set");
        }
        if usize::from(self.have) == 2 + extra && self.have > 1 {
            self.check_length(is_control, short_len)?;
        }
        if self.have > 1 && usize::from(self.have) == 2 + extra + 4 {
            self.begin_payload(fin, is_control, short_len);
        }
        Ok(())
    }

    fn payload_len(&self, short_len: u8) -> u64 {
        let field = |len: usize| {
            self.header[2..2 + len]
                .iter()
                .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
        };
        match short_len {
            126 => field(2),
            127 => field(8),
            short => short.into(),
        }
    }

    fn check_length(&mut self, is_control: bool, short_len: u8) -> Result<(), Violation> {
        let len = self.payload_len(short_len);
        if (short_len == 126 && len < 126) || (short_len == 127 && len <= 0xFFFF) {
            let reason = "length is not in its shortest form";
            return Err(Violation {
                code: CloseCode::Protocol,
                reason,
            });
        }
        if !is_control && self.message_bytes + len > self.max_message_bytes {
            return Err(Violation {
                code: CloseCode::TooBig,
                reason: "message is too big",
            });
        }
        if !is_control && self.fragments >= MAX_FRAGMENTS {
            return Err(Violation {
                code: CloseCode::Policy,
                reason: "too many fragments",
            });
        }
        Ok(())
    }

    fn begin_payload(&mut self, fin: bool, is_control: bool, short_len: u8) {
        self.payload_left = self.payload_len(short_len);
        self.have = 0;
        if self.payload_left == 0 {
            self.frames_ahead += 1;
        }
        if !is_control {
            if fin {
                (self.fragments, self.message_bytes) = (0, 0);
            } else {
                self.fragments += 1;
                self.message_bytes += self.payload_left;
            }
        }
    }
}

/// A scanned byte stream: first what arrived with the handshake, then the socket.
pub struct Scanned<'a, R> {
    /// Shared with the reader's owner, which counts the frames it takes.
    pub scanner: &'a Mutex<Scanner>,
    pub prefix: &'a mut Bytes,
    pub socket: &'a mut R,
}

impl<R: AsyncRead + Unpin> AsyncRead for Scanned<'_, R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.scanner.lock().violation.is_some() {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let before = buf.filled().len();
        if self.prefix.has_remaining() {
            let step = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(step));
        } else {
            match Pin::new(&mut *self.socket).poll_read(cx, buf) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
        }
        let read = buf.filled().len() - before;
        if read == 0 {
            return Poll::Ready(Ok(()));
        }
        let passed = self.scanner.lock().scan(&buf.filled()[before..]);
        buf.set_filled(before + passed);
        if passed == 0 {
            // There is nothing before the violation, and an empty read would look like the end of the stream.
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            len @ 0..=125 => out.push(0x80 | len as u8),
            len @ 126..=0xFFFF => {
                out.push(0x80 | 126);
                out.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                out.push(0x80 | 127);
                out.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(payload);
        out
    }

    /// The close code for `bytes`, however reads split them; `None` if all pass.
    fn verdict(bytes: &[u8]) -> Option<CloseCode> {
        let whole = {
            let mut scanner = Scanner::new(1000);
            let passed = scanner.scan(bytes);
            assert_eq!(passed == bytes.len(), scanner.violation().is_none());
            scanner.violation()
        };
        let mut scanner = Scanner::new(1000);
        for byte in bytes {
            scanner.scan(&[*byte]);
        }
        assert_eq!(scanner.violation(), whole);
        whole.map(|violation| violation.code)
    }

    #[test]
    fn rules_of_rfc_6455() {
        let text = frame(0x81, b"hi");
        assert_eq!(verdict(&text), None);
        assert_eq!(verdict(&frame(0x89, &[0; 125])), None);
        assert_eq!(verdict(&[0x81, 0x02, b'h', b'i']), Some(CloseCode::Protocol));
        for first in [
            0xC1, 0xA1, 0x91, 0x83, 0x84, 0x85, 0x86, 0x87, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F,
        ] {
            assert_eq!(
                verdict(&frame(first, b"")),
                Some(CloseCode::Protocol),
                "{first:x}"
            );
        }
        for first in [0x08, 0x09, 0x0A, 0x80, 0x00] {
            assert_eq!(
                verdict(&frame(first, b"")),
                Some(CloseCode::Protocol),
                "{first:x}"
            );
        }
        assert_eq!(verdict(&frame(0x89, &[0; 126])), Some(CloseCode::Protocol));
        assert_eq!(verdict(&frame(0x82, b"")), Some(CloseCode::Unsupported));
        assert_eq!(verdict(&[0x81, 0xFF, 0x80]), Some(CloseCode::Protocol));
        assert_eq!(verdict(&[0x81, 0xFE, 0, 125]), Some(CloseCode::Protocol));
        assert_eq!(
            verdict(&[0x81, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]),
            Some(CloseCode::Protocol)
        );
        let fragmented = [
            frame(0x01, b"a"),
            frame(0x89, b"p"),
            frame(0x00, b"b"),
            frame(0x80, b"c"),
            text,
        ]
        .concat();
        assert_eq!(verdict(&fragmented), None);
        assert_eq!(
            verdict(&[frame(0x01, b"a"), frame(0x81, b"b")].concat()),
            Some(CloseCode::Protocol)
        );
    }

    #[test]
    fn limits_count_whole_messages() {
        assert_eq!(verdict(&frame(0x81, &[b'x'; 1000])), None);
        assert_eq!(verdict(&frame(0x81, &[b'x'; 1001])), Some(CloseCode::TooBig));
        assert_eq!(
            verdict(&[0x81, 0xFF, 0x7F, 0, 0, 0, 0, 0, 0, 0]),
            Some(CloseCode::TooBig)
        );
        let half = frame(0x01, &[b'x'; 600]);
        assert_eq!(verdict(&[half.clone(), frame(0x80, &[b'x'; 400])].concat()), None);
        assert_eq!(
            verdict(&[half, frame(0x80, &[b'x'; 401])].concat()),
            Some(CloseCode::TooBig)
        );
        let endless = [frame(0x01, b""), frame(0x00, b"").repeat(2000)].concat();
        assert_eq!(verdict(&endless), Some(CloseCode::Policy));
    }

    #[test]
    fn idle_means_between_frames_with_all_taken() {
        let mut scanner = Scanner::new(1000);
        assert!(scanner.is_idle());
        let two = [frame(0x81, b"hi"), frame(0x81, b"")].concat();
        scanner.scan(&two);
        scanner.frame_read();
        assert!(!scanner.is_idle());
        scanner.frame_read();
        assert!(scanner.is_idle());
        scanner.scan(&two[..1]);
        assert!(!scanner.is_idle());
    }

    proptest! {
        #[test]
        fn any_bytes_get_the_same_verdict_however_split(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            verdict(&bytes);
        }
    }
}
