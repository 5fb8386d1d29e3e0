//! How far the topic of disconnects has been read: a node is not ready before it knows who is refused.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a starting node waits for it. After that it is ready, and health says what is missing.
const TIMEOUT: Duration = Duration::from_secs(6);
/// How long clients of a starting node wait for a first answer of Kafka: it may be down.
const FIRST_ANSWER: Duration = Duration::from_secs(3);
/// When a node is ready at the latest, also if it has never reached Kafka.
const READY_AFTER: Duration = Duration::from_secs(10);

pub struct ControlFeed {
    started: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// 0 if that is not known.
    partitions: usize,
    /// Those that have been read to their end once.
    ended: HashSet<i32>,
    /// When reading began.
    begun: Option<Instant>,
    is_read: bool,
}

impl ControlFeed {
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// The topic, as a probe has found it.
    pub fn found(&self, partitions: usize) {
        self.state.lock().partitions = partitions;
    }

    /// The consumer begins to read.
    pub fn begun(&self) {
        self.state.lock().begun.get_or_insert_with(Instant::now);
    }

    /// The consumer has reached a partition's end.
    pub fn ended(&self, partition: i32) {
        let mut state = self.state.lock();
        if !state.is_read {
            state.ended.insert(partition);
            state.is_read = state.partitions > 0 && state.ended.len() >= state.partitions;
        }
    }

    /// Whether this node knows everything that was written before it started.
    pub fn is_read(&self) -> bool {
        self.state.lock().is_read
    }

    /// Whether clients have to wait: it will soon be known who is refused.
    pub fn is_awaited(&self) -> bool {
        let has_begun = self.state.lock().begun.is_some();
        !self.is_settled() && (has_begun || self.started.elapsed() < FIRST_ANSWER)
    }

    /// Whether the node is ready without knowing it.
    pub fn is_missing(&self) -> bool {
        let is_ready = self.is_settled() || self.started.elapsed() >= READY_AFTER;
        is_ready && !self.is_read()
    }

    /// Whether a starting node need not wait for it any longer.
    pub fn is_settled(&self) -> bool {
        let state = self.state.lock();
        state.is_read || state.begun.is_some_and(|begun| begun.elapsed() >= TIMEOUT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_when_all_partitions_have_ended_once() {
        let feed = ControlFeed::new();
        feed.begun();
        feed.ended(0);
        assert!(!feed.is_read(), "how many there are is not known");
        assert!(feed.is_awaited());
        feed.found(2);
        feed.ended(0);
        assert!(!feed.is_read() && !feed.is_settled());
        feed.ended(1);
        assert!(feed.is_read() && feed.is_settled() && !feed.is_missing() && !feed.is_awaited());
        feed.found(3);
        assert!(feed.is_read(), "one that is added later has nothing from before");
    }
}
