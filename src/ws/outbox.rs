//! The only writer of a connection's socket.
//!
//! Without a backlog a frame goes straight to the socket, from whichever thread delivers it: no wake, no hop, no
//! reference count. What the socket does not take is queued, and a flusher task lives as long as the backlog.
//! One small lock guards queue, offset and phase; it is never held across an await.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use socket2::SockRef;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::clock;
use crate::metrics::Metrics;
use crate::protocol::code::CloseCode;
use crate::protocol::frame;

/// How many queued chunks one `writev` takes.
const MAX_IOVECS: usize = 64;

/// How long after our close frame a peer may keep the connection before it is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A backlog younger than this is a burst of ours; a reader is not cut for it while it drains.
const BURST: Duration = Duration::from_secs(1);

/// What all outboxes of a server share.
pub struct OutboxLimits {
    /// `SEND_QUEUE_BYTES`.
    pub queue_bytes: usize,
    /// `SEND_TIMEOUT`: a backlog that doesn't shrink for so long means a dead reader.
    pub send_timeout: Duration,
    pub ping_interval: Duration,
    pub pong_timeout: Duration,
    /// Where flushers run: frames are also sent by threads outside the runtime.
    pub runtime: Handle,
    pub metrics: Arc<Metrics>,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Written,
    Queued,
    /// The queue is over its limit: nothing was taken. The sender decides between waiting and [`Outbox::close`].
    Full,
    /// The connection is closing: nothing more goes out.
    Closed,
}

/// One connection's way out.
pub struct Outbox {
    socket: OwnedWriteHalf,
    state: Mutex<State>,
    /// Wakes the reader when somebody else closes the connection.
    closing: Notify,
    /// Set with each ping of ours, cleared by any frame of the client's.
    awaiting_pong: AtomicBool,
    /// When the last ping went out ([`clock::now_ms`]).
    pinged_at: AtomicU32,
    limits: Arc<OutboxLimits>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Bytes>,
    /// Bytes of the first chunk that are written: nothing may come between them and the rest.
    offset: usize,
    /// Bytes queued and unwritten.
    bytes: usize,
    /// A pong that waits for the socket; a newer one replaces it (RFC 6455, section 5.5.3).
    pong: Option<Bytes>,
    phase: Phase,
    /// Whether a flusher lives. It changes under this lock only, so that no backlog is left without one.
    flushing: bool,
    /// When the backlog began, and when it last shrank.
    backlog_since: u32,
    progress_at: u32,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Phase {
    #[default]
    Open,
    /// The close frame is queued or sent; nothing follows it.
    Closing { since: u32 },
    /// The socket is of no more use.
    Dead,
}

/// Which of the queued frames still precede a close frame.
#[derive(Clone, Copy, PartialEq)]
pub enum Queued {
    Deliver,
    Discard,
}

impl Outbox {
    pub fn new(socket: OwnedWriteHalf, limits: Arc<OutboxLimits>) -> Arc<Self> {
        Arc::new(Self {
            socket,
            state: Mutex::default(),
            closing: Notify::new(),
            awaiting_pong: AtomicBool::new(false),
            pinged_at: AtomicU32::new(clock::now_ms()),
            limits,
        })
    }

    /// Sends frames of the session: one chunk of whole frames. An empty queue takes a chunk of any size.
    pub fn send(self: &Arc<Self>, chunk: &Bytes) -> Sent {
        self.send_locked(self.state.lock(), chunk, self.limits.queue_bytes)
    }

    /// Sends an answer to the client's own frame. Answers are small and may go over the queue's limit once more,
    /// so that a burst to the session does not cost a client its answers; beyond that it is a slow consumer.
    pub fn answer(self: &Arc<Self>, frame: &Bytes) {
        if self.send_locked(self.state.lock(), frame, 2 * self.limits.queue_bytes) == Sent::Full {
            self.close(CloseCode::SlowConsumer, "outbound queue is full", Queued::Discard);
        }
    }

    /// Holds everything that others send until `first` is sent: `publish` makes the connection known to them.
    pub fn send_first(self: &Arc<Self>, first: &Bytes, publish: impl FnOnce()) {
        let state = self.state.lock();
        publish();
        self.send_locked(state, first, usize::MAX);
    }

    fn send_locked(self: &Arc<Self>, mut state: MutexGuard<'_, State>, chunk: &Bytes, limit: usize) -> Sent {
        if state.phase != Phase::Open {
            return Sent::Closed;
        }
        if !state.queue.is_empty() || state.pong.is_some() {
            if state.bytes + chunk.len() > limit {
                return Sent::Full;
            }
            state.push(chunk.clone());
            return Sent::Queued;
        }
        match self.socket.try_write(chunk) {
            Ok(written) if written == chunk.len() => Sent::Written,
            Ok(written) => {
                state.begin_backlog(chunk.clone(), written);
                self.start_flusher(state);
                Sent::Queued
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                state.begin_backlog(chunk.clone(), 0);
                self.start_flusher(state);
                Sent::Queued
            }
            Err(_) => {
                self.fail(&mut state);
                Sent::Closed
            }
        }
    }

    /// Answers a ping. At most one pong waits, whatever the peer sends.
    pub fn pong(self: &Arc<Self>, payload: &[u8]) {
        let mut state = self.state.lock();
        if state.phase != Phase::Open {
            return;
        }
        state.pong = Some(frame::pong(payload));
        if state.queue.is_empty() {
            state.progress_at = clock::now_ms();
            state.backlog_since = state.progress_at;
        }
        if !state.flushing && !self.write_backlog(&mut state) {
            self.start_flusher(state);
        }
    }

    /// Sends a close frame and nothing after it. Returns whether this call was the first to close.
    pub fn close(self: &Arc<Self>, code: CloseCode, reason: &str, queued: Queued) -> bool {
        let first = self.close_with(frame::close(code, reason), queued);
        if first {
            self.limits.metrics.closed(code);
        }
        first
    }

    /// Echoes the client's close.
    pub fn echo_close(self: &Arc<Self>, code: Option<u16>) {
        if self.close_with(frame::close_echo(code), Queued::Discard) {
            self.limits.metrics.closed(CloseCode::Normal);
        }
    }

    fn close_with(self: &Arc<Self>, close: Bytes, queued: Queued) -> bool {
        let mut state = self.state.lock();
        if state.phase != Phase::Open {
            return false;
        }
        if queued == Queued::Discard {
            state.discard();
        }
        let now = clock::now_ms();
        if state.queue.is_empty() {
            (state.backlog_since, state.progress_at) = (now, now);
        }
        state.push(close);
        state.phase = Phase::Closing { since: now };
        if !state.flushing && !self.write_backlog(&mut state) {
            self.start_flusher(state);
        } else {
            drop(state);
        }
        self.closing.notify_one();
        true
    }

    /// Drops the connection without a word; what the kernel still holds for it is given up.
    pub fn abort(&self) {
        let mut state = self.state.lock();
        let _ = SockRef::from(self.socket.as_ref()).set_linger(Some(Duration::ZERO));
        self.fail(&mut state);
    }

    /// Notes that the peer is gone: nothing more goes out.
    pub fn gone(&self) {
        self.fail(&mut self.state.lock());
    }

    /// Whether anything more can go out.
    pub fn is_open(&self) -> bool {
        self.state.lock().phase == Phase::Open
    }

    /// Resolves once somebody closes the connection.
    pub async fn closing(&self) {
        self.closing.notified().await;
    }

    /// Notes a frame of the client's: it lives.
    pub fn heard(&self) {
        // Most of the time the flag is down, and a load is cheaper than a store for the neighbours' cache line.
        if self.awaiting_pong.load(Ordering::Relaxed) {
            self.awaiting_pong.store(false, Ordering::Relaxed);
        }
    }

    /// What has to be done from time to time: pings, and an end for whoever doesn't answer, read or leave.
    pub fn sweep(self: &Arc<Self>) {
        let (phase, stalled) = {
            let state = self.state.lock();
            let has_backlog = !state.queue.is_empty();
            (
                state.phase,
                has_backlog && clock::since(state.progress_at) > self.limits.send_timeout,
            )
        };
        match phase {
            Phase::Closing { since } if clock::since(since) > CLOSE_TIMEOUT => self.abort(),
            Phase::Open if stalled => {
                self.close(
                    CloseCode::SlowConsumer,
                    "no progress within the send timeout",
                    Queued::Discard,
                );
            }
            Phase::Open => self.check_pulse(),
            Phase::Closing { .. } | Phase::Dead => {}
        }
    }

    fn check_pulse(self: &Arc<Self>) {
        let since_ping = clock::since(self.pinged_at.load(Ordering::Relaxed));
        if self.awaiting_pong.load(Ordering::Relaxed) && since_ping > self.limits.pong_timeout {
            self.close(CloseCode::NoPong, "no pong in time", Queued::Discard);
        } else if since_ping >= self.limits.ping_interval {
            self.pinged_at.store(clock::now_ms(), Ordering::Relaxed);
            self.awaiting_pong.store(true, Ordering::Relaxed);
            self.send(&frame::PING);
        }
    }

    /// Bytes that wait for the socket.
    pub fn backlog(&self) -> usize {
        self.state.lock().bytes
    }

    /// Whether a full queue is only a burst of ours that the reader is draining.
    pub fn is_draining_burst(&self) -> bool {
        let state = self.state.lock();
        state.phase == Phase::Open && clock::since(state.backlog_since) < BURST
    }

    /// Writes what the socket takes. True when nothing is left to write (or nobody to write to).
    fn write_backlog(&self, state: &mut State) -> bool {
        state.place_pong();
        while !state.queue.is_empty() {
            let mut chunks = [IoSlice::new(&[]); MAX_IOVECS];
            let count = state.queue.len().min(MAX_IOVECS);
            for (slot, chunk) in chunks.iter_mut().zip(&state.queue) {
                *slot = IoSlice::new(chunk);
            }
            chunks[0] = IoSlice::new(&state.queue[0][state.offset..]);
            match self.socket.try_write_vectored(&chunks[..count]) {
                Ok(written) => state.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => {
                    self.fail(state);
                    return true;
                }
            }
        }
        // Its memory grew with the backlog, and an idle connection should hold almost nothing.
        state.queue = VecDeque::new();
        if matches!(state.phase, Phase::Closing { .. }) {
            // After the close frame nothing follows: say so, and let the reader see the peer's end (RFC 6455, 7.1.1).
            let _ = SockRef::from(self.socket.as_ref()).shutdown(std::net::Shutdown::Write);
        }
        true
    }

    fn start_flusher(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if !state.flushing {
            state.flushing = true;
            drop(state);
            self.limits.runtime.spawn(Arc::clone(self).flush());
        }
    }

    async fn flush(self: Arc<Self>) {
        loop {
            let ready = self.socket.writable().await;
            let mut state = self.state.lock();
            if ready.is_err() {
                self.fail(&mut state);
            }
            if self.write_backlog(&mut state) {
                state.flushing = false;
                return;
            }
        }
    }

    /// The socket is broken: forget the backlog and wake the reader.
    fn fail(&self, state: &mut State) {
        state.phase = Phase::Dead;
        state.queue = VecDeque::new();
        (state.offset, state.bytes, state.pong) = (0, 0, None);
        let _ = SockRef::from(self.socket.as_ref()).shutdown(std::net::Shutdown::Both);
        self.closing.notify_one();
    }
}

impl State {
    fn push(&mut self, chunk: Bytes) {
        self.bytes += chunk.len();
        self.queue.push_back(chunk);
    }

    fn begin_backlog(&mut self, chunk: Bytes, written: usize) {
        self.push(chunk);
        self.offset = written;
        self.bytes -= written;
        self.progress_at = clock::now_ms();
        self.backlog_since = self.progress_at;
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        self.progress_at = clock::now_ms();
        while let Some(first) = self.queue.front() {
            let rest = first.len() - self.offset;
            if written < rest {
                self.offset += written;
                return;
            }
            written -= rest;
            self.offset = 0;
            self.queue.pop_front();
        }
    }

    /// Puts the waiting pong before all but a partly sent chunk.
    fn place_pong(&mut self) {
        if let Some(pong) = self.pong.take() {
            self.bytes += pong.len();
            self.queue.insert(usize::from(self.offset > 0), pong);
        }
    }

    /// Forgets everything that is not partly sent.
    fn discard(&mut self) {
        self.pong = None;
        self.queue.truncate(usize::from(self.offset > 0));
        self.bytes = self.queue.front().map_or(0, |chunk| chunk.len() - self.offset);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is written in whatever pieces: chunks stay whole and in order, and the pong falls between them.
        #[test]
        fn the_queue_keeps_frames_whole(steps in prop::collection::vec((0u8..4, 1usize..40), 1..60)) {
            let mut state = State::default();
            let mut written = Vec::new();
            let mut next = 0u8;
            for (step, size) in steps {
                match step {
                    0 | 1 => {
                        state.push(Bytes::from(vec![next; size]));
                        next = (next + 1) % 200;
                    }
                    2 => {
                        state.pong = Some(Bytes::from(vec![255; 3]));
                        state.place_pong();
                    }
                    _ => {
                        let size = size.min(state.bytes);
                        let mut pending = Vec::new();
                        for (at, chunk) in state.queue.iter().enumerate() {
                            pending.extend_from_slice(&chunk[if at == 0 { state.offset } else { 0 }..]);
                        }
                        prop_assert_eq!(pending.len(), state.bytes);
                        written.extend_from_slice(&pending[..size]);
                        if size > 0 {
                            state.advance(size);
                        }
                    }
                }
            }
            let data: Vec<u8> = written.iter().copied().filter(|&byte| byte != 255).collect();
            let mut seen: Vec<u8> = data.clone();
            seen.dedup();
            let expected: Vec<u8> = (0..seen.len()).map(|at| (at % 200) as u8).collect();
            prop_assert_eq!(&seen, &expected);
            // A chunk once begun is not interrupted by a pong.
            let mut runs = written.clone();
            runs.dedup();
            let repeated = runs.iter().filter(|&&byte| byte != 255).count();
            prop_assert_eq!(repeated, seen.len());
        }
    }
}
