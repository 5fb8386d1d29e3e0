//! One WebSocket connection: the strict reader and the close handshake. Writing is up to [`writer`](crate::writer).

pub mod connection;
pub mod rate;
pub mod scanner;
