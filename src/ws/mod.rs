//! One WebSocket connection: the strict reader and the close handshake. What is written goes through
//! [`writer`](crate::writer).

pub mod connection;
pub mod rate;
pub mod scanner;
#[cfg_attr(not(target_os = "linux"), path = "uring_absent.rs")]
pub mod uring;
