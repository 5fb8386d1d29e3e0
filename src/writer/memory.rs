//! The memory of all outbound queues together (`SEND_MEMORY_BYTES`).
//!
//! This counts memory, not queue lengths: a chunk in many queues is one copy and counts once, from the first queue that
//! takes it until the last one drops it. In addition, the entries of each queue's list count. Frames that a socket
//! takes at once are never counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::Notify;

/// What a chunk costs besides its bytes: its owner, which counts it, and the allocator's rounding.
const CHUNK_OVERHEAD: usize = 96;

/// What a chunk costs each queue that has it: an entry in a list whose capacity doubles as it grows.
const ENTRY_BYTES: usize = 2 * size_of::<Bytes>();

/// The memory of all queues. `session::memory_pressure` says what happens above its limit.
pub struct SendMemory {
    used: AtomicUsize,
    limit: usize,
    exceeded: Notify,
}

impl SendMemory {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            limit,
            exceeded: Notify::new(),
        })
    }

    /// The same bytes, counted until the last reference is dropped.
    pub fn count(self: &Arc<Self>, chunk: Bytes) -> Bytes {
        self.charge(chunk.len() + CHUNK_OVERHEAD);
        Bytes::from_owner(CountedChunk {
            chunk,
            memory: Arc::clone(self),
        })
    }

    fn charge(&self, bytes: usize) {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if used > self.limit {
            self.exceeded.notify_one();
        }
    }

    fn release(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Corrects a queue's count of its entries.
    pub fn recount_entries(&self, counted: &mut u32, entries: usize) {
        let before = *counted as usize;
        if entries > before {
            self.charge((entries - before) * ENTRY_BYTES);
        } else if entries < before {
            self.release((before - entries) * ENTRY_BYTES);
        }
        *counted = u32::try_from(entries).unwrap_or(u32::MAX);
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn is_exceeded(&self) -> bool {
        self.used() > self.limit
    }

    /// Whether it is a quarter over its limit: then only small queues may grow, since `session::memory_pressure` lags
    /// behind.
    pub fn is_scarce(&self) -> bool {
        self.used() > self.limit + self.limit / 4
    }

    /// Whether it is at more than twice its limit: then nothing more is queued.
    pub fn is_exhausted(&self) -> bool {
        self.used() > 2 * self.limit
    }

    /// Waits until the limit is exceeded.
    pub async fn exceeded(&self) {
        while !self.is_exceeded() {
            self.exceeded.notified().await;
        }
    }
}

/// A counted chunk.
struct CountedChunk {
    chunk: Bytes,
    memory: Arc<SendMemory>,
}

impl AsRef<[u8]> for CountedChunk {
    fn as_ref(&self) -> &[u8] {
        &self.chunk
    }
}

impl Drop for CountedChunk {
    fn drop(&mut self) {
        self.memory.release(self.chunk.len() + CHUNK_OVERHEAD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_chunk_counts_once_until_its_last_reference_is_dropped() {
        let memory = SendMemory::new(1_000);
        let one = memory.count(Bytes::from(vec![0; 1_000]));
        let many: Vec<_> = (0..100).map(|_| one.clone()).collect();
        assert_eq!(memory.used(), 1_000 + CHUNK_OVERHEAD);
        memory.exceeded().await;
        assert!(!memory.is_scarce());
        let another = memory.count(Bytes::from_static(&[0; 200]));
        assert!(memory.is_scarce() && !memory.is_exhausted());
        let third = memory.count(Bytes::from_static(&[0; 700]));
        assert!(memory.is_exhausted());
        drop((one, another, third));
        assert_eq!(memory.used(), 1_000 + CHUNK_OVERHEAD);
        drop(many);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn entries_are_counted_up_and_down() {
        let (memory, mut counted) = (SendMemory::new(1_000), 0);
        for entries in [3, 7, 7, 2] {
            memory.recount_entries(&mut counted, entries);
            assert_eq!(memory.used(), entries * ENTRY_BYTES);
        }
        memory.recount_entries(&mut counted, 0);
        assert_eq!(memory.used(), 0);
    }
}
