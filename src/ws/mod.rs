//! One WebSocket connection: the strict reader, the outbox, heartbeats and the close.

pub mod connection;
pub mod outbox;
pub mod rate;
pub mod scanner;

pub use outbox::{Outbox, OutboxLimits, Queued, Sent};
