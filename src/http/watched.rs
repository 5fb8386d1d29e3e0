//! Watches request heads for framing that invites request smuggling, which hyper mends silently: both
//! Transfer-Encoding and Content-Length, or Content-Length twice (RFC 9112, sections 6.1 and 6.3).
//!
//! And holds back the answer to a WebSocket handshake, so that it leaves together with the first frame: one write and
//! one packet for each connection of a storm instead of two.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The longest header name that matters, and one more.
const NAME_ROOM: usize = "transfer-encoding".len() + 1;

/// What the service and the socket under hyper tell each other.
#[derive(Default)]
pub struct Watch {
    /// The number, from 1, of the first request whose framing is ambiguous; 0: none.
    first_bad: AtomicU32,
    holds: AtomicBool,
}

impl Watch {
    /// Whether the request with this number, from 1, may be served.
    pub fn allows(&self, request: u32) -> bool {
        let bad = self.first_bad.load(Ordering::Relaxed);
        bad == 0 || request < bad
    }

    /// Holds what is written from now on: whoever takes over the socket sends it.
    pub fn hold(&self) {
        self.holds.store(true, Ordering::Relaxed);
    }
}

/// A socket whose request heads are watched.
pub struct Watched {
    socket: TcpStream,
    heads: Heads,
    held: Vec<u8>,
    watch: Arc<Watch>,
}

impl Watched {
    pub fn new(socket: TcpStream) -> (Self, Arc<Watch>) {
        let watch = Arc::new(Watch::default());
        (
            Self {
                socket,
                heads: Heads::default(),
                held: Vec::new(),
                watch: Arc::clone(&watch),
            },
            watch,
        )
    }

    /// The socket, and what was held.
    pub fn into_parts(self) -> (TcpStream, Bytes) {
        (self.socket, self.held.into())
    }

    fn is_holding(&self) -> bool {
        self.watch.holds.load(Ordering::Relaxed)
    }
}

/// Follows heads line by line. A request with a body ends the watch: its connection is not used again.
#[derive(Default)]
struct Heads {
    count: u32,
    lengths: u32,
    encodings: u32,
    /// Whether the head under way has any line yet: blank lines before it are skipped, as hyper does.
    has_line: bool,
    /// Whether the line under way has anything but its end.
    has_text: bool,
    name: [u8; NAME_ROOM],
    name_len: usize,
    in_name: bool,
    is_over: bool,
}

impl Heads {
    /// Follows `bytes`; the number of a head that is ambiguous.
    fn follow(&mut self, mut bytes: &[u8]) -> Option<u32> {
        while !self.is_over && !bytes.is_empty() {
            if self.in_name {
                bytes = self.follow_name(bytes);
                continue;
            }
            // Values are most of a head, and say nothing.
            let line = bytes.iter().position(|&byte| byte == b'\n');
            let rest = &bytes[..line.unwrap_or(bytes.len())];
            self.has_text |= rest.iter().any(|&byte| byte != b'\r');
            let Some(end) = line else { break };
            bytes = &bytes[end + 1..];
            if self.end_line() {
                return Some(self.count);
            }
        }
        None
    }

    /// Follows a line up to the end of its name, which is returned as what is left, or to its own.
    fn follow_name<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        for (at, &byte) in bytes.iter().enumerate() {
            match byte {
                b'\n' => {
                    self.in_name = false;
                    return &bytes[at..];
                }
                b'\r' => {}
                b':' => {
                    self.has_text = true;
                    self.end_name();
                    return &bytes[at + 1..];
                }
                byte => {
                    self.has_text = true;
                    if self.name_len < NAME_ROOM {
                        self.name[self.name_len] = byte.to_ascii_lowercase();
                        self.name_len += 1;
                    }
                }
            }
        }
        &[]
    }

    /// At a line's end; true where it ends an ambiguous head.
    fn end_line(&mut self) -> bool {
        if std::mem::take(&mut self.has_text) {
            (self.has_line, self.name_len, self.in_name) = (true, 0, true);
            return false;
        }
        self.has_line && self.end_head()
    }

    fn end_name(&mut self) {
        self.in_name = false;
        match &self.name[..self.name_len] {
            b"content-length" => self.lengths += 1,
            b"transfer-encoding" => self.encodings += 1,
            _ => {}
        }
    }

    fn end_head(&mut self) -> bool {
        self.count += 1;
        let is_ambiguous = self.lengths > 1 || (self.lengths > 0 && self.encodings > 0);
        self.is_over = self.lengths + self.encodings > 0;
        (self.lengths, self.encodings, self.has_line, self.in_name) = (0, 0, false, false);
        is_ambiguous
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(cx, buf);
        if let Some(bad) = self.heads.follow(&buf.filled()[before..]) {
            self.watch.first_bad.store(bad, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_holding() {
            self.held.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_holding() {
            let before = self.held.len();
            bufs.iter().for_each(|buf| self.held.extend_from_slice(buf));
            return Poll::Ready(Ok(self.held.len() - before));
        }
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same, line by line, of bytes that have all come.
    fn first_bad_line_by_line(bytes: &[u8]) -> Option<u32> {
        let (mut count, mut lines, mut lengths, mut encodings) = (0, 0, 0, 0);
        let ended = bytes.split_inclusive(|&byte| byte == b'\n');
        for line in ended.filter(|line| line.ends_with(b"\n")) {
            let is_text = |byte: &&u8| !matches!(byte, b'\r' | b'\n');
            let text: Vec<u8> = line.iter().filter(is_text).copied().collect();
            if !text.is_empty() {
                let name = text.split(|&byte| byte == b':').next();
                let name = name.filter(|name| lines > 0 && name.len() < text.len());
                match name.map(<[u8]>::to_ascii_lowercase).as_deref() {
                    Some(b"content-length") => lengths += 1,
                    Some(b"transfer-encoding") => encodings += 1,
                    _ => {}
                }
                lines += 1;
            } else if lines > 0 {
                count += 1;
                if lengths > 1 || (lengths > 0 && encodings > 0) {
                    return Some(count);
                }
                if lengths + encodings > 0 {
                    return None;
                }
                lines = 0;
            }
        }
        None
    }

    proptest! {
        /// However heads are made, and wherever they are cut.
        #[test]
        fn heads_are_followed_as_lines_are_read(
            parts in prop::collection::vec(prop::sample::select(vec![
                "content-length", "Transfer-Encoding", "transfer-encodings", ":", " ", "\r", "\n", "\r\n", "a",
                "GET / HTTP/1.1\r\n", ":1\r\n", "\r\n\r\n",
            ]), 0..40),
            cut in 1usize..30,
        ) {
            let bytes = parts.concat().into_bytes();
            let mut heads = Heads::default();
            let found = bytes.chunks(cut).find_map(|piece| heads.follow(piece));
            prop_assert_eq!(found, first_bad_line_by_line(&bytes));
        }
    }

    fn first_bad(bytes: &str) -> Option<u32> {
        let whole = Heads::default().follow(bytes.as_bytes());
        let mut heads = Heads::default();
        let cut = bytes.bytes().find_map(|byte| heads.follow(&[byte]));
        assert_eq!(whole, cut);
        whole
    }

    #[test]
    fn ambiguous_heads_are_found() {
        assert_eq!(first_bad("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), None);
        assert_eq!(
            first_bad("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nContent-Length: 3\r\n\r\n"),
            None
        );
        assert_eq!(
            first_bad("POST / HTTP/1.1\r\nContent-Length: 3\r\ncontent-LENGTH: 3\r\n\r\n"),
            Some(1)
        );
        assert_eq!(
            first_bad("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"),
            Some(1)
        );
        let good = "GET /?a:content-length:1 HTTP/1.1\nX-Content-Length: 1\nX: content-length:\n\n";
        assert_eq!(first_bad(&good.repeat(2)), None);
        let bad = "GET / HTTP/1.1\nContent-Length:0\nContent-Length:0\n\n";
        assert_eq!(first_bad(&format!("\r\n{good}\r\n{bad}")), Some(2));
    }
}
