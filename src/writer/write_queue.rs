//! The queue of what one socket has not taken yet, and its limits.
//!
//! `SEND_QUEUE_BYTES` limits the queue of a reader that doesn't drain. A draining reader's queue may exceed it in a
//! burst of messages, such as after an outage of the log: for at most `SEND_TIMEOUT`, by at most [`MAX_OVERDRAFT`], and
//! as long as all queues together are within `SEND_MEMORY_BYTES` (see [`memory`](super::memory)).
//!
//! A full queue refuses no ping, pong or close: the first two have slots of their own, and a close frame is pushed
//! regardless of the limits.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::chunk::Chunk;
use super::memory::SendMemory;
use crate::clock;
use crate::protocol::frame;

/// The most chunks in one `writev`.
const MAX_IOVECS: usize = 64;

/// How much one connection may queue beyond `SEND_QUEUE_BYTES`.
const MAX_OVERDRAFT: usize = 8 << 20;

/// A queue of at most this size still takes a chunk when memory is scarce: such queues are not what fills it.
const SMALL_QUEUE: usize = 64 << 10;

/// A reader that takes nothing for this long is not draining: a second is many round trips.
const STALL: Duration = Duration::from_secs(1);

/// The limits of all backlogs.
pub struct QueueLimits {
    /// `SEND_QUEUE_BYTES`.
    pub queue_bytes: usize,
    /// `SEND_TIMEOUT`: a backlog that doesn't shrink for this long means that the reader is dead.
    pub send_timeout: Duration,
    /// `SEND_MEMORY_BYTES`, and how much of it is used.
    pub memory: Arc<SendMemory>,
}

impl QueueLimits {
    pub fn new(queue_bytes: usize, send_timeout: Duration, memory: Arc<SendMemory>) -> Self {
        Self {
            queue_bytes,
            send_timeout,
            memory,
        }
    }
}

#[derive(Default)]
pub struct WriteQueue {
    queue: VecDeque<Bytes>,
    /// How many bytes of the first chunk are written: the rest must follow directly.
    offset: usize,
    /// Whether the first chunk is the answer to the handshake, which must always be sent.
    has_answer: bool,
    /// Bytes queued and unwritten.
    bytes: usize,
    /// How many of them are allowed beyond `SEND_QUEUE_BYTES`.
    overdrawn: usize,
    /// When the queue last exceeded its limit, and when it was started or last shrank ([`clock::now_ms`]).
    over_since: u32,
    progress_at: u32,
    /// Entries of the queue that are counted in [`QueueLimits::memory`].
    counted: u32,
    /// Whether any of this backlog has been written.
    has_shrunk: bool,
    control: Control,
}

/// Control frames that wait for the socket. They precede all chunks but one that is partly written, or the handshake's
/// answer.
#[derive(Default)]
struct Control {
    /// One of our pings.
    ping: bool,
    /// The answer to the client's newest ping (RFC 6455, section 5.5.3). Boxed, since few connections ever have one.
    pong: Option<Box<Bytes>>,
}

impl Control {
    fn is_empty(&self) -> bool {
        !self.ping && self.pong.is_none()
    }

    /// In the order in which they are sent.
    fn frames(&self) -> impl Iterator<Item = &[u8]> {
        let ping = self.ping.then_some(frame::PING_BYTES);
        ping.into_iter().chain(self.pong.as_ref().map(|pong| &pong[..]))
    }

    /// The first of them, and whether it is the ping.
    fn take_first(&mut self) -> Option<(Bytes, bool)> {
        if std::mem::take(&mut self.ping) {
            return Some((frame::PING, true));
        }
        self.pong.take().map(|pong| (*pong, false))
    }
}

impl WriteQueue {
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.control.is_empty()
    }

    /// Bytes that wait, control frames not included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How long nothing has been written although something waits.
    pub fn stalled_for(&self) -> Duration {
        if self.is_empty() {
            Duration::ZERO
        } else {
            clock::since(self.progress_at)
        }
    }

    /// How long ago anything of a backlog, this one or the last, was written.
    pub fn since_progress(&self) -> Duration {
        clock::since(self.progress_at)
    }

    /// Whether the reader makes progress and has not been over the limit for too long.
    fn is_draining(&self, limits: &QueueLimits) -> bool {
        let has_been_behind = self.overdrawn > 0 && clock::since(self.over_since) >= limits.send_timeout;
        self.stalled_for() < STALL && !has_been_behind
    }

    /// Whether waiting for this reader makes sense: it is draining, and has already taken some of this backlog.
    pub fn is_worth_waiting_for(&self, limits: &QueueLimits) -> bool {
        self.has_shrunk && self.is_draining(limits)
    }

    /// Puts a chunk, `written` bytes of which are sent, before what was queued meanwhile, whatever its size.
    pub fn push_partly_sent(&mut self, chunk: Bytes, written: usize) {
        self.start_backlog();
        self.bytes += chunk.len() - written;
        self.offset = written;
        self.queue.push_front(chunk);
    }

    /// Puts the answer to the handshake first.
    pub fn push_handshake_answer(&mut self, answer: Bytes) {
        self.push_partly_sent(answer, 0);
        self.has_answer = true;
    }

    /// How many chunks must stay first and are never discarded: 0 or 1.
    fn pinned_chunks(&self) -> usize {
        usize::from(self.offset > 0 || self.has_answer)
    }

    /// Starts the timing of a backlog with its first chunk or control frame.
    fn start_backlog(&mut self) {
        if self.is_empty() {
            self.progress_at = clock::now_ms();
            self.has_shrunk = false;
        }
    }

    /// Queues a chunk regardless of the limit.
    pub fn push(&mut self, chunk: Bytes) {
        self.start_backlog();
        self.bytes += chunk.len();
        self.queue.push_back(chunk);
    }

    /// Queues a chunk if there is room for it.
    pub fn try_push(&mut self, chunk: &impl Chunk, limits: &QueueLimits) -> bool {
        let over = (self.bytes + chunk.bytes().len()).saturating_sub(limits.queue_bytes);
        if over > self.overdrawn {
            if !self.is_draining(limits) || over > MAX_OVERDRAFT || limits.memory.is_exceeded() {
                return false;
            }
            if self.overdrawn == 0 {
                self.over_since = clock::now_ms();
            }
            self.overdrawn = over;
        }
        self.push_counted(chunk, limits)
    }

    /// Queues a chunk beyond the limit, up to twice the limit.
    pub fn push_required(&mut self, chunk: &impl Chunk, limits: &QueueLimits) -> bool {
        if self.try_push(chunk, limits) {
            return true;
        }
        let has_room = self.bytes + chunk.bytes().len() <= 2 * limits.queue_bytes + self.overdrawn;
        has_room && self.push_counted(chunk, limits)
    }

    fn push_counted(&mut self, chunk: &impl Chunk, limits: &QueueLimits) -> bool {
        // The connections with the largest queues are closed to make room; those that are barely behind need not
        // suffer.
        if limits.memory.is_scarce() && (self.bytes > SMALL_QUEUE || limits.memory.is_exhausted()) {
            return false;
        }
        self.push(chunk.to_bytes(|chunk| limits.memory.count(chunk)));
        self.recount(limits);
        true
    }

    /// Passes what waits to `write`; `None` if there is nothing.
    pub fn write_to(
        &self,
        write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        if self.is_empty() {
            return None;
        }
        let pinned = self.pinned_chunks();
        let first = self.queue.range(..pinned).map(|chunk| &chunk[self.offset..]);
        let others = self.queue.range(pinned..).map(|chunk| &chunk[..]);
        let frames = first.chain(self.control.frames()).chain(others);
        let mut slices = [IoSlice::new(&[]); MAX_IOVECS];
        let mut count = 0;
        for (slice, frame) in slices.iter_mut().zip(frames) {
            *slice = IoSlice::new(frame);
            count += 1;
        }
        Some(write(&slices[..count]))
    }

    /// Removes what has been written. If one of our pings was in it, returns the number of bytes from its beginning on.
    pub fn advance(&mut self, written: usize, limits: &QueueLimits) -> Option<usize> {
        let mut rest = self.pop_written(written, self.pinned_chunks());
        let mut since_ping = None;
        while rest > 0 && self.pinned_chunks() == 0 {
            let Some((frame, is_ping)) = self.control.take_first() else {
                break;
            };
            if is_ping {
                since_ping = Some(rest);
            }
            if rest < frame.len() {
                self.push_partly_sent(frame, rest);
                rest = 0;
            } else {
                rest -= frame.len();
            }
        }
        self.pop_written(rest, usize::MAX);
        if self.queue.is_empty() {
            // Free the memory that grew with the backlog: an idle connection should hold almost nothing.
            self.queue = VecDeque::new();
        }
        self.release_excess(limits);
        since_ping
    }

    /// Removes written bytes from the front, from at most `chunks` chunks; returns how many are left.
    fn pop_written(&mut self, mut written: usize, chunks: usize) -> usize {
        if written > 0 && chunks > 0 && !self.queue.is_empty() {
            self.progress_at = clock::now_ms();
            self.has_shrunk = true;
        }
        for _ in 0..chunks {
            let Some(first) = self.queue.front() else { break };
            let rest = first.len() - self.offset;
            if written < rest {
                self.offset += written;
                self.bytes -= written;
                return 0;
            }
            written -= rest;
            self.bytes -= rest;
            (self.offset, self.has_answer) = (0, false);
            self.queue.pop_front();
        }
        written
    }

    /// Gives back what is no longer overdrawn, nor queued.
    fn release_excess(&mut self, limits: &QueueLimits) {
        self.overdrawn = self.overdrawn.min(self.bytes.saturating_sub(limits.queue_bytes));
        if self.counted as usize > self.queue.len() {
            self.recount(limits);
        }
    }

    fn recount(&mut self, limits: &QueueLimits) {
        limits.memory.recount_entries(&mut self.counted, self.queue.len());
    }

    /// Queues one of our pings.
    pub fn set_ping(&mut self) {
        self.start_backlog();
        self.control.ping = true;
    }

    /// Whether one of our pings waits to be written.
    pub fn has_ping(&self) -> bool {
        self.control.ping
    }

    /// Queues the answer to a client's ping; it replaces an older one that still waits.
    pub fn set_pong(&mut self, pong: Bytes) {
        self.start_backlog();
        self.control.pong = Some(Box::new(pong));
    }

    /// Discards everything but what must stay first.
    pub fn discard(&mut self, limits: &QueueLimits) {
        self.control = Control::default();
        self.queue.truncate(self.pinned_chunks());
        self.bytes = self.queue.front().map_or(0, |chunk| chunk.len() - self.offset);
        self.release_excess(limits);
    }

    /// The same, but keeps the last chunk.
    pub fn discard_but_last(&mut self, limits: &QueueLimits) {
        if self.queue.len() <= self.pinned_chunks() {
            return;
        }
        let last = self.queue.pop_back();
        self.discard(limits);
        if let Some(last) = last {
            self.push(last);
        }
    }

    /// Discards everything.
    pub fn clear(&mut self, limits: &QueueLimits) {
        self.queue = VecDeque::new();
        self.recount(limits);
        *self = Self::default();
    }
}

#[cfg(test)]
#[path = "write_queue_tests.rs"]
mod tests;
