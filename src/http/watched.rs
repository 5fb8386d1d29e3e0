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
    line_len: usize,
    name: [u8; NAME_ROOM],
    name_len: usize,
    in_name: bool,
    is_over: bool,
}

impl Heads {
    /// Follows `bytes`; the number of a head that is ambiguous.
    fn follow(&mut self, bytes: &[u8]) -> Option<u32> {
        for &byte in bytes {
            if self.is_over {
                return None;
            }
            match byte {
                b'\n' if self.line_len == 0 => {
                    if self.has_line && self.end_head() {
                        return Some(self.count);
                    }
                }
                b'\n' => {
                    self.has_line = true;
                    (self.line_len, self.name_len, self.in_name) = (0, 0, true);
                }
                b'\r' => {}
                b':' if self.in_name => {
                    self.line_len += 1;
                    self.end_name();
                }
                byte => {
                    self.line_len += 1;
                    if self.in_name && self.name_len < NAME_ROOM {
                        self.name[self.name_len] = byte.to_ascii_lowercase();
                        self.name_len += 1;
                    }
                }
            }
        }
        None
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
    use super::*;

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
