//! One WebSocket connection: the strict reader, the outbox, heartbeats and the close.

pub mod backlog;
pub mod connection;
mod kernel;
pub mod memory;
pub mod outbox;
mod pulse;
pub mod rate;
pub mod scanner;
#[cfg_attr(not(target_os = "linux"), path = "uring_absent.rs")]
pub mod uring;

pub use backlog::QueueLimits;
pub use memory::SendMemory;
pub use outbox::{Begun, Outbox, OutboxLimits, Queued, Sent};
