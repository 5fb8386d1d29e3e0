//! How a batch's frames leave: one `send` per socket, or many in one submission of io_uring.
//!
//! Both ways give the same outcome for each socket, and what a socket does not take is queued by its outbox.

use std::io;

use super::Member;
use super::fanout::{Delivered, WaitBudget, send_or_close};
use crate::metrics::Metrics;
use crate::protocol::frames::{Frames, Lent};
use crate::ws::uring::{self, Ring};
use crate::ws::{Begun, Sent};

/// Fewer sends than this go out one by one: a submission costs more than it saves.
const MIN_RING: usize = 4;

/// One delivery thread's way out.
pub enum Outlet {
    /// One `send` per socket.
    Send,
    /// A ring that is to be made by the thread that uses it.
    Wanted,
    Ring(Box<Rings>),
}

/// A ring and where its results go: kept, so that a batch allocates nothing for them.
pub struct Rings {
    ring: Ring,
    results: Vec<io::Result<usize>>,
}

impl Outlet {
    /// Makes the ring where one is wanted and gives up one that has failed.
    pub fn prepare(&mut self, metrics: &Metrics) {
        *self = match std::mem::replace(self, Self::Send) {
            Self::Wanted => match Ring::new() {
                Ok(ring) => {
                    metrics.fanout_io_uring.set(1);
                    Self::Ring(Box::new(Rings {
                        ring,
                        results: Vec::with_capacity(uring::MAX_SENDS),
                    }))
                }
                Err(error) => {
                    tracing::warn!(%error, "io_uring is not available: each socket gets a send of its own");
                    Self::Send
                }
            },
            Self::Ring(rings) if rings.ring.is_broken() => {
                tracing::warn!("io_uring has failed: each socket gets a send of its own");
                metrics.fanout_io_uring.set(0);
                Self::Send
            }
            same => same,
        };
    }
}

/// The sends of one batch. Dropped without [`Self::flush`] it would leave sockets without a writer: flush it.
pub struct Round<'a> {
    outlet: &'a mut Outlet,
    budget: &'a mut WaitBudget,
    /// What became of the chunks, by their slots.
    delivered: &'a mut [Delivered],
    /// Begun and not yet sent.
    begun: Vec<(usize, &'a Member, Lent<'a>)>,
}

impl<'a> Round<'a> {
    pub fn new(outlet: &'a mut Outlet, budget: &'a mut WaitBudget, delivered: &'a mut [Delivered]) -> Self {
        let room = if matches!(outlet, Outlet::Ring(_)) {
            uring::MAX_SENDS
        } else {
            0
        };
        Self {
            outlet,
            budget,
            delivered,
            begun: Vec::with_capacity(room),
        }
    }

    /// Sends a chunk to each of `members`, now or at the next flush, and counts what became of it in `slot`.
    pub fn send(&mut self, slot: usize, members: &'a [Member], chunk: Lent<'a>) {
        if !matches!(self.outlet, Outlet::Ring(_)) {
            for member in members {
                let sent = send_or_close(member, &chunk, self.budget);
                self.delivered[slot].count(sent);
            }
            return;
        }
        for member in members {
            match member.outbox.begin(&chunk) {
                Begun::Yours => {
                    self.begun.push((slot, member, chunk));
                    if self.begun.len() == uring::MAX_SENDS {
                        self.flush();
                    }
                }
                Begun::Done(Sent::Full) => {
                    // It may be waited for, and the others should not wait with it.
                    self.flush();
                    let sent = send_or_close(member, &chunk, self.budget);
                    self.delivered[slot].count(sent);
                }
                Begun::Done(sent) => self.delivered[slot].count(sent),
            }
        }
    }

    /// Sees that everything begun is sent or queued. A socket's next chunk may only be begun after it.
    pub fn flush(&mut self) {
        let Outlet::Ring(rings) = &mut *self.outlet else {
            return;
        };
        if self.begun.len() < MIN_RING {
            for (slot, member, chunk) in self.begun.drain(..) {
                let sent = member.outbox.complete(&chunk, member.outbox.send_now(&chunk));
                self.delivered[slot].count(sent);
            }
            return;
        }
        let Rings { ring, results } = &mut **rings;
        let begun = self.begun.iter();
        ring.send_all(
            begun.map(|(_, member, chunk)| (member.outbox.socket(), chunk.bytes())),
            results,
        );
        // One by one: what is begun leaves the list only to be completed.
        while let Some((slot, member, chunk)) = self.begun.pop() {
            let result = results.pop().unwrap_or(Err(io::ErrorKind::WouldBlock.into()));
            self.delivered[slot].count(member.outbox.complete(&chunk, result));
        }
    }
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        // A panic half way: what is begun must not stay without a writer.
        for (_, member, chunk) in self.begun.drain(..) {
            member
                .outbox
                .complete(&chunk, Err(io::ErrorKind::WouldBlock.into()));
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
    use crate::session::testing::members;

    const MEMBERS: usize = 2 * uring::MAX_SENDS;

    fn send(outlet: &mut Outlet, members: &[Member], chunk: &Bytes) -> Delivered {
        let mut delivered = [Delivered::default()];
        let mut budget = WaitBudget::default();
        let copy = OnceCell::new();
        let mut round = Round::new(outlet, &mut budget, &mut delivered);
        round.send(0, members, Lent::new(chunk, &copy));
        round.flush();
        drop(round);
        delivered[0]
    }

    /// Whatever becomes of the ring, each socket gets each chunk once, and in order.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_ring_that_breaks_loses_nothing() {
        let metrics = Arc::new(Metrics::default());
        let (members, mut clients) = members(MEMBERS, &metrics).await;
        let mut outlet = Outlet::Wanted;
        outlet.prepare(&metrics);
        let chunks = ["one ", "two ", "three "].map(|text| Bytes::from_static(text.as_bytes()));
        assert_eq!(send(&mut outlet, &members, &chunks[0]).written, MEMBERS);
        if let Outlet::Ring(rings) = &mut outlet {
            rings.ring.break_it();
            let delivered = send(&mut outlet, &members, &chunks[1]);
            assert_eq!((delivered.written, delivered.queued), (0, MEMBERS));
        } else {
            send(&mut outlet, &members, &chunks[1]);
        }
        outlet.prepare(&metrics);
        assert!(matches!(outlet, Outlet::Send));
        assert_eq!(metrics.fanout_io_uring.get(), 0);
        assert_eq!(send(&mut outlet, &members, &chunks[2]).received(), MEMBERS);
        drop(members);
        for client in &mut clients {
            let mut got = [0; 14];
            client.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"one two three ");
        }
    }
}
