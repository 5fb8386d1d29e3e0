//! The frames of one session in a batch, contiguous in a reused buffer: allocating and freeing memory of this size
//! costs more than filling it (docs/decisions/0002-fan-out.md).

use std::cell::OnceCell;

use bytes::Bytes;

use crate::protocol::frame;
use crate::writer::BorrowedChunk;

/// The longest contiguous write to one socket, unless a single frame is longer. An empty queue takes a chunk of any
/// size, so this bounds how far behind a healthy reader can be.
const CHUNK_BYTES: usize = 128 * 1024;

/// How much buffer space is kept for later batches. A batch is at most a mebibyte plus its last record, and a buffer's
/// capacity can be twice its content. A larger buffer is freed: it would leave no room for those of other sessions.
const POOL_BYTES: usize = 4 << 20;
const MAX_POOLED_BUFFER: usize = 2 << 20;

/// Frames, cut into chunks of at most [`CHUNK_BYTES`].
#[derive(Default)]
pub struct ChunkBuffer {
    bytes: Vec<u8>,
    /// The position in the log after the last frame; see [`Chunk::end`](crate::writer::Chunk::end).
    position: u64,
    cuts: Vec<Cut>,
}

struct Cut {
    end: usize,
    position: u64,
    /// The copy shared by the queues of sockets that can't take the chunk at once.
    copy: OnceCell<Bytes>,
}

impl ChunkBuffer {
    /// Adds a text frame; `position` is the one after it in the log, 0 if it is not from the messages topic.
    pub fn push(&mut self, payload: &[u8], position: u64) {
        let open = self.bytes.len() - self.cut_at();
        if open > 0 && open + frame::text_frame_len(payload.len()) > CHUNK_BYTES {
            self.cut();
        }
        frame::put_text(&mut self.bytes, payload);
        self.position = position;
    }

    /// The position in the log after the last frame.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Ends the current chunk.
    pub fn cut(&mut self) {
        self.cuts.push(Cut {
            end: self.bytes.len(),
            position: self.position,
            copy: OnceCell::new(),
        });
    }

    fn cut_at(&self) -> usize {
        self.cuts.last().map_or(0, |cut| cut.end)
    }

    /// All chunks but the current one.
    pub fn iter(&self) -> impl Iterator<Item = BorrowedChunk<'_>> {
        let mut start = 0;
        self.cuts.iter().map(move |cut| {
            let bytes = &self.bytes[start..cut.end];
            start = cut.end;
            BorrowedChunk::new(bytes, cut.position, &cut.copy)
        })
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.position = 0;
        self.cuts.clear();
    }
}

/// Buffers kept for later batches.
#[derive(Default)]
pub struct BufferPool {
    buffers: Vec<ChunkBuffer>,
    bytes: usize,
}

impl BufferPool {
    /// An empty buffer.
    pub fn take(&mut self) -> ChunkBuffer {
        let chunks = self.buffers.pop().unwrap_or_default();
        self.bytes -= chunks.bytes.capacity();
        chunks
    }

    /// Keeps a buffer for later, or frees it if enough are kept or it is too large.
    pub fn give_back(&mut self, mut chunks: ChunkBuffer) {
        let bytes = self.bytes + chunks.bytes.capacity();
        if bytes <= POOL_BYTES && chunks.bytes.capacity() <= MAX_POOLED_BUFFER {
            chunks.clear();
            self.buffers.push(chunks);
            self.bytes = bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::writer::Chunk;

    proptest! {
        /// However they are cut, all frames are there and in order, chunks end at frame boundaries, and the copy of a
        /// chunk equals it.
        #[test]
        fn chunks_are_the_frames(lengths in prop::collection::vec(0usize..40_000, 1..20)) {
            let mut chunks = ChunkBuffer::default();
            let (mut expected, mut ends) = (Vec::new(), Vec::new());
            for (number, &length) in lengths.iter().enumerate() {
                let payload = vec![number as u8; length];
                chunks.push(&payload, 0);
                frame::put_text(&mut expected, &payload);
                ends.push(expected.len());
            }
            chunks.cut();
            let cut: Vec<_> = chunks.iter().collect();
            prop_assert!(cut.iter().all(|chunk| (1..=CHUNK_BYTES).contains(&chunk.bytes().len())));
            let mut end = 0;
            for chunk in &cut {
                end += chunk.bytes().len();
                prop_assert!(ends.contains(&end));
                prop_assert_eq!(&chunk.to_bytes(|chunk| chunk)[..], chunk.bytes());
            }
            let got: Vec<u8> = cut.iter().flat_map(|chunk| chunk.bytes().to_vec()).collect();
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn a_frame_longer_than_a_chunk_gets_its_own_chunk() {
        let mut chunks = ChunkBuffer::default();
        for length in [10, CHUNK_BYTES + 1, 10] {
            chunks.push(&vec![0; length], 0);
        }
        chunks.cut();
        let lengths: Vec<_> = chunks.iter().map(|chunk| chunk.bytes().len()).collect();
        assert_eq!(lengths, [12, CHUNK_BYTES + 11, 12]);
    }

    #[test]
    fn pooled_buffers_are_empty_and_bounded() {
        let mut pool = BufferPool::default();
        for _ in 0..200 {
            let mut chunks = ChunkBuffer::default();
            chunks.push(&vec![0; CHUNK_BYTES], 0);
            chunks.cut();
            pool.give_back(chunks);
        }
        let kept: usize = pool.buffers.iter().map(|chunks| chunks.bytes.capacity()).sum();
        assert_eq!(kept, pool.bytes);
        assert!(kept <= POOL_BYTES && kept > POOL_BYTES / 2);
        let chunks = pool.take();
        assert!(chunks.bytes.is_empty() && chunks.cuts.is_empty() && chunks.bytes.capacity() >= CHUNK_BYTES);
        assert_eq!(pool.bytes, kept - chunks.bytes.capacity());
        let mut pool = BufferPool::default();
        let mut large = ChunkBuffer::default();
        large.push(&vec![0; MAX_POOLED_BUFFER], 0);
        pool.give_back(large);
        assert_eq!((pool.bytes, pool.buffers.len()), (0, 0));
    }
}
