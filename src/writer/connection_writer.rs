//! The only writer of a connection's socket.
//!
//! Without a backlog a frame goes straight to the socket, from whichever thread delivers it: no wake, no hop, no
//! reference count. What the socket does not take is queued, and a flusher task lives as long as the backlog.
//! One small lock guards backlog and phase; it is never held across an await.

mod closing;

pub use closing::LeavingWriters;

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
use super::kernel;
use super::pulse::Pulse;
use super::write_queue::{QueueLimits, WriteQueue};
use crate::clock;
use crate::metrics::Metrics;
use crate::protocol::code::CloseCode;
use crate::protocol::frame;

/// How long after our close frame a peer may keep the connection before it is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A close frame without a code, and no close frame at all (RFC 6455, section 7.4.1): they are shown, never sent.
const NO_STATUS: u16 = 1005;
const NO_CLOSE_FRAME: u16 = 1006;

/// What all writers of a server share: limits, runtime, metrics.
pub struct WriterLimits {
    pub queue: QueueLimits,
    pub ping_interval: Duration,
    pub pong_timeout: Duration,
    /// Where flushers run: frames are also sent by threads outside the runtime.
    pub runtime: Handle,
    pub metrics: Arc<Metrics>,
    pub leaving: LeavingWriters,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Written,
    Queued,
    /// The queue is over its limit: nothing was taken. The sender decides between waiting and
    /// [`ConnectionWriter::close`].
    Full,
    /// The connection is closing: nothing more goes out.
    Closed,
}

/// Whether the caller may write a chunk itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// It may, and ends the reservation with [`ConnectionWriter::complete`]; until then everything else is queued.
    Reserved,
    Done(Sent),
}

/// One connection's way out.
pub struct ConnectionWriter {
    socket: OwnedWriteHalf,
    state: Mutex<State>,
    /// Set before each ping of ours is written, cleared by any byte of the client's.
    awaiting_pong: AtomicBool,
    limits: Arc<WriterLimits>,
}

#[derive(Default)]
struct State {
    write_queue: WriteQueue,
    pulse: Pulse,
    phase: Phase,
    /// Whether somebody writes the socket without holding this lock: a flusher, or whoever has reserved it. It changes
    /// under this lock only, so that no backlog is left without one.
    is_writing: bool,
    /// The code of the close frame, sent or echoed; 0: there was none.
    close_code: u16,
    /// Wakes the reader when somebody else closes the connection.
    reader: Option<Waker>,
}

impl State {
    /// Whether what is to be sent must be queued behind something.
    fn is_busy(&self) -> bool {
        self.is_writing || !self.write_queue.is_empty()
    }

    fn queue(&mut self, chunk: &impl Chunk, limits: &QueueLimits) -> Sent {
        if self.write_queue.try_push(chunk, limits) {
            Sent::Queued
        } else {
            Sent::Full
        }
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
    Closing { since: u32, queued: Queued },
    /// The socket is of no more use.
    Dead,
}

/// Which of the queued frames still precede a close frame.
#[derive(Clone, Copy, PartialEq)]
pub enum Queued {
    Deliver,
    Discard,
}

impl ConnectionWriter {
    /// `answer`, to the handshake, goes out with the first frame.
    pub fn new(socket: OwnedWriteHalf, answer: Bytes, limits: Arc<WriterLimits>) -> Arc<Self> {
        let mut state = State::default();
        if !answer.is_empty() {
            state.write_queue.push_handshake_answer(answer);
        }
        Arc::new(Self {
            socket,
            state: Mutex::new(state),
            awaiting_pong: AtomicBool::new(false),
            limits,
        })
    }

    /// Sends frames of the session: one chunk of whole frames. An empty queue takes a chunk of any size.
    pub fn send(self: &Arc<Self>, chunk: &impl Chunk) -> Sent {
        self.send_locked(self.state.lock(), chunk)
    }

    /// Sends a frame that must not be left out, without waiting: an answer to the client's own frame, or a status
    /// frame. It may exceed the limit by as much again; beyond that the reader is closed as slow.
    pub fn send_required(self: &Arc<Self>, frame: &impl Chunk) -> Sent {
        let mut state = self.state.lock();
        if state.phase == Phase::Open && state.is_busy() {
            if state.write_queue.push_required(frame, &self.limits.queue) {
                return Sent::Queued;
            }
            drop(state);
            self.close(CloseCode::SlowConsumer, "outbound queue is full", Queued::Discard);
            return Sent::Closed;
        }
        self.send_locked(state, frame)
    }

    /// Sends `first` before anything that others send: `publish`, which makes the connection known to them, runs first,
    /// and they wait until it is written or queued.
    pub fn send_first(self: &Arc<Self>, first: &Bytes, publish: impl FnOnce()) {
        let mut state = self.state.lock();
        publish();
        state.write_queue.push(first.clone());
        self.write_now(state);
    }

    fn send_locked(self: &Arc<Self>, mut state: MutexGuard<'_, State>, chunk: &impl Chunk) -> Sent {
        if state.phase != Phase::Open {
            return Sent::Closed;
        }
        if state.is_busy() {
            return state.queue(chunk, &self.limits.queue);
        }
        let result = self.send_now(chunk);
        self.finish_send(state, chunk, result)
    }

    /// Reserves the socket for a chunk that the caller writes itself, without holding a lock: the chunks of many
    /// sockets go to the kernel together.
    pub fn reserve(&self, chunk: &impl Chunk) -> Reservation {
        let mut state = self.state.lock();
        if state.phase != Phase::Open {
            return Reservation::Done(Sent::Closed);
        }
        if state.is_busy() {
            return Reservation::Done(state.queue(chunk, &self.limits.queue));
        }
        state.is_writing = true;
        Reservation::Reserved
    }

    /// Ends a reservation with the result of its send, as from `send(2)`.
    pub fn complete(self: &Arc<Self>, chunk: &impl Chunk, result: io::Result<usize>) -> Sent {
        let mut state = self.state.lock();
        state.is_writing = false;
        if state.phase == Phase::Dead {
            return Sent::Closed;
        }
        self.finish_send(state, chunk, result)
    }

    /// One `send`, past the runtime's notes on the socket: one cache line less for each recipient. The flusher, if it
    /// comes to one, finds out by itself that the socket is full.
    pub fn send_now(&self, chunk: &impl Chunk) -> io::Result<usize> {
        SockRef::from(self.socket.as_ref()).send(chunk.bytes())
    }

    /// The socket, for whoever has reserved it.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_ref().as_fd()
    }

    /// Queues what is left of a chunk after its send, and makes sure that somebody writes it.
    fn finish_send(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        chunk: &impl Chunk,
        result: io::Result<usize>,
    ) -> Sent {
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
                self.fail(&mut state);
                return Sent::Closed;
            }
        };
        let is_whole = written == chunk.bytes().len();
        // Somebody may have closed meanwhile, and what nothing was sent of may then be left out like what was queued.
        let discards = matches!(
            state.phase,
            Phase::Closing {
                queued: Queued::Discard,
                ..
            }
        );
        if written == 0 && !is_whole && discards {
            self.write_now(state);
            return Sent::Closed;
        }
        if !is_whole {
            let hold = |chunk| self.limits.queue.memory.hold(chunk);
            state.write_queue.push_partly_sent(chunk.to_bytes(hold), written);
        }
        // Something may have been queued while the chunk was under way: often the socket takes that, too.
        let is_done = state.write_queue.is_empty() || (is_whole && self.write_backlog(&mut state));
        if !is_done {
            self.start_flusher(state);
        }
        if is_whole { Sent::Written } else { Sent::Queued }
    }

    /// Answers a ping. At most one pong waits, whatever the peer sends.
    pub fn pong(self: &Arc<Self>, payload: &[u8]) {
        let mut state = self.state.lock();
        if state.phase != Phase::Open {
            return;
        }
        state.write_queue.set_pong(frame::pong(payload));
        self.write_now(state);
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

    /// How the connection ended: the code of the close frame, or what RFC 6455 has for none.
    pub fn close_code(&self) -> u16 {
        match self.state.lock().close_code {
            0 => NO_CLOSE_FRAME,
            code => code,
        }
    }

    /// Whether anything more can go out.
    pub fn is_open(&self) -> bool {
        self.state.lock().phase == Phase::Open
    }

    /// Ready once somebody has closed the connection; the last task to ask is woken then.
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

    /// Notes that something has come from the client, be it a byte: it lives.
    pub fn heard(&self) {
        // Most of the time the flag is down, and a load is cheaper than a store for the neighbours' cache line.
        if self.awaiting_pong.load(Ordering::Relaxed) {
            self.awaiting_pong.store(false, Ordering::Relaxed);
        }
    }

    /// What has to be done from time to time: pings, and an end for whoever doesn't answer, read or leave.
    pub fn sweep(self: &Arc<Self>) {
        let state = self.state.lock();
        match state.phase {
            Phase::Open => self.check_pulse(state),
            Phase::Closing { since, .. } if clock::since(since) > CLOSE_TIMEOUT => {
                drop(state);
                self.abort();
            }
            Phase::Closing { .. } | Phase::Dead => {}
        }
    }

    fn check_pulse(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let is_awaiting = self.awaiting_pong.load(Ordering::Relaxed);
        let is_behind = !state.write_queue.is_empty();
        if is_awaiting || is_behind {
            state.pulse.look(kernel::stream(self.socket()));
        }
        // Our own queue's progress shows in large steps, since the kernel asks for more in such steps.
        let stalled = state
            .write_queue
            .stalled_for()
            .min(state.pulse.unacknowledged_for());
        if is_behind && stalled > self.limits.queue.send_timeout {
            drop(state);
            let reason = "no progress within the send timeout";
            self.close(CloseCode::SlowConsumer, reason, Queued::Discard);
        } else if is_awaiting {
            let silent = state.pulse.silent_for().min(state.write_queue.since_progress());
            // A ping that has not been written yet is waited for by the send timeout.
            if !state.write_queue.has_ping() && silent > self.limits.pong_timeout {
                drop(state);
                self.close(CloseCode::NoPong, "no pong in time", Queued::Discard);
            }
        } else if state.pulse.is_ping_due(self.limits.ping_interval) {
            state.pulse.ping_asked_for();
            state.write_queue.set_ping();
            // Before it is written: its pong may be faster than we are.
            self.awaiting_pong.store(true, Ordering::Relaxed);
            self.write_now(state);
        }
    }

    /// Bytes that wait for the socket.
    pub fn backlog(&self) -> usize {
        self.state.lock().write_queue.bytes()
    }

    /// Queued bytes that could be given up.
    pub fn spare_backlog(&self) -> usize {
        let state = self.state.lock();
        match state.phase {
            Phase::Open
            | Phase::Closing {
                queued: Queued::Deliver,
                ..
            } => state.write_queue.bytes(),
            _ => 0,
        }
    }

    /// Whether a full queue will soon have room.
    pub fn is_worth_waiting_for(&self) -> bool {
        let state = self.state.lock();
        state.phase == Phase::Open && state.write_queue.is_worth_waiting_for(&self.limits.queue)
    }

    /// Writes what the socket takes. True when nothing is left to write (or nobody to write to).
    fn write_backlog(&self, state: &mut State) -> bool {
        while let Some(written) = state
            .write_queue
            .write_to(|chunks| self.socket.try_write_vectored(chunks))
        {
            match written {
                Ok(written) => {
                    if let Some(since_ping) = state.write_queue.advance(written, &self.limits.queue) {
                        let stream = kernel::stream(self.socket());
                        state.pulse.ping_written(since_ping, stream);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => {
                    self.fail(state);
                    return true;
                }
            }
        }
        if matches!(state.phase, Phase::Closing { .. }) {
            // After the close frame nothing follows: say so, and let the reader see the peer's end (RFC 6455, 7.1.1).
            let _ = SockRef::from(self.socket.as_ref()).shutdown(std::net::Shutdown::Write);
        }
        true
    }

    /// Writes what is queued, unless somebody else does, and makes sure that the rest is written later.
    fn write_now(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if !state.is_writing && !self.write_backlog(&mut state) {
            self.start_flusher(state);
        }
    }

    fn start_flusher(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if !state.is_writing {
            state.is_writing = true;
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
                state.is_writing = false;
                return;
            }
        }
    }

    /// The socket is broken: forget the backlog and wake the reader.
    fn fail(&self, state: &mut State) {
        state.phase = Phase::Dead;
        state.write_queue.clear(&self.limits.queue);
        let _ = SockRef::from(self.socket.as_ref()).shutdown(std::net::Shutdown::Both);
        state.wake_reader();
    }
}

impl Drop for ConnectionWriter {
    fn drop(&mut self) {
        // What the backlog has overdrawn is given back, however the connection ended.
        self.state.get_mut().write_queue.clear(&self.limits.queue);
    }
}

#[cfg(test)]
#[path = "connection_writer_tests.rs"]
mod tests;
