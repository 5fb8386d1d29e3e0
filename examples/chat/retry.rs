//! When to come back after a loss, and whether to.

use std::time::Duration;

/// Whether a client that was closed with this code should come back. A list of what not to return from: a code we
/// don't know is more likely a new kind of trouble at the server than a fault of ours.
pub fn may_return(code: u16) -> bool {
    // Closed in order, our protocol is wrong (1002, 1003, 1007), a limit was broken (1008, 1009), this user has come
    // elsewhere (4009: two clients that both came back would replace each other for ever), or we have no right (44xx).
    !matches!(code, 1000 | 1002 | 1003 | 1007 | 1008 | 1009 | 4009 | 4400..=4499)
}

/// Doubling pauses, each drawn from the whole range ("full jitter"), so that the clients of a node that went down come
/// back spread out.
#[derive(Default)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    pub fn next(&mut self, at_least: Duration) -> Duration {
        let most = Duration::from_millis(500 << self.attempts.min(6)).min(Duration::from_secs(15));
        self.attempts += 1;
        at_least + most.mul_f32(fastrand::f32())
    }
}
