//! The figures that the console shows, read from the counters of the metrics page.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::Metrics;

/// Delays, as their number and their sum: the library's histograms can only be written.
#[derive(Default)]
pub struct Delay {
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Delay {
    pub fn observe(&self, delay: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

/// Totals since the start. Two of them make a rate; the difference of the sums by that of the counts is a mean.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Messages that the log has acknowledged.
    pub messages: u64,
    /// Chunks of frames given to sockets.
    pub deliveries: u64,
    /// Batches that were delivered, and how long their first records took from the log to the sockets.
    pub delays: u64,
    pub delays_us: u64,
}

impl Metrics {
    pub fn figures(&self) -> Figures {
        Figures {
            messages: self.records_published.get(),
            deliveries: self.deliveries_written.get() + self.deliveries_queued.get(),
            delays: self.delay.count.load(Ordering::Relaxed),
            delays_us: self.delay.sum_us.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_totals() {
        let metrics = Metrics::default();
        metrics.records_published.inc();
        metrics.batch_delivered(1, 2, 3);
        for ms in [2, 4] {
            metrics.delay.observe(Duration::from_millis(ms));
        }
        let expected = Figures {
            messages: 1,
            deliveries: 5,
            delays: 2,
            delays_us: 6_000,
        };
        assert_eq!(metrics.figures(), expected);
    }
}
