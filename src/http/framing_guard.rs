//! The socket under hyper. It scans what is read for heads that invite request smuggling ([`super::framing`]), and
//! follows reads and writes to know what the connection is waiting for ([`super::keep_alive`]).
//!
//! It also holds back the response to a WebSocket handshake, so that it leaves together with the first frame: in a
//! connection storm this is one write and one packet per connection instead of two.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::framing::{Framing, HeadScanner};
use super::keep_alive::Pace;

/// The state shared by the HTTP service and the socket under hyper.
pub struct GuardState {
    /// The number, counted from 1, of the first request whose framing is not plain; 0: none so far.
    stops_at: AtomicU32,
    is_ambiguous: AtomicBool,
    holds: AtomicBool,
    /// Requests that the service has answered.
    served: AtomicU32,
    /// Whether the next response is the last.
    is_closing: AtomicBool,
    pub pace: Pace,
}

impl GuardState {
    /// How the request with this number, counted from 1, states the length of its body.
    pub fn framing(&self, request: u32) -> Framing {
        match self.stops_at.load(Ordering::Relaxed) {
            0 => Framing::Plain,
            stop if request < stop => Framing::Plain,
            stop if request == stop && !self.is_ambiguous.load(Ordering::Relaxed) => Framing::Last,
            // Nothing after the last one was scanned.
            _ => Framing::Ambiguous,
        }
    }

    /// The number, counted from 1, of the request that the service is handling.
    pub fn number(&self) -> u32 {
        self.served.load(Ordering::Relaxed) + 1
    }

    /// Notes that the service has answered a request.
    pub fn served(&self) {
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    /// Holds back everything written from now on: the new owner of the socket sends it.
    pub fn hold(&self) {
        self.holds.store(true, Ordering::Relaxed);
    }

    /// Closes the connection after its next response.
    pub fn close(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
    }

    pub fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }
}

/// A socket whose request heads are scanned.
pub struct FramingGuard {
    socket: TcpStream,
    heads: HeadScanner,
    held: Vec<u8>,
    /// Whether anything was written since the last response was complete.
    has_written: bool,
    state: Arc<GuardState>,
}

impl FramingGuard {
    pub fn new(socket: TcpStream, pace: Pace) -> (Self, Arc<GuardState>) {
        let state = Arc::new(GuardState {
            stops_at: AtomicU32::new(0),
            is_ambiguous: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            served: AtomicU32::new(0),
            is_closing: AtomicBool::new(false),
            pace,
        });
        (
            Self {
                socket,
                heads: HeadScanner::default(),
                held: Vec::new(),
                has_written: false,
                state: Arc::clone(&state),
            },
            state,
        )
    }

    /// The socket, and what was held back.
    pub fn into_parts(self) -> (TcpStream, Bytes) {
        (self.socket, self.held.into())
    }

    fn is_holding(&self) -> bool {
        self.state.holds.load(Ordering::Relaxed)
    }

    /// Scans what was read.
    fn scan(&mut self, bytes: &[u8]) {
        let before = self.heads.count();
        if let Some((number, framing)) = self.heads.scan(bytes) {
            let is_ambiguous = framing == Framing::Ambiguous;
            self.state.is_ambiguous.store(is_ambiguous, Ordering::Relaxed);
            self.state.stops_at.store(number, Ordering::Relaxed);
        }
        if self.heads.count() > before {
            self.state.pace.answering();
        } else if self.heads.is_in_progress() {
            self.state.pace.head_begun();
        }
    }

    /// Notes that the peer accepted part of a response.
    fn progress(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.has_written = true;
            self.state.pace.answering();
        }
        written
    }
}

impl AsyncRead for FramingGuard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(cx, buf);
        self.scan(&buf.filled()[before..]);
        polled
    }
}

impl AsyncWrite for FramingGuard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_holding() {
            self.held.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.progress(written)
    }

    /// hyper flushes once it has written everything it has.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.has_written && self.state.served.load(Ordering::Relaxed) >= self.heads.count() {
            self.has_written = false;
            self.state.pace.answered(self.heads.is_in_progress());
        }
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
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.progress(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}
