//! How the chunks of a batch are sent: one `send` per socket, or many in one io_uring submission.
//!
//! Both have the same outcome for each socket; what a socket does not take is queued by its writer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::slow_readers::{WaitBudget, send_or_close};
use super::uring::{self, Ring};
use crate::session::Member;
use crate::writer::{BorrowedChunk, Chunk, Reservation, SendOutcome};

/// Fewer sends than this are made one by one: a submission would cost more than it saves.
const MIN_RING: usize = 4;

/// Whether a delivery thread's ring is in use, for health and metrics.
#[derive(Clone, Default)]
pub struct RingInUse(Arc<AtomicBool>);

impl RingInUse {
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, is_in_use: bool) {
        self.0.store(is_in_use, Ordering::Relaxed);
    }
}

/// How many sockets took a chunk at once, and how many queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    pub written: usize,
    pub queued: usize,
}

impl Delivered {
    /// The number of connections that have got the chunk or will get it.
    pub fn received(&self) -> usize {
        self.written + self.queued
    }

    pub(super) fn count(&mut self, sent: SendOutcome) {
        match sent {
            SendOutcome::Written => self.written += 1,
            SendOutcome::Queued => self.queued += 1,
            SendOutcome::Full | SendOutcome::Closed => {}
        }
    }
}

impl std::ops::AddAssign for Delivered {
    fn add_assign(&mut self, other: Self) {
        self.written += other.written;
        self.queued += other.queued;
    }
}

/// How one delivery thread sends.
pub enum FanoutBackend {
    /// One `send` per socket.
    Send,
    /// io_uring was requested: the thread that uses the ring is to create it.
    RingRequested(RingInUse),
    Ring(Box<Rings>),
}

/// A ring and a reused buffer for its results.
pub struct Rings {
    ring: Ring,
    results: Vec<io::Result<usize>>,
    in_use: RingInUse,
}

impl FanoutBackend {
    /// Creates the ring if one was requested, and drops one that has failed.
    pub fn prepare(&mut self) {
        *self = match std::mem::replace(self, Self::Send) {
            Self::RingRequested(in_use) => match Ring::new() {
                Ok(ring) => {
                    in_use.set(true);
                    Self::Ring(Box::new(Rings {
                        ring,
                        results: Vec::with_capacity(uring::MAX_SENDS),
                        in_use,
                    }))
                }
                Err(error) => {
                    tracing::warn!(%error, "io_uring is not available: using one send per socket");
                    Self::Send
                }
            },
            Self::Ring(rings) if rings.ring.is_broken() => {
                tracing::warn!("io_uring has failed: using one send per socket");
                rings.in_use.set(false);
                Self::Send
            }
            same => same,
        };
    }
}

/// Sends the chunks of one batch; [`Self::send_reserved`] completes it. If it is dropped before that, as by a panic,
/// what is reserved is queued.
pub struct ChunkSender<'a> {
    backend: &'a mut FanoutBackend,
    budget: &'a mut WaitBudget,
    /// The outcomes, by slot.
    delivered: &'a mut [Delivered],
    /// The reserved sockets that have not been completed.
    reserved: Vec<(usize, &'a Member, BorrowedChunk<'a>)>,
    /// Whether the ring has sent the chunks; its results then say how much of each.
    is_sent: bool,
}

impl<'a> ChunkSender<'a> {
    pub fn new(
        backend: &'a mut FanoutBackend,
        budget: &'a mut WaitBudget,
        delivered: &'a mut [Delivered],
    ) -> Self {
        let room = if matches!(backend, FanoutBackend::Ring(_)) {
            uring::MAX_SENDS
        } else {
            0
        };
        Self {
            backend,
            budget,
            delivered,
            reserved: Vec::with_capacity(room),
            is_sent: false,
        }
    }

    /// Sends a chunk to each of `members`, now or with the next submission, and counts the outcomes in `slot`.
    pub fn send_to_members(&mut self, slot: usize, members: &'a [Member], chunk: BorrowedChunk<'a>) {
        if !matches!(self.backend, FanoutBackend::Ring(_)) {
            for member in members {
                let sent = send_or_close(member, &chunk, self.budget);
                self.delivered[slot].count(sent);
            }
            return;
        }
        for member in members {
            match member.writer.reserve(&chunk) {
                Reservation::Reserved => {
                    self.reserved.push((slot, member, chunk));
                    if self.reserved.len() == uring::MAX_SENDS {
                        self.send_reserved();
                    }
                }
                Reservation::Done(SendOutcome::Full) => {
                    // This may wait for the reader: submit first, so that the others don't wait with it.
                    self.send_reserved();
                    let sent = send_or_close(member, &chunk, self.budget);
                    self.delivered[slot].count(sent);
                }
                Reservation::Done(sent) => self.delivered[slot].count(sent),
            }
        }
    }

    /// Sends or queues everything that is reserved. A socket can be reserved for its next chunk only after this.
    pub fn send_reserved(&mut self) {
        let FanoutBackend::Ring(rings) = &mut *self.backend else {
            return;
        };
        if self.reserved.len() < MIN_RING {
            // A reservation leaves the list only when it is completed, here and below.
            while let Some((_, member, chunk)) = self.reserved.last() {
                let result = member.writer.send_syscall(chunk);
                self.complete_last(result);
            }
            return;
        }
        let reserved = self.reserved.iter();
        rings.ring.submit(
            reserved.map(|(_, member, chunk)| (member.writer.socket(), chunk.bytes())),
            &mut rings.results,
        );
        self.is_sent = true;
        while !self.reserved.is_empty() {
            let result = self.last_result();
            self.complete_last(result);
        }
        self.is_sent = false;
    }

    /// The result of the last reserved send: "would block", unless the ring has sent it.
    fn last_result(&mut self) -> io::Result<usize> {
        let result = match &mut *self.backend {
            FanoutBackend::Ring(rings) if self.is_sent => rings.results.pop(),
            _ => None,
        };
        result.unwrap_or(Err(io::ErrorKind::WouldBlock.into()))
    }

    fn complete_last(&mut self, result: io::Result<usize>) {
        if let Some((slot, member, chunk)) = self.reserved.pop() {
            let sent = member.writer.complete(&chunk, result);
            self.delivered[slot].count(sent);
        }
    }
}

impl Drop for ChunkSender<'_> {
    fn drop(&mut self) {
        // After a panic, no reserved socket may be left without a writer, and no chunk may be sent twice.
        while !self.reserved.is_empty() {
            let result = self.last_result();
            if let Some((_, member, chunk)) = self.reserved.pop() {
                member.writer.complete(&chunk, result);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::OnceCell;
    use std::sync::Arc;

    use bytes::Bytes;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::metrics::Metrics;
    use crate::session::testing::members;

    const MEMBERS: usize = 2 * uring::MAX_SENDS;

    fn send(backend: &mut FanoutBackend, members: &[Member], chunk: &Bytes) -> Delivered {
        let mut delivered = [Delivered::default()];
        let mut budget = WaitBudget::default();
        let copy = OnceCell::new();
        let mut chunk_sender = ChunkSender::new(backend, &mut budget, &mut delivered);
        chunk_sender.send_to_members(0, members, BorrowedChunk::new(chunk, 0, &copy));
        chunk_sender.send_reserved();
        drop(chunk_sender);
        delivered[0]
    }

    /// Even if the ring breaks, each socket gets each chunk once, and in order.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_broken_ring_loses_nothing() {
        let metrics = Arc::new(Metrics::default());
        let (members, mut clients) = members(MEMBERS, &metrics).await;
        let in_use = RingInUse::default();
        let mut backend = FanoutBackend::RingRequested(in_use.clone());
        backend.prepare();
        assert_eq!(in_use.get(), matches!(backend, FanoutBackend::Ring(_)));
        let chunks = ["one ", "two ", "three "].map(|text| Bytes::from_static(text.as_bytes()));
        assert_eq!(send(&mut backend, &members, &chunks[0]).written, MEMBERS);
        if let FanoutBackend::Ring(rings) = &mut backend {
            rings.ring.break_it();
            let delivered = send(&mut backend, &members, &chunks[1]);
            assert_eq!((delivered.written, delivered.queued), (0, MEMBERS));
        } else {
            send(&mut backend, &members, &chunks[1]);
        }
        backend.prepare();
        assert!(matches!(backend, FanoutBackend::Send) && !in_use.get());
        assert_eq!(send(&mut backend, &members, &chunks[2]).received(), MEMBERS);
        drop(members);
        for client in &mut clients {
            let mut got = [0; 14];
            client.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"one two three ");
        }
    }

    /// Sends to `count` members, and panics while counting the outcomes.
    async fn panic_while_sending(count: usize) {
        let metrics = Arc::new(Metrics::default());
        let (members, mut clients) = members(count, &metrics).await;
        let mut backend = FanoutBackend::RingRequested(RingInUse::default());
        backend.prepare();
        let (one, two) = (Bytes::from_static(b"one "), Bytes::from_static(b"two "));
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let (mut delivered, mut budget) = ([Delivered::default()], WaitBudget::default());
            let copy = OnceCell::new();
            let mut chunk_sender = ChunkSender::new(&mut backend, &mut budget, &mut delivered);
            let (first, others) = members.split_at(1);
            chunk_sender.send_to_members(0, first, BorrowedChunk::new(&one, 0, &copy));
            // This slot does not exist.
            chunk_sender.send_to_members(1, others, BorrowedChunk::new(&one, 0, &copy));
            chunk_sender.send_reserved();
        }));
        assert!(unwound.is_err());
        assert_eq!(send(&mut FanoutBackend::Send, &members, &two).received(), count);
        drop(members);
        for client in &mut clients {
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            // With one `send` per socket, those after the panic don't get the first chunk.
            let is_by_send = matches!(backend, FanoutBackend::Send) && got == b"two ";
            assert!(
                got == b"one two " || is_by_send,
                "{}",
                String::from_utf8_lossy(&got)
            );
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_panic_while_sending_leaves_no_socket_without_a_writer() {
        panic_while_sending(MIN_RING - 1).await;
        panic_while_sending(MIN_RING + 2).await;
    }
}
