//! The only writer of a connection's socket, and what the socket has not taken yet.
//!
//! - [`connection_writer`]: sends, queues what is left, and closes
//! - [`write_queue`]: what waits for one socket; [`memory`]: what waits for all of them together
//! - [`chunk`]: whole frames, borrowed until a queue needs them
//! - `pulse`, `kernel`: whether a client still lives, and what its kernel has acknowledged

pub mod chunk;
pub mod connection_writer;
mod kernel;
pub mod memory;
mod pulse;
#[cfg(test)]
pub mod testing;
pub mod write_queue;

pub use chunk::{BorrowedChunk, Chunk, SharedChunk};
pub use connection_writer::{ConnectionWriter, LeavingWriters, Queued, Reservation, Sent, WriterLimits};
pub use memory::SendMemory;
pub use write_queue::QueueLimits;
