//! What one socket has not taken yet, and how much of it there may be.
//!
//! `SEND_QUEUE_BYTES` is the limit of a reader that doesn't drain. One that drains may go over it for a burst of
//! ours, say after the log was away: for at most `SEND_TIMEOUT`, by at most [`MAX_OVERDRAFT`], and all connections
//! together by at most [`TOTAL_OVERDRAFT`]. The chunks are shared by all recipients, so that the memory behind an
//! overdraft is mostly counted many times over.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::clock;
use crate::protocol::frames::Frames;

/// How many queued chunks one `writev` takes.
const MAX_IOVECS: usize = 64;

/// What one connection, and what all together, may queue beyond `SEND_QUEUE_BYTES`.
const MAX_OVERDRAFT: usize = 8 << 20;
const TOTAL_OVERDRAFT: usize = 256 << 20;

/// A reader that takes nothing for so long is not draining: a second is many round trips, and short of a person's
/// patience.
const STALL: Duration = Duration::from_secs(1);

/// The limits of all backlogs, and what they have overdrawn together.
pub struct QueueLimits {
    /// `SEND_QUEUE_BYTES`.
    pub queue_bytes: usize,
    /// `SEND_TIMEOUT`: a backlog that doesn't shrink for so long means a dead reader.
    pub send_timeout: Duration,
    overdrawn: AtomicUsize,
}

impl QueueLimits {
    pub fn new(queue_bytes: usize, send_timeout: Duration) -> Self {
        Self {
            queue_bytes,
            send_timeout,
            overdrawn: AtomicUsize::new(0),
        }
    }

    fn overdraw(&self, bytes: usize) -> bool {
        if self.overdrawn.fetch_add(bytes, Ordering::Relaxed) + bytes <= TOTAL_OVERDRAFT {
            return true;
        }
        self.give_back(bytes);
        false
    }

    fn give_back(&self, bytes: usize) {
        self.overdrawn.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[derive(Default)]
pub struct Backlog {
    queue: VecDeque<Bytes>,
    /// Bytes of the first chunk that are written: nothing may come between them and the rest.
    offset: usize,
    /// Whether the first chunk is the answer to the handshake, without which the rest means nothing.
    has_answer: bool,
    /// Bytes queued and unwritten.
    bytes: usize,
    /// What of them is counted in [`QueueLimits::overdrawn`].
    overdrawn: usize,
    /// When the queue last went over its limit, and when it began or last shrank ([`clock::now_ms`]).
    over_since: u32,
    progress_at: u32,
    /// Whether any of this backlog was taken.
    has_shrunk: bool,
    /// A pong that waits for the socket; a newer one replaces it (RFC 6455, section 5.5.3).
    pong: Option<Bytes>,
}

impl Backlog {
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.pong.is_none()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How long nothing has been written although there is something to write.
    pub fn stalled_for(&self) -> Duration {
        if self.is_empty() {
            Duration::ZERO
        } else {
            clock::since(self.progress_at)
        }
    }

    /// Whether the reader takes what it gets, and has not been behind for too long.
    fn is_draining(&self, limits: &QueueLimits) -> bool {
        let has_been_behind = self.overdrawn > 0 && clock::since(self.over_since) >= limits.send_timeout;
        self.stalled_for() < STALL && !has_been_behind
    }

    /// Whether waiting for this reader makes sense: it drains, and has shown it since the backlog began.
    pub fn is_worth_waiting_for(&self, limits: &QueueLimits) -> bool {
        self.has_shrunk && self.is_draining(limits)
    }

    /// Begins with a chunk of which `written` bytes are sent, before whatever was queued while it was: an empty queue
    /// takes one of any size.
    pub fn begin(&mut self, chunk: Bytes, written: usize) {
        self.wake_up();
        self.bytes += chunk.len() - written;
        self.offset = written;
        self.queue.push_front(chunk);
    }

    /// Begins with the answer to the handshake.
    pub fn begin_with_answer(&mut self, answer: Bytes) {
        self.begin(answer, 0);
        self.has_answer = true;
    }

    /// How many chunks nothing may come before and that are never left out: 0 or 1.
    fn fixed(&self) -> usize {
        usize::from(self.offset > 0 || self.has_answer)
    }

    /// The time of a backlog counts from its first chunk.
    fn wake_up(&mut self) {
        if self.is_empty() {
            self.progress_at = clock::now_ms();
            self.has_shrunk = false;
        }
    }

    /// Queues a chunk whatever the limit: for what must be said.
    pub fn push(&mut self, chunk: Bytes) {
        self.wake_up();
        self.bytes += chunk.len();
        self.queue.push_back(chunk);
    }

    /// Queues a chunk if there is room for it.
    pub fn try_push(&mut self, chunk: &impl Frames, limits: &QueueLimits) -> bool {
        let over = (self.bytes + chunk.bytes().len()).saturating_sub(limits.queue_bytes);
        if over > self.overdrawn {
            if !self.is_draining(limits) || over > MAX_OVERDRAFT || !limits.overdraw(over - self.overdrawn) {
                return false;
            }
            if self.overdrawn == 0 {
                self.over_since = clock::now_ms();
            }
            self.overdrawn = over;
        }
        self.push(chunk.keep());
        true
    }

    /// Queues a chunk beyond the limit, up to as much again.
    pub fn insist(&mut self, chunk: &Bytes, limits: &QueueLimits) -> bool {
        if self.try_push(chunk, limits) {
            return true;
        }
        let has_room = self.bytes + chunk.len() <= 2 * limits.queue_bytes + self.overdrawn;
        if has_room {
            self.push(chunk.clone());
        }
        has_room
    }

    /// Offers what is queued to `write`; `None` when there is nothing.
    pub fn write_to(
        &self,
        write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        let first = self.queue.front()?;
        let mut chunks = [IoSlice::new(&[]); MAX_IOVECS];
        for (slot, chunk) in chunks.iter_mut().zip(&self.queue) {
            *slot = IoSlice::new(chunk);
        }
        chunks[0] = IoSlice::new(&first[self.offset..]);
        Some(write(&chunks[..self.queue.len().min(MAX_IOVECS)]))
    }

    /// Notes what is written.
    pub fn advance(&mut self, mut written: usize, limits: &QueueLimits) {
        self.bytes -= written;
        self.progress_at = clock::now_ms();
        self.has_shrunk = true;
        self.settle(limits);
        while let Some(first) = self.queue.front() {
            let rest = first.len() - self.offset;
            if written < rest {
                self.offset += written;
                return;
            }
            written -= rest;
            (self.offset, self.has_answer) = (0, false);
            self.queue.pop_front();
        }
        // Its memory grew with the backlog, and an idle connection should hold almost nothing.
        self.queue = VecDeque::new();
    }

    /// Gives back what is no longer overdrawn.
    fn settle(&mut self, limits: &QueueLimits) {
        let over = self.bytes.saturating_sub(limits.queue_bytes).min(self.overdrawn);
        if over < self.overdrawn {
            limits.give_back(self.overdrawn - over);
            self.overdrawn = over;
        }
    }

    pub fn set_pong(&mut self, pong: Bytes) {
        if self.is_empty() {
            self.progress_at = clock::now_ms();
        }
        self.pong = Some(pong);
    }

    /// Puts the waiting pong before all but a chunk that nothing may come before.
    pub fn place_pong(&mut self) {
        if let Some(pong) = self.pong.take() {
            self.bytes += pong.len();
            self.queue.insert(self.fixed(), pong);
        }
    }

    /// Forgets everything that may be left out.
    pub fn discard(&mut self, limits: &QueueLimits) {
        self.pong = None;
        self.queue.truncate(self.fixed());
        self.bytes = self.queue.front().map_or(0, |chunk| chunk.len() - self.offset);
        self.settle(limits);
    }

    /// Forgets everything.
    pub fn clear(&mut self, limits: &QueueLimits) {
        limits.give_back(self.overdrawn);
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(queue_bytes: usize, send_timeout: Duration) -> QueueLimits {
        QueueLimits::new(queue_bytes, send_timeout)
    }

    #[test]
    fn a_draining_reader_may_overdraw_and_a_stopped_one_not() {
        let chunk = Bytes::from(vec![0; 60]);
        let patient = limits(100, Duration::from_secs(10));
        let mut backlog = Backlog::default();
        backlog.begin(chunk.clone(), 0);
        for _ in 0..10 {
            assert!(backlog.try_push(&chunk, &patient));
        }
        assert_eq!(patient.overdrawn.load(Ordering::Relaxed), 11 * 60 - 100);
        backlog.advance(600, &patient);
        assert_eq!(patient.overdrawn.load(Ordering::Relaxed), 0);
        backlog.progress_at = clock::now_ms().wrapping_sub(2_000);
        assert!(
            !backlog.try_push(&chunk, &patient),
            "nothing was taken for two seconds"
        );
        // Over the limit for longer than the timeout, draining or not: no more.
        let strict = limits(100, Duration::ZERO);
        let mut backlog = Backlog::default();
        backlog.begin(chunk.clone(), 30);
        assert!(backlog.try_push(&chunk, &strict));
        assert!(backlog.try_push(&chunk, &strict));
        assert!(!backlog.try_push(&chunk, &strict));
        backlog.clear(&strict);
        assert_eq!(strict.overdrawn.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_overdraft_has_its_own_bounds() {
        let limits = limits(100, Duration::from_secs(10));
        let chunk = Bytes::from(vec![0; 1 << 20]);
        let fill = || {
            let mut backlog = Backlog::default();
            backlog.begin(chunk.clone(), 0);
            while backlog.try_push(&chunk, &limits) {}
            backlog
        };
        let backlogs: Vec<_> = (0..40).map(|_| fill()).collect();
        assert!(backlogs.iter().all(|backlog| backlog.overdrawn <= MAX_OVERDRAFT));
        assert!(limits.overdrawn.load(Ordering::Relaxed) <= TOTAL_OVERDRAFT);
        for mut backlog in backlogs {
            backlog.discard(&limits);
        }
        assert_eq!(limits.overdrawn.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_answer_to_the_handshake_comes_first_and_stays() {
        let limits = limits(100, Duration::from_secs(10));
        let mut backlog = Backlog::default();
        backlog.begin_with_answer(Bytes::from_static(b"101 "));
        backlog.push(Bytes::from_static(b"greeting"));
        backlog.set_pong(Bytes::from_static(b"pong "));
        backlog.place_pong();
        backlog.discard(&limits);
        backlog.push(Bytes::from_static(b"close"));
        let mut written = Vec::new();
        let _ = backlog.write_to(|chunks| {
            chunks.iter().for_each(|chunk| written.extend_from_slice(chunk));
            Ok(0)
        });
        assert_eq!(written, b"101 close");
        // Once it is sent there is nothing to keep.
        backlog.advance(4, &limits);
        backlog.discard(&limits);
        assert!(backlog.is_empty());
    }

    proptest! {
        /// Whatever is written in whatever pieces: chunks stay whole and in order, and the pong falls between them.
        #[test]
        fn the_queue_keeps_frames_whole(steps in prop::collection::vec((0u8..4, 1usize..40), 1..60)) {
            let limits = limits(200, Duration::from_secs(10));
            let mut backlog = Backlog::default();
            let mut written = Vec::new();
            let mut next = 0u8;
            for (step, size) in steps {
                match step {
                    0 | 1 => {
                        prop_assert!(backlog.try_push(&Bytes::from(vec![next; size]), &limits));
                        next = (next + 1) % 200;
                    }
                    2 => {
                        backlog.set_pong(Bytes::from(vec![255; 3]));
                        backlog.place_pong();
                    }
                    _ => {
                        let mut pending = Vec::new();
                        let _ = backlog.write_to(|chunks| {
                            chunks.iter().for_each(|chunk| pending.extend_from_slice(chunk));
                            Ok(0)
                        });
                        prop_assert_eq!(pending.len(), backlog.bytes());
                        let size = size.min(pending.len());
                        written.extend_from_slice(&pending[..size]);
                        if size > 0 {
                            backlog.advance(size, &limits);
                        }
                    }
                }
                prop_assert_eq!(limits.overdrawn.load(Ordering::Relaxed), backlog.overdrawn);
            }
            let mut seen: Vec<u8> = written.iter().copied().filter(|&byte| byte != 255).collect();
            seen.dedup();
            let expected: Vec<u8> = (0..seen.len()).map(|at| (at % 200) as u8).collect();
            prop_assert_eq!(&seen, &expected);
            // A chunk once begun is not interrupted by a pong.
            written.dedup();
            prop_assert_eq!(written.iter().filter(|&&byte| byte != 255).count(), seen.len());
        }
    }
}
