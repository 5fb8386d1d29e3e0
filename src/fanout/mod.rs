//! Sends a batch of records to sockets, on the thread that read them.
//!
//! - [`batch`]: the frames of a batch for each session, and the order in which they are sent
//! - [`chunks`]: the frames of one session in a batch, in one buffer
//! - [`backend`]: how they are sent: one `send` per socket, or many in one io_uring submission ([`uring`])
//! - [`slow_readers`]: the policy for a reader whose queue is full
//! - [`broadcast`]: one frame to a session, outside any batch

pub mod backend;
pub mod batch;
pub mod broadcast;
pub mod chunks;
pub mod slow_readers;
#[cfg_attr(not(all(target_os = "linux", feature = "io-uring")), path = "uring_absent.rs")]
pub mod uring;
