//! The monotonic clock in few bytes: milliseconds in four of them for a connection's state, a [`Moment`] for a user's.

use std::ops::Add;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Milliseconds since the process first asked, wrapping after 49 days: compare by [`since`] only.
pub fn now_ms() -> u32 {
    start().elapsed().as_millis() as u32
}

/// Tenths of a second since the process first asked: enough for thirteen years.
pub fn now_tenths() -> u32 {
    (start().elapsed().as_millis() / 100) as u32
}

/// How long ago `then` was, right across a wrap for spans below 49 days.
pub fn since(then: u32) -> Duration {
    Duration::from_millis(now_ms().wrapping_sub(then).into())
}

/// A moment of the monotonic clock in eight bytes, for what is kept of each user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    pub fn now() -> Self {
        Self(u64::try_from(start().elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    pub fn instant(self) -> Instant {
        start() + Duration::from_nanos(self.0)
    }

    /// How long until then; nothing when it is over.
    pub fn left(self, now: Self) -> Duration {
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
