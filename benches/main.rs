//! Benchmarks of the message path and its parts. CONTRIBUTING.md says how to run them.
//!
//! One binary, as with `tests/e2e`: with fat LTO each would take minutes to link.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark fails where it panics"
)]

mod alternatives;
mod delivery;
mod fanout;
mod frames;
mod presence;
mod records;
mod registry;
mod support;
mod utf8;

/// The server's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

criterion::criterion_main!(
    frames::benches,
    utf8::benches,
    records::benches,
    registry::benches,
    fanout::benches,
    delivery::benches,
    presence::benches,
    alternatives::benches
);
