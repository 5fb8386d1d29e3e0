//! The only writer of a connection's socket, with the queue of what the socket has not taken yet.
//!
//! - [`connection_writer`]: sends, queues the rest, and closes
//! - [`write_queue`]: what waits for one socket; [`memory`]: the memory of all queues together
//! - [`chunk`]: whole frames, borrowed until a queue needs them
//! - `expiry`: when a connection's token ends
//! - `liveness`, `kernel`: whether a client is alive, and what its kernel has acknowledged

pub mod chunk;
pub mod connection_writer;
mod expiry;
mod kernel;
mod liveness;
pub mod memory;
#[cfg(test)]
pub mod testing;
pub mod write_queue;

pub use chunk::{BorrowedChunk, Chunk, SharedChunk};
pub use connection_writer::{
    BacklogPolicy, ClosingWriters, ConnectionWriter, Pulled, Replay, Reservation, SendOutcome, SentUpTo,
    Start, WriterContext,
};
pub use memory::SendMemory;
pub use write_queue::QueueLimits;
