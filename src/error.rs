//! Why the server does not start.

use std::io;
use std::net::SocketAddr;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener can't bind: fatal, and named by its variable.
    #[error("{variable}: cannot listen on {address}")]
    Bind {
        variable: &'static str,
        address: SocketAddr,
        source: io::Error,
    },
    #[error("REDIS_URL: the address is not one the Redis client can use")]
    RedisUrl,
    /// io_uring was asked for and this system has none.
    #[error("FANOUT_IO=uring: io_uring is not available here (auto falls back to send)")]
    Uring(#[source] io::Error),
    #[error("the system has no random numbers, which the keys of cursors need")]
    Randomness,
    #[error("cannot start a thread")]
    Thread(#[from] io::Error),
}
