//! A monotonic clock in milliseconds that fits in four bytes of a connection's state.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Milliseconds since the process first asked, wrapping after 49 days: compare by [`since`] only.
pub fn now_ms() -> u32 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u32
}

/// How long ago `then` was, right across a wrap for spans below 49 days.
pub fn since(then: u32) -> Duration {
    Duration::from_millis(now_ms().wrapping_sub(then).into())
}
