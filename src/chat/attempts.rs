//! Messages with a `client_message_id`: each is answered once this node has read its record, and every further attempt
//! with what the first one was told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::pending::PendingAnswer;
use crate::bus::{PublishError, ReadMessage};
use crate::clock;
use crate::history::sent::Key;
use crate::history::{Sent, SentMessages};
use crate::metrics::Metrics;

/// How long a message counts as under way: longer than its record may wait for the log. After that, an attempt writes
/// another record, and the log's rule decides.
const UNDER_WAY: Duration = Duration::from_secs(40);
const PURGE_INTERVAL: Duration = Duration::from_secs(10);
/// The most messages under way: as many as the producer may hold.
const MAX_UNDER_WAY: usize = 100_000;
/// The most attempts at one message that wait for it.
const MAX_WAITING: usize = 16;

/// What clients have sent, and what is under way from this node.
pub struct Attempts {
    pub sent: Arc<SentMessages>,
    state: Mutex<State>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    under_way: HashMap<Key, UnderWay, RandomState>,
    /// The number of the last attempt that wrote a record.
    last: u64,
    purged: Option<Instant>,
}

/// A message whose record was written and not read yet.
struct UnderWay {
    /// Which attempt wrote the record.
    number: u64,
    since: Instant,
    waiting: Vec<Arc<PendingAnswer>>,
}

/// An attempt to send a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The log has it.
    Known(Sent),
    /// It is under way: the answer comes with that of the first attempt.
    Waits,
    /// Nobody has sent it: its record is to be written.
    First(u64),
    /// Too many are under way.
    Refused,
}

impl Attempts {
    pub fn new(sent: Arc<SentMessages>, metrics: Arc<Metrics>) -> Self {
        Self {
            sent,
            state: Mutex::default(),
            metrics,
        }
    }

    pub fn begin(&self, key: Key, pending: &Arc<PendingAnswer>) -> Attempt {
        let (now, unix_now) = (Instant::now(), clock::unix_ms());
        let mut state = self.state.lock();
        // With the lock: a record is added there before those who wait for it are taken from here.
        if let Some(sent) = self.sent.find(key, unix_now) {
            self.metrics.history.repeats_answered.inc();
            return Attempt::Known(sent);
        }
        let is_full = state.under_way.len() >= MAX_UNDER_WAY;
        let number = state.last + 1;
        if let Some(under_way) = state.under_way.get_mut(&key) {
            under_way.waiting.retain(|waiting| !waiting.is_answered());
            if under_way.waiting.len() >= MAX_WAITING {
                return Attempt::Refused;
            }
            under_way.waiting.push(Arc::clone(pending));
            if now.duration_since(under_way.since) < UNDER_WAY {
                self.metrics.history.repeats_answered.inc();
                return Attempt::Waits;
            }
            (under_way.number, under_way.since) = (number, now);
        } else if is_full {
            return Attempt::Refused;
        } else {
            let under_way = UnderWay {
                number,
                since: now,
                waiting: vec![Arc::clone(pending)],
            };
            state.under_way.insert(key, under_way);
        }
        state.last = number;
        Attempt::First(number)
    }

    /// The record of an attempt did not reach the log, or may not have.
    pub fn failed(&self, key: Key, number: u64, error: PublishError) {
        let under_way = {
            let mut state = self.state.lock();
            let is_it = |under_way: &UnderWay| under_way.number == number;
            if !state.under_way.get(&key).is_some_and(is_it) {
                return;
            }
            state.under_way.remove(&key)
        };
        for waiting in under_way.into_iter().flat_map(|under_way| under_way.waiting) {
            waiting.answer(Err(error));
        }
    }

    /// This node has read these messages: answers all who wait for them.
    pub fn read(&self, messages: &mut Vec<ReadMessage>) {
        let mut answered = Vec::new();
        {
            let mut state = self.state.lock();
            if state.under_way.is_empty() {
                return;
            }
            for (key, sent) in messages.drain(..) {
                if let Some(under_way) = state.under_way.remove(&key) {
                    answered.push((under_way.waiting, sent));
                }
            }
        }
        for (waiting, sent) in answered {
            for pending in waiting {
                pending.answer(Ok(&sent));
            }
        }
    }

    /// Forgets what has been under way for too long; everybody who waited has been answered at their deadline.
    pub fn purge(&self, now: Instant) {
        let mut state = self.state.lock();
        if state
            .purged
            .is_none_or(|purged| now.duration_since(purged) >= PURGE_INTERVAL)
        {
            state.purged = Some(now);
            state
                .under_way
                .retain(|_, under_way| now.duration_since(under_way.since) < UNDER_WAY);
        }
    }
}

#[cfg(test)]
#[path = "attempts_tests.rs"]
mod tests;
