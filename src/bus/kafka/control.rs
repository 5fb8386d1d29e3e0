//! How far the topic of disconnects has been read: a node is not ready before it knows who is refused.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a starting node waits for it. After that it is ready, and health says what is missing.
const TIMEOUT: Duration = Duration::from_secs(6);

#[derive(Default)]
pub struct ControlFeed(Mutex<State>);

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
    /// The topic, as a probe has found it.
    pub fn found(&self, partitions: usize) {
        self.0.lock().partitions = partitions;
    }

    /// The consumer begins to read.
    pub fn begun(&self) {
        self.0.lock().begun.get_or_insert_with(Instant::now);
    }

    /// The consumer has reached a partition's end.
    pub fn ended(&self, partition: i32) {
        let mut state = self.0.lock();
        if !state.is_read {
            state.ended.insert(partition);
            state.is_read = state.partitions > 0 && state.ended.len() >= state.partitions;
        }
    }

    /// Whether this node knows everything that was written before it started.
    pub fn is_read(&self) -> bool {
        self.0.lock().is_read
    }

    /// Whether a starting node need not wait for it any longer.
    pub fn is_settled(&self) -> bool {
        let state = self.0.lock();
        state.is_read || state.begun.is_some_and(|begun| begun.elapsed() >= TIMEOUT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_when_all_partitions_have_ended_once() {
        let feed = ControlFeed::default();
        feed.begun();
        feed.ended(0);
        assert!(!feed.is_read(), "how many there are is not known");
        feed.found(2);
        feed.ended(0);
        assert!(!feed.is_read() && !feed.is_settled());
        feed.ended(1);
        assert!(feed.is_read() && feed.is_settled());
        feed.found(3);
        assert!(feed.is_read(), "one that is added later has nothing from before");
    }
}
