//! Pacing of reads. Under load, a short delay saves a lot of work: records that gather for a few milliseconds arrive in
//! one fetch instead of many, and reach a busy session in one write. A quiet log is read without delay.
//!
//! librdkafka keeps fetching while it holds few records ([`FetchSettings`]), and otherwise checks again after the same
//! delay, so a paced consumer paces the fetches, too.

use std::time::{Duration, Instant};

/// The least `fetch.queue.backoff.ms`, used without a delay; the default, a second, would be a noticeable pause.
const MIN_BACKOFF: Duration = Duration::from_millis(1);

/// How a consumer fetches. A fetch requests those partitions that had few records queued when it was sent. While the
/// broker holds it because they are empty, new records of the other partitions wait, too.
pub struct FetchSettings {
    /// `queued.min.messages`, of all partitions together.
    pub min_queued: &'static str,
    /// `fetch.wait.max.ms`.
    pub max_wait_ms: &'static str,
}

/// For messages: paced, so the threshold is low, though above what a quiet log ever has queued; hence the broker must
/// not hold a fetch for long. An idle node sends a hundred fetches a second, about half a percent of a core.
pub const MESSAGES: FetchSettings = FetchSettings {
    min_queued: "4",
    max_wait_ms: "10",
};

/// For typing and status: cheap when idle, so the broker may hold a fetch for long. The threshold is more than is ever
/// queued, so that a fetch always requests all partitions: with a low one, busy typing waited for idle status.
pub const SIGNALS: FetchSettings = FetchSettings {
    min_queued: "1000",
    max_wait_ms: "250",
};

/// The window over which the rate is measured.
const WINDOW: Duration = Duration::from_millis(20);
/// The log is busy if at least this many records arrive per delay: fewer are not worth the delay.
const MIN_GATHERED: f64 = 2.0;

/// `fetch.queue.backoff.ms`.
pub fn fetch_backoff_ms(delay: Duration) -> String {
    delay.max(MIN_BACKOFF).as_millis().to_string()
}

/// Decides how long to let records gather before the next poll.
pub struct Pace {
    /// `KAFKA_PACE`.
    delay: Duration,
    since: Instant,
    records: usize,
    is_busy: bool,
}

impl Pace {
    pub fn new(delay: Duration, now: Instant) -> Self {
        Self {
            delay,
            since: now,
            records: 0,
            is_busy: false,
        }
    }

    /// Notes a batch and returns how long to wait before the next. After a full batch more records are ready: no wait.
    pub fn after(&mut self, records: usize, is_full: bool, now: Instant) -> Duration {
        self.records += records;
        let elapsed = now - self.since;
        if elapsed >= WINDOW {
            let meanwhile = self.records as f64 * self.delay.as_secs_f64() / elapsed.as_secs_f64();
            self.is_busy = meanwhile >= MIN_GATHERED;
            (self.since, self.records) = (now, 0);
        }
        if self.is_busy && !is_full {
            self.delay
        } else {
            Duration::ZERO
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_millis(5);

    /// The waits of `batches` batches of `records` each, one every `gap`.
    fn waits(pace: &mut Pace, start: Instant, batches: u32, records: usize, gap: Duration) -> Vec<Duration> {
        (1..=batches)
            .map(|batch| pace.after(records, false, start + gap * batch))
            .collect()
    }

    #[test]
    fn reading_a_busy_log_is_delayed_and_reading_a_quiet_one_is_not() {
        let start = Instant::now();
        let mut pace = Pace::new(DELAY, start);
        // 200 records a second.
        let quiet = waits(&mut pace, start, 100, 1, Duration::from_millis(5));
        assert!(quiet.iter().all(Duration::is_zero));
        // 5,000 records a second.
        let busy = waits(
            &mut pace,
            start + Duration::from_secs(1),
            100,
            5,
            Duration::from_millis(1),
        );
        assert_eq!(busy.last(), Some(&DELAY));
        // Nothing for a while, then two records: no delay.
        let later = waits(
            &mut pace,
            start + Duration::from_secs(3),
            2,
            1,
            Duration::from_millis(50),
        );
        assert!(later.iter().all(Duration::is_zero));
    }

    #[test]
    fn a_full_batch_is_followed_without_delay() {
        let start = Instant::now();
        let mut pace = Pace::new(DELAY, start);
        for batch in 1..100 {
            assert!(pace.after(1_024, true, start + DELAY * batch).is_zero());
        }
        assert_eq!(pace.after(1, false, start + DELAY * 100), DELAY);
    }

    #[test]
    fn a_delay_of_zero_never_waits() {
        let start = Instant::now();
        let mut pace = Pace::new(Duration::ZERO, start);
        let waits = waits(&mut pace, start, 100, 100, Duration::from_millis(1));
        assert!(waits.iter().all(Duration::is_zero));
    }
}
