//! One WebSocket connection: the strict reader and the close handshake. What is written goes through
//! [`writer`](crate::writer).

pub mod connection;
pub mod rate;
pub mod scanner;
