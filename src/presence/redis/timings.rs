//! How long things take: leases, claims, retries.

use std::time::Duration;

use crate::presence::parts::Times;

/// A lease is renewed, and Redis looked after, at least so often.
const MAX_HEARTBEAT: Duration = Duration::from_secs(1);
/// How long to leave Redis alone after a failure; doubled up to [`MAX_RETRY`] while it keeps failing.
pub const MIN_RETRY: Duration = Duration::from_millis(250);
pub const MAX_RETRY: Duration = Duration::from_secs(1);
/// How long Redis may take to accept a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// If a node dies just after a heartbeat, and then a reaper that has just claimed it, the last leave is still announced
/// within `PRESENCE_TTL`.
#[derive(Clone, Copy)]
pub struct Timings {
    /// `PRESENCE_FLUSH`.
    pub window: Duration,
    pub heartbeat: Duration,
    pub lease: Duration,
    /// How long a reaper may keep a dead node to itself without another heartbeat.
    pub claim: Duration,
    /// `PRESENCE_TTL`.
    pub ttl: Duration,
    /// `PRESENCE_GRACE`.
    pub grace: Duration,
}

impl Timings {
    pub fn of(times: Times) -> Self {
        let Times { window, grace, ttl } = times;
        let heartbeat = MAX_HEARTBEAT.min(ttl / 12);
        Self {
            window,
            heartbeat,
            lease: ttl / 2,
            claim: 3 * heartbeat,
            ttl,
            grace,
        }
    }

    /// How long another node may need to notice that Redis is back, and to reconnect.
    pub fn reconnect(&self) -> Duration {
        self.ttl.min(MAX_RETRY + 2 * CONNECT_TIMEOUT + 2 * self.heartbeat)
    }
}

#[cfg(test)]
pub fn testing(ttl: Duration) -> Timings {
    Timings::of(Times {
        window: Duration::from_millis(10),
        grace: Duration::from_secs(2),
        ttl,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leave_is_announced_within_the_ttl_even_if_the_reaper_dies() {
        for ttl in [1, 3, 10, 60, 3600].map(Duration::from_secs) {
            let timings = testing(ttl);
            // The lease, the heartbeat that finds it, the claim of a reaper that dies, the heartbeat that finds that.
            let longest = timings.lease + timings.heartbeat + timings.claim + timings.heartbeat;
            assert!(longest < ttl, "{longest:?} of {ttl:?}");
            assert!(timings.claim > 2 * timings.heartbeat && timings.lease > 5 * timings.heartbeat);
        }
    }
}
