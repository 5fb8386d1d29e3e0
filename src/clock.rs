//! Compact monotonic timestamps: four bytes for a connection's state, a [`Moment`] of eight bytes for a user's.

use std::ops::Add;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the first call, wrapping after 49 days: compare with [`since`] only.
pub fn now_ms() -> u32 {
    start().elapsed().as_millis() as u32
}

/// Milliseconds since 1970, for comparison with timestamps of records.
pub fn unix_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// Seconds since 1970, as tokens count.
pub fn unix_seconds() -> i64 {
    unix_ms() / 1000
}

/// Tenths of a second since the first call: enough for thirteen years.
pub fn now_tenths() -> u32 {
    (start().elapsed().as_millis() / 100) as u32
}

/// How long ago `then` was; correct across a wrap for spans below 49 days.
pub fn since(then: u32) -> Duration {
    Duration::from_millis(now_ms().wrapping_sub(then).into())
}

/// An instant of the monotonic clock in eight bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    pub fn now() -> Self {
        Self(u64::try_from(start().elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    pub fn instant(self) -> Instant {
        start() + Duration::from_nanos(self.0)
    }

    /// How long until this moment; zero if it has passed.
    pub fn remaining(self, now: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(now.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, length: Duration) -> Self {
        let length = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(length))
    }
}

fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}
