//! Checks what clients received: how much, how late, and each message once.

use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

use super::marker;
use super::sequences::Sequences;
use crate::crowd::{Id, Watcher};

/// What the histogram can hold.
const LONGEST_US: u64 = 120_000_000;

pub struct Readers {
    /// All times are counted from here.
    pub epoch: Instant,
    /// The session of each client.
    sessions: Vec<usize>,
    pub sequences: Sequences,
    pub greeted: usize,
    /// Messages, over all clients.
    pub delivered: u64,
    pub latency_us: Histogram<u64>,
    /// Messages that were to be sent in this time count for latency, in nanoseconds from the epoch.
    pub measured: std::ops::Range<u64>,
}

impl Readers {
    pub fn new(sessions: Vec<usize>) -> Result<Self> {
        Ok(Self {
            epoch: Instant::now(),
            sequences: Sequences::new(sessions.len()),
            sessions,
            greeted: 0,
            delivered: 0,
            latency_us: Histogram::new_with_max(LONGEST_US, 3)?,
            measured: 0..0,
        })
    }

    pub fn now(&self) -> u64 {
        since(self.epoch, Instant::now())
    }

    /// How many of the messages sent to each session have not arrived.
    pub fn missing(&self, sent: &[u64]) -> u64 {
        self.sequences.missing(|client| sent[self.sessions[client]])
    }

    /// Latency at a quantile, in milliseconds.
    pub fn latency_ms(&self, quantile: f64) -> f64 {
        self.latency_us.value_at_quantile(quantile) as f64 / 1e3
    }
}

fn since(epoch: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(epoch).as_nanos()).unwrap_or(u64::MAX)
}

impl Watcher for Readers {
    fn opened(&mut self, _id: Id, _now: Instant) {
        self.greeted += 1;
    }

    fn frame(&mut self, id: Id, payload: &[u8], now: Instant) {
        marker::find_all(payload, |marker| {
            if !self.sequences.take(id, marker.number) {
                return;
            }
            self.delivered += 1;
            if self.measured.contains(&marker.intended) {
                let latency = Duration::from_nanos(since(self.epoch, now).saturating_sub(marker.intended));
                self.latency_us.saturating_record(latency.as_micros() as u64);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::marker::Marker;
    use super::*;

    #[test]
    fn gaps_repeats_and_a_missing_end_are_counted() {
        let mut readers = Readers::new(vec![0, 0, 1]).unwrap();
        readers.measured = 0..100;
        let mut receive = |id, number, intended| {
            readers.frame(id, &Marker { number, intended }.bytes(), Instant::now());
        };
        for (id, number, intended) in [(0, 0, 1), (0, 1, 2), (0, 1, 2), (1, 0, 1), (1, 3, 200)] {
            receive(id, number, intended);
        }
        let Sequences { lost, doubled, .. } = readers.sequences;
        assert_eq!((readers.delivered, lost, doubled), (4, 2, 1));
        assert_eq!(
            readers.latency_us.len(),
            3,
            "what was to be sent later is not measured"
        );
        assert_eq!(readers.missing(&[4, 2]), 2 + 2);
    }
}
