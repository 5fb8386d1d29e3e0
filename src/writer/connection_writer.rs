//! The only writer of a connection's socket.
//!
//! Without a backlog, a frame goes straight to the socket, on the thread that delivers it: no task is woken, and no
//! reference count changes. What the socket does not take is queued, and a flusher task runs as long as there is a
//! backlog. One small lock guards backlog and phase; it is never held across an await.

mod closing;
mod expiring;
mod resuming;
mod sweeping;

pub use closing::ClosingWriters;
pub use resuming::{Pulled, Replay, SentUpTo, Start};

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use socket2::SockRef;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::runtime::Handle;

use super::chunk::Chunk;
use super::expiry::Expiry;
use super::kernel;
use super::liveness::Liveness;
use super::write_queue::{QueueLimits, WriteQueue};
use crate::metrics::Metrics;
use crate::protocol::code::CloseCode;
use crate::protocol::frame;
use resuming::Resuming;

/// How long after our close frame a peer may keep the connection open before it is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The codes for a close frame without a code, and for no close frame at all (RFC 6455, section 7.4.1): they are
/// logged, but never sent.
const NO_STATUS: u16 = 1005;
const NO_CLOSE_FRAME: u16 = 1006;

/// What all writers of a server share: limits, runtime, metrics, and which of them are closing.
pub struct WriterContext {
    pub queue: QueueLimits,
    pub ping_interval: Duration,
    pub pong_timeout: Duration,
    /// `JWT_LEEWAY` in seconds.
    pub token_leeway: i64,
    /// Where flushers run: frames are also sent by threads outside the runtime.
    pub runtime: Handle,
    pub metrics: Arc<Metrics>,
    pub closing: ClosingWriters,
}

/// The outcome of sending a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendOutcome {
    Written,
    Queued,
    /// The queue is full, and nothing was queued. The sender decides between waiting and [`ConnectionWriter::close`].
    Full,
    /// The connection is closing: nothing more is sent.
    Closed,
}

/// Whether the caller may write a chunk itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// It may, and must end the reservation with [`ConnectionWriter::complete`]; until then everything else is queued.
    Reserved,
    Done(SendOutcome),
}

/// Writes one connection's socket.
pub struct ConnectionWriter {
    socket: OwnedWriteHalf,
    state: Mutex<State>,
    /// Set before each of our pings is written, cleared by any byte from the client.
    awaiting_pong: AtomicBool,
    context: Arc<WriterContext>,
}

#[derive(Default)]
struct State {
    write_queue: WriteQueue,
    liveness: Liveness,
    expiry: Expiry,
    phase: Phase,
    /// Whether the socket is being written without holding this lock: by a flusher, or by the holder of a reservation.
    /// It changes only under this lock, so that no backlog is left without a writer.
    is_writing: bool,
    /// The code of the close frame, sent or echoed; 0: there was none.
    close_code: u16,
    /// The position after the last record that was sent or queued.
    sent_up_to: u64,
    /// What is owed to the client before live records.
    resuming: Option<Box<Resuming>>,
    /// Wakes the reading task when the connection is closed elsewhere.
    reader: Option<Waker>,
}

impl State {
    /// Whether a new frame must be queued.
    fn is_busy(&self) -> bool {
        self.is_writing || !self.write_queue.is_empty() || self.resuming.is_some()
    }

    fn queue(&mut self, chunk: &impl Chunk, limits: &QueueLimits) -> SendOutcome {
        if chunk.end() > 0
            && let Some(resuming) = &mut self.resuming
        {
            resuming.hold(chunk.end());
            return SendOutcome::Queued;
        }
        if self.write_queue.try_push(chunk, limits) {
            self.note_sent(chunk);
            SendOutcome::Queued
        } else {
            SendOutcome::Full
        }
    }

    fn note_sent(&mut self, chunk: &impl Chunk) {
        if chunk.end() > 0 {
            self.sent_up_to = chunk.end();
        }
    }

    /// Whether something is queued that nobody writes: that of a connection whose replay has not begun.
    fn needs_writer(&self) -> bool {
        self.resuming.is_some() && !self.is_writing && !self.write_queue.is_empty()
    }

    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Phase {
    #[default]
    Open,
    /// The close frame is queued or sent; nothing follows it.
    Closing { since: u32, backlog: BacklogPolicy },
    /// The socket can no longer be used.
    Dead,
}

/// What happens to queued frames when a close frame is sent.
#[derive(Clone, Copy, PartialEq)]
pub enum BacklogPolicy {
    Deliver,
    Discard,
}

impl ConnectionWriter {
    /// `answer`, the response to the handshake, is sent with the first frame.
    pub fn new(socket: OwnedWriteHalf, answer: Bytes, context: Arc<WriterContext>) -> Arc<Self> {
        let mut state = State::default();
        if !answer.is_empty() {
            state.write_queue.push_handshake_answer(answer);
        }
        Arc::new(Self {
            socket,
            state: Mutex::new(state),
            awaiting_pong: AtomicBool::new(false),
            context,
        })
    }

    /// Sends a chunk of the session's frames. If nothing waits and nobody writes, what the socket does not take is
    /// queued whatever its size; otherwise the queue's limits apply.
    pub fn send_chunk(self: &Arc<Self>, chunk: &impl Chunk) -> SendOutcome {
        self.send_locked(self.state.lock(), chunk)
    }

    /// Sends a frame that must not be dropped, without waiting: an answer to the client's own frame, or a status frame.
    /// The queue may reach twice its limit; beyond that, the connection is closed as too slow.
    pub fn send_required(self: &Arc<Self>, frame: &impl Chunk) -> SendOutcome {
        self.send_required_locked(self.state.lock(), frame)
    }

    fn send_required_locked(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        frame: &impl Chunk,
    ) -> SendOutcome {
        if state.phase == Phase::Open && state.is_busy() {
            if state.write_queue.push_required(frame, &self.context.queue) {
                self.write_unattended(state);
                return SendOutcome::Queued;
            }
            drop(state);
            self.close(
                CloseCode::SlowConsumer,
                "outbound queue is full",
                BacklogPolicy::Discard,
            );
            return SendOutcome::Closed;
        }
        self.send_locked(state, frame)
    }

    /// Makes the connection known to other senders with `publish`, and sends `first` before anything of theirs: they
    /// wait for the lock until it is written or queued. `position` is that of the first live record.
    pub fn send_first(self: &Arc<Self>, first: &Bytes, start: Start, position: u64, publish: impl FnOnce()) {
        let mut state = self.state.lock();
        publish();
        state.sent_up_to = position;
        state.resuming = Resuming::starting(start);
        state.write_queue.push(first.clone());
        self.flush_or_spawn(state);
    }

    fn send_locked(self: &Arc<Self>, mut state: MutexGuard<'_, State>, chunk: &impl Chunk) -> SendOutcome {
        if state.phase != Phase::Open {
            return SendOutcome::Closed;
        }
        if state.is_busy() {
            let sent = state.queue(chunk, &self.context.queue);
            self.write_unattended(state);
            return sent;
        }
        state.note_sent(chunk);
        let result = self.send_syscall(chunk);
        self.finish_send(state, chunk, result)
    }

    /// Reserves the socket for a chunk that the caller writes itself, without holding a lock: the chunks of many
    /// sockets are passed to the kernel together.
    pub fn reserve(&self, chunk: &impl Chunk) -> Reservation {
        let mut state = self.state.lock();
        if state.phase != Phase::Open {
            return Reservation::Done(SendOutcome::Closed);
        }
        if state.is_busy() {
            return Reservation::Done(state.queue(chunk, &self.context.queue));
        }
        state.note_sent(chunk);
        state.is_writing = true;
        Reservation::Reserved
    }

    /// Ends a reservation with the result of its send, as from `send(2)`.
    pub fn complete(self: &Arc<Self>, chunk: &impl Chunk, result: io::Result<usize>) -> SendOutcome {
        let mut state = self.state.lock();
        state.is_writing = false;
        if state.phase == Phase::Dead {
            return SendOutcome::Closed;
        }
        self.finish_send(state, chunk, result)
    }

    /// One `send` that bypasses the runtime's readiness state, which saves a cache line per recipient. If a flusher is
    /// needed, it finds out by itself that the socket is full.
    pub fn send_syscall(&self, chunk: &impl Chunk) -> io::Result<usize> {
        SockRef::from(self.socket.as_ref()).send(chunk.bytes())
    }

    /// The socket, for the holder of a reservation.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_ref().as_fd()
    }

    /// Queues what is left of a chunk after its send, and makes sure that it will be written.
    fn finish_send(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        chunk: &impl Chunk,
        result: io::Result<usize>,
    ) -> SendOutcome {
        let written = match result {
            Ok(written) => written,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                0
            }
            Err(_) => {
                self.mark_dead(&mut state);
                return SendOutcome::Closed;
            }
        };
        let is_whole = written == chunk.bytes().len();
        // The connection may have been closed meanwhile: a chunk of which nothing was sent is then dropped like those
        // that were queued.
        let discards = matches!(
            state.phase,
            Phase::Closing {
                backlog: BacklogPolicy::Discard,
                ..
            }
        );
        if written == 0 && !is_whole && discards {
            self.flush_or_spawn(state);
            return SendOutcome::Closed;
        }
        if !is_whole {
            let count = |chunk| self.context.queue.memory.count(chunk);
            state.write_queue.push_partly_sent(chunk.to_bytes(count), written);
        }
        // Frames may have been queued while the chunk was being sent: often the socket takes those, too.
        let is_done = state.write_queue.is_empty() || (is_whole && self.write_backlog(&mut state));
        if !is_done {
            self.start_flusher(state);
        }
        if is_whole {
            SendOutcome::Written
        } else {
            SendOutcome::Queued
        }
    }

    /// Answers a ping. At most one pong waits, however many pings the peer sends.
    pub fn pong(self: &Arc<Self>, payload: &[u8]) {
        let mut state = self.state.lock();
        if state.phase != Phase::Open {
            return;
        }
        state.write_queue.set_pong(frame::pong(payload));
        self.flush_or_spawn(state);
    }

    /// Drops the connection without a close frame; what the kernel still holds for it is discarded.
    pub fn abort(&self) {
        let mut state = self.state.lock();
        let _ = SockRef::from(self.socket.as_ref()).set_linger(Some(Duration::ZERO));
        self.mark_dead(&mut state);
    }

    /// Notes that the peer is gone: nothing more is sent.
    pub fn peer_gone(&self) {
        self.mark_dead(&mut self.state.lock());
    }

    /// How the connection ended: the code of the close frame, or RFC 6455's code for a missing one.
    pub fn close_code(&self) -> u16 {
        match self.state.lock().close_code {
            0 => NO_CLOSE_FRAME,
            code => code,
        }
    }

    /// Whether more can be sent.
    pub fn is_open(&self) -> bool {
        self.state.lock().phase == Phase::Open
    }

    /// Ready once the connection is closing; wakes the last task that polled.
    pub fn poll_closing(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.phase != Phase::Open {
            return Poll::Ready(());
        }
        match &mut state.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            reader => *reader = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Notes that something has been received from the client: it is alive.
    pub fn note_received(&self) {
        // The flag is rarely set, and a load does not invalidate the cache line as a store would.
        if self.awaiting_pong.load(Ordering::Relaxed) {
            self.awaiting_pong.store(false, Ordering::Relaxed);
        }
    }

    /// Bytes that wait for the socket.
    pub fn backlog(&self) -> usize {
        self.state.lock().write_queue.bytes()
    }

    /// Queued bytes that could be discarded.
    pub fn discardable_backlog(&self) -> usize {
        let state = self.state.lock();
        match state.phase {
            Phase::Open
            | Phase::Closing {
                backlog: BacklogPolicy::Deliver,
                ..
            } => state.write_queue.bytes(),
            _ => 0,
        }
    }

    /// Whether a full queue will soon have room.
    pub fn is_worth_waiting_for(&self) -> bool {
        let state = self.state.lock();
        state.phase == Phase::Open && state.write_queue.is_worth_waiting_for(&self.context.queue)
    }

    /// Writes what the socket takes. True if nothing is left to write, or the socket is broken.
    fn write_backlog(&self, state: &mut State) -> bool {
        loop {
            let written = state
                .write_queue
                .write_to(|chunks| self.socket.try_write_vectored(chunks));
            match written {
                None if self.pull(state) => {}
                None => break,
                Some(Ok(written)) => {
                    if let Some(since_ping) = state.write_queue.advance(written, &self.context.queue) {
                        let stream = kernel::stream(self.socket());
                        state.liveness.ping_written(since_ping, stream);
                    }
                }
                Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Some(Err(_)) => {
                    self.mark_dead(state);
                    return true;
                }
            }
        }
        if matches!(state.phase, Phase::Closing { .. }) {
            // Nothing follows the close frame: shut down writing; the reader then sees the peer's end (RFC 6455,
            // 7.1.1).
            let _ = SockRef::from(self.socket.as_ref()).shutdown(std::net::Shutdown::Write);
        }
        true
    }

    /// Writes what is queued, unless it is being written already, and spawns a flusher for what the socket does not
    /// take.
    fn flush_or_spawn(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if !state.is_writing && !self.write_backlog(&mut state) {
            self.start_flusher(state);
        }
    }

    /// Writes what nobody else would write; see [`State::needs_writer`].
    fn write_unattended(self: &Arc<Self>, state: MutexGuard<'_, State>) {
        if state.needs_writer() {
            self.flush_or_spawn(state);
        }
    }

    fn start_flusher(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if !state.is_writing {
            state.is_writing = true;
            drop(state);
            self.context.runtime.spawn(Arc::clone(self).flush());
        }
    }

    async fn flush(self: Arc<Self>) {
        loop {
            let ready = self.socket.writable().await;
            let mut state = self.state.lock();
            if ready.is_err() {
                self.mark_dead(&mut state);
            }
            if self.write_backlog(&mut state) {
                state.is_writing = false;
                return;
            }
        }
    }

    /// The socket is broken: forget the backlog and wake the reader.
    fn mark_dead(&self, state: &mut State) {
        state.phase = Phase::Dead;
        state.resuming = None;
        state.write_queue.clear(&self.context.queue);
        let _ = SockRef::from(self.socket.as_ref()).shutdown(std::net::Shutdown::Both);
        state.wake_reader();
    }
}

impl Drop for ConnectionWriter {
    fn drop(&mut self) {
        // Release the queue's memory, however the connection ended.
        self.state.get_mut().write_queue.clear(&self.context.queue);
    }
}

#[cfg(test)]
#[path = "connection_writer_tests.rs"]
mod tests;
