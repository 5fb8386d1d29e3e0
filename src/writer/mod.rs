//! The only writer of a connection's socket, and what it has not taken yet.

pub mod chunk;
pub mod connection_writer;
mod kernel;
pub mod memory;
mod pulse;
#[cfg(test)]
pub mod testing;
pub mod write_queue;

pub use chunk::{BorrowedChunk, Chunk, SharedChunk};
pub use connection_writer::{ConnectionWriter, Queued, Reservation, Sent, WriterLimits};
pub use memory::SendMemory;
pub use write_queue::QueueLimits;
