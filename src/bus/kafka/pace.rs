//! Under load a little patience saves much: what gathers for some milliseconds comes in one fetch, where it would come
//! in many, and goes to a busy session in one write. A quiet log is read at once.
//!
//! librdkafka fetches on while it holds few records ([`Fetching`]), and else looks again after the same patience: so that
//! a consumer which takes its time paces the fetches, too.

use std::time::{Duration, Instant};

/// `fetch.queue.backoff.ms` is the patience, or this much without any; the default, a second, is a pause that everybody
/// notices.
const LEAST_BACKOFF: Duration = Duration::from_millis(1);

/// How a consumer asks for records. A fetch asks for those partitions that had few records waiting when it went out, and
/// while the broker holds it because they have nothing, what the others get waits, too.
pub struct Fetching {
    /// `queued.min.messages`, of all partitions together.
    pub few: &'static str,
    /// `fetch.wait.max.ms`.
    pub wait_ms: &'static str,
}

/// Paced, by few records that are still more than a quiet log ever has waiting; so a fetch is not held for long. An idle
/// node asks a hundred times a second for it, which costs about half a percent of a core.
pub const MESSAGES: Fetching = Fetching {
    few: "4",
    wait_ms: "10",
};

/// Beside the messages all the time, so it is to cost nothing when idle and may be held for long. Hence more records than
/// ever wait, so that a fetch always asks for all partitions: with few, busy typing waited for idle status.
pub const SIGNALS: Fetching = Fetching {
    few: "1000",
    wait_ms: "250",
};

/// What the rate is taken over.
const WINDOW: Duration = Duration::from_millis(20);
/// The log is busy when so many records come while one waits: fewer are not worth waiting for.
const WORTH_WAITING: f64 = 2.0;

/// `fetch.queue.backoff.ms`.
pub fn fetch_backoff_ms(patience: Duration) -> String {
    patience.max(LEAST_BACKOFF).as_millis().to_string()
}

/// Says how long to let records gather before the next look.
pub struct Pace {
    /// `KAFKA_PACE`.
    patience: Duration,
    since: Instant,
    records: usize,
    is_busy: bool,
}

impl Pace {
    pub fn new(patience: Duration, now: Instant) -> Self {
        Self {
            patience,
            since: now,
            records: 0,
            is_busy: false,
        }
    }

    /// Takes in a batch and says how long to wait for the next. A full one has more behind it: no wait.
    pub fn after(&mut self, records: usize, is_full: bool, now: Instant) -> Duration {
        self.records += records;
        let elapsed = now - self.since;
        if elapsed >= WINDOW {
            let meanwhile = self.records as f64 * self.patience.as_secs_f64() / elapsed.as_secs_f64();
            self.is_busy = meanwhile >= WORTH_WAITING;
            (self.since, self.records) = (now, 0);
        }
        if self.is_busy && !is_full {
            self.patience
        } else {
            Duration::ZERO
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(5);

    /// The waits of `batches` batches of `records` each, one every `gap`.
    fn waits(pace: &mut Pace, start: Instant, batches: u32, records: usize, gap: Duration) -> Vec<Duration> {
        (1..=batches)
            .map(|batch| pace.after(records, false, start + gap * batch))
            .collect()
    }

    #[test]
    fn a_busy_log_is_waited_for_and_a_quiet_one_not() {
        let start = Instant::now();
        let mut pace = Pace::new(PATIENCE, start);
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
        assert_eq!(busy.last(), Some(&PATIENCE));
        // Nothing for a while, then one record: it may be waited behind once, the next one not.
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
    fn a_full_batch_has_more_behind_it() {
        let start = Instant::now();
        let mut pace = Pace::new(PATIENCE, start);
        for batch in 1..100 {
            assert!(pace.after(1_024, true, start + PATIENCE * batch).is_zero());
        }
        assert_eq!(pace.after(1, false, start + PATIENCE * 100), PATIENCE);
    }

    #[test]
    fn no_patience_is_no_wait() {
        let start = Instant::now();
        let mut pace = Pace::new(Duration::ZERO, start);
        let waits = waits(&mut pace, start, 100, 100, Duration::from_millis(1));
        assert!(waits.iter().all(Duration::is_zero));
    }
}
