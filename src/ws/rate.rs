//! The inbound rate limit of a connection: a token bucket (the generic cell rate algorithm).

use std::time::Duration;

use crate::clock::Moment;

/// How many frames may be refused, in units of the burst, before the connection is closed for flooding.
const STRIKES_PER_BURST: u32 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// Refused; the client may try again.
    Refused,
    /// Refused so often that the client is ignoring it.
    Flood,
}

/// Limits of `RATE_LIMIT_MESSAGES` and `RATE_LIMIT_BURST`.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    /// What one frame costs; zero: no limit.
    interval: Duration,
    burst: u32,
}

impl RateLimit {
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval = if per_second == 0 {
            Duration::ZERO
        } else {
            Duration::from_secs(1) / per_second
        };
        Self {
            interval,
            burst: burst.max(1),
        }
    }
}

/// One connection's bucket.
#[derive(Default)]
pub struct Bucket {
    /// When the bucket will be full again; in the past if it is full.
    full_at: Moment,
    strikes: u32,
}

impl Bucket {
    pub fn spend(&mut self, limit: &RateLimit, now: Moment) -> Verdict {
        if limit.interval.is_zero() {
            return Verdict::Allowed;
        }
        if self.full_at <= now {
            self.strikes = 0;
        }
        let next = self.full_at.max(now) + limit.interval;
        if next.remaining(now) <= limit.interval * limit.burst {
            self.full_at = next;
            return Verdict::Allowed;
        }
        self.strikes += 1;
        if self.strikes > STRIKES_PER_BURST * limit.burst {
            Verdict::Flood
        } else {
            Verdict::Refused
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let limit = RateLimit::new(20, 40);
        let mut bucket = Bucket::default();
        let start = Moment::now();
        let allowed = |bucket: &mut Bucket, now, n| {
            (0..n)
                .filter(|_| bucket.spend(&limit, now) == Verdict::Allowed)
                .count()
        };
        assert_eq!(allowed(&mut bucket, start, 100), 40);
        assert_eq!(allowed(&mut bucket, start + Duration::from_millis(500), 100), 10);
        assert_eq!(allowed(&mut bucket, start + Duration::from_secs(60), 100), 40);
    }

    #[test]
    fn a_client_that_does_not_stop_floods_and_a_pause_resets_its_strikes() {
        let limit = RateLimit::new(1, 2);
        let mut bucket = Bucket::default();
        let start = Moment::now();
        let verdicts: Vec<_> = (0..13).map(|_| bucket.spend(&limit, start)).collect();
        assert_eq!(verdicts[2], Verdict::Refused);
        assert_eq!(verdicts[11], Verdict::Refused);
        assert_eq!(verdicts[12], Verdict::Flood);
        assert_eq!(
            bucket.spend(&limit, start + Duration::from_secs(10)),
            Verdict::Allowed
        );
        assert_eq!(bucket.strikes, 0);
    }

    #[test]
    fn zero_is_off() {
        let (limit, mut bucket) = (RateLimit::new(0, 0), Bucket::default());
        assert!((0..1000).all(|_| bucket.spend(&limit, Moment::now()) == Verdict::Allowed));
    }
}
