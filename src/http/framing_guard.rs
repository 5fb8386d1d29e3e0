//! The socket under hyper. Watches what is read for heads that invite request smuggling ([`super::framing`]), and what
//! is read and written for what the connection waits for ([`super::keep_alive`]).
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

use super::framing::{Framing, HeadScanner};
use super::keep_alive::Pace;

/// What the service and the socket under hyper tell each other.
pub struct GuardState {
    /// The number, from 1, of the first request whose framing is not plain; 0: none.
    stops_at: AtomicU32,
    is_ambiguous: AtomicBool,
    holds: AtomicBool,
    /// Requests that are answered, as far as the service is concerned.
    served: AtomicU32,
    /// The next answer is the last.
    is_closing: AtomicBool,
    pub pace: Pace,
}

impl GuardState {
    /// How the request with this number, from 1, gives the length of its body.
    pub fn framing(&self, request: u32) -> Framing {
        match self.stops_at.load(Ordering::Relaxed) {
            0 => Framing::Plain,
            stop if request < stop => Framing::Plain,
            stop if request == stop && !self.is_ambiguous.load(Ordering::Relaxed) => Framing::Last,
            // What follows the last one was not watched.
            _ => Framing::Ambiguous,
        }
    }

    /// The number, from 1, of the request that comes to the service.
    pub fn number(&self) -> u32 {
        self.served.load(Ordering::Relaxed) + 1
    }

    /// The service has its answer.
    pub fn served(&self) {
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    /// Holds what is written from now on: whoever takes over the socket sends it.
    pub fn hold(&self) {
        self.holds.store(true, Ordering::Relaxed);
    }

    /// The connection ends with its next answer.
    pub fn close(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
    }

    pub fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }
}

/// A socket whose request heads are watched.
pub struct FramingGuard {
    socket: TcpStream,
    heads: HeadScanner,
    held: Vec<u8>,
    /// Whether anything was written since everything was.
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

    /// The socket, and what was held.
    pub fn into_parts(self) -> (TcpStream, Bytes) {
        (self.socket, self.held.into())
    }

    fn is_holding(&self) -> bool {
        self.state.holds.load(Ordering::Relaxed)
    }

    /// Follows what was read.
    fn follow(&mut self, bytes: &[u8]) {
        let before = self.heads.count();
        if let Some((number, framing)) = self.heads.follow(bytes) {
            let is_ambiguous = framing == Framing::Ambiguous;
            self.state.is_ambiguous.store(is_ambiguous, Ordering::Relaxed);
            self.state.stops_at.store(number, Ordering::Relaxed);
        }
        if self.heads.count() > before {
            self.state.pace.answering();
        } else if self.heads.is_under_way() {
            self.state.pace.head_begun();
        }
    }

    /// Notes that the peer took something of an answer.
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
        self.follow(&buf.filled()[before..]);
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

    /// hyper flushes when it has written all that it had.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.has_written && self.state.served.load(Ordering::Relaxed) >= self.heads.count() {
            self.has_written = false;
            self.state.pace.answered(self.heads.is_under_way());
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
