//! The helpers that all end-to-end tests share. The server is a process, never a library call: only what a client, an
//! operator or the kernel could see is asserted.
//!
//! * [`Server`]: one server process. Killed on drop; its log is printed when the test fails.
//! * [`Client`]: a well-behaved WebSocket client (tokio-tungstenite) that speaks JSON.
//! * [`RawWs`]: a blocking socket after a hand-made handshake; writes any bytes, reads frames and close codes.
//! * [`Http`]: one HTTP/1.1 connection; writes any bytes, reads exact responses.
//! * [`tokens`]: tokens of every kind; [`issuer`]: a web server with an issuer's key set.
//! * [`spec`]: docs/spec, against which every frame, response and record is checked.
//! * [`wire`]: frames of RFC 6455, valid and not, for [`RawWs`].
//! * [`lines`]: the output of a child process, line by line.
//! * [`eventually`]: waits until something holds.
//!
//! What only some tests share is beside them: [`services`](crate::services) has Kafka, Redis and clients of both that are
//! not the server's own libraries, [`redis_cluster`](crate::redis_cluster) nodes with one Kafka and one Redis, and
//! [`presence`](crate::presence) the scenarios that run over each store of presence.
//!
//! Nothing here sleeps to prove an absence: [`Client::expect_none`] and friends wait for a fence, an answer that would
//! have come after the unwanted frame.

#![allow(dead_code)] // Each test file uses its own part of this module.

pub mod client;
pub mod http;
pub mod issuer;
mod lines;
pub mod raw;
pub mod server;
pub mod spec;
pub mod tokens;
pub mod wire;

use std::time::{Duration, Instant};

pub use client::Client;
pub use http::{Http, Response};
pub use raw::RawWs;
pub use server::{Exit, Server, ServerBuilder};
pub use wire::{Frame, Opcode};

/// How long anything that must happen may take. Only failing tests wait this long; a busy machine must not fail a test.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Calls `check` until it holds; panics with `what` when it has not within [`PATIENCE`].
#[track_caller]
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// As [`eventually`], for checks that await.
pub async fn eventually_async(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check().await {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Panics unless one of five attempts, each of which returns how long it took, is within the limit: on a busy machine, some
/// take longer.
pub async fn one_is_within(limit: Duration, mut attempt: impl AsyncFnMut() -> Duration) {
    let mut all = Vec::new();
    while all.last().is_none_or(|took| *took >= limit) {
        assert!(all.len() < 5, "none within {limit:?}: {all:?}");
        all.push(attempt().await);
    }
}
