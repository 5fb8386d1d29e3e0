//! One WebSocket connection: the strict reader, the outbox, heartbeats and the close.

pub mod backlog;
pub mod connection;
pub mod outbox;
pub mod rate;
pub mod scanner;

pub use backlog::QueueLimits;
pub use outbox::{Outbox, OutboxLimits, Queued, Sent};
