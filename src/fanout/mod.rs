//! From a batch of records to sockets, on the thread that read them.
//!
//! - [`batch`]: what a batch has for each session, and the order in which it is sent
//! - [`chunks`]: the frames of one session in a batch, in one buffer
//! - [`backend`]: how they leave: a `send` per socket, or many in one submission of io_uring ([`uring`])
//! - [`slow_readers`]: what is done about a reader whose queue is full
//! - [`broadcast`]: one frame to a session, outside of any batch

pub mod backend;
pub mod batch;
pub mod broadcast;
pub mod chunks;
pub mod slow_readers;
#[cfg_attr(not(all(target_os = "linux", feature = "io-uring")), path = "uring_absent.rs")]
pub mod uring;
