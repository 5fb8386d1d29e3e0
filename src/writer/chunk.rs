//! Chunks: whole frames, which most sockets take at once. A chunk is copied and counted only for those that don't.

use std::cell::OnceCell;
use std::sync::OnceLock;

use bytes::Bytes;

/// Whole frames, ready to send.
pub trait Chunk {
    fn bytes(&self) -> &[u8];

    /// The position in the log after its last record; 0: they are no records of the messages topic.
    fn end(&self) -> u64 {
        0
    }

    /// The same bytes for a queue, which outlives the borrow. `count` counts their memory, once for all queues that
    /// share them.
    fn to_bytes(&self, count: impl FnOnce(Bytes) -> Bytes) -> Bytes;
}

/// A frame for one recipient.
impl Chunk for Bytes {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn to_bytes(&self, count: impl FnOnce(Bytes) -> Bytes) -> Bytes {
        count(self.clone())
    }
}

/// A frame for several recipients, already owned.
#[derive(Clone)]
pub struct SharedChunk {
    frame: Bytes,
    counted: OnceLock<Bytes>,
}

impl SharedChunk {
    pub fn new(frame: Bytes) -> Self {
        Self {
            frame,
            counted: OnceLock::new(),
        }
    }
}

impl Chunk for SharedChunk {
    fn bytes(&self) -> &[u8] {
        &self.frame
    }

    fn to_bytes(&self, count: impl FnOnce(Bytes) -> Bytes) -> Bytes {
        self.counted.get_or_init(|| count(self.frame.clone())).clone()
    }
}

/// Frames in a buffer that is reused for the next batch. All queues share one copy of exactly this length, so a stalled
/// client never pins the buffer.
#[derive(Clone, Copy)]
pub struct BorrowedChunk<'a> {
    bytes: &'a [u8],
    end: u64,
    copy: &'a OnceCell<Bytes>,
}

impl<'a> BorrowedChunk<'a> {
    /// `copy` belongs to these bytes alone; `end`: see [`Chunk::end`].
    pub fn new(bytes: &'a [u8], end: u64, copy: &'a OnceCell<Bytes>) -> Self {
        Self { bytes, end, copy }
    }
}

impl Chunk for BorrowedChunk<'_> {
    fn bytes(&self) -> &[u8] {
        self.bytes
    }

    fn end(&self) -> u64 {
        self.end
    }

    fn to_bytes(&self, count: impl FnOnce(Bytes) -> Bytes) -> Bytes {
        self.copy
            .get_or_init(|| count(Bytes::copy_from_slice(self.bytes)))
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_queues_share_one_copy_of_a_borrowed_chunk() {
        let (buffer, copy) = (vec![7; 100], OnceCell::new());
        let borrowed = BorrowedChunk::new(&buffer[..10], 0, &copy);
        let mut counted = 0;
        let mut count = |chunk| {
            counted += 1;
            chunk
        };
        let (one, other) = (borrowed.to_bytes(&mut count), borrowed.to_bytes(&mut count));
        assert_eq!((one.as_ptr(), &one[..]), (other.as_ptr(), &buffer[..10]));
        assert_ne!(one.as_ptr(), buffer.as_ptr());
        let shared = SharedChunk::new(Bytes::from(buffer));
        assert_eq!(shared.to_bytes(&mut count), shared.to_bytes(&mut count));
        assert_eq!(counted, 2, "each was counted once");
    }
}
