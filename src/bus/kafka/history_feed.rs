//! What the recent log has to know about Kafka: which log it is, where reading starts, and how far it has got. A starting
//! node reads what was written lately: into its recent log, and further back by `DEDUP_WINDOW`, so that it recognizes
//! repeats as the other nodes do.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::error::KafkaResult;
use rdkafka::message::{BorrowedMessage, Message};

use super::Shared;
use super::broker::NO_RECORD;
use super::native::{NO_ID, TopicId};
use super::offsets::Partition;
use super::unread::{Unread, connect};
use crate::clock;
use crate::history::recent_log::CLOCK_SKEW_MS;
use crate::history::{RecentLog, SentMessages};
use crate::protocol::cursor::CursorKey;
use crate::protocol::record::Topic;

/// How long a starting node may read what was written lately. It is ready after that.
const FILL_TIMEOUT: Duration = Duration::from_secs(6);
/// How long one poll of that takes.
const POLL: Duration = Duration::from_millis(100);
/// How many bytes of the recent log a record takes at least: no more records than fit are read.
const LEAST_RECORD_BYTES: usize = 256;

/// Offsets of a partition that are read before delivery starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    pub partition: i32,
    pub start: i64,
    /// Records from here on are kept in the recent log; of those before, only repeats are learnt.
    pub keep_from: i64,
    pub end: i64,
}

impl Fill {
    /// `kept` and `learnt` are the first offsets of the two windows, `most` how many records of each to read at most.
    pub fn new(
        partition: i32,
        [kept, learnt]: [i64; 2],
        end: i64,
        [most_kept, most_learnt]: [i64; 2],
    ) -> Self {
        let start = |first: i64, most: i64| match first {
            NO_RECORD => end,
            first => first.clamp(end.saturating_sub(most).min(end), end).max(0),
        };
        let keep_from = start(kept, most_kept);
        Self {
            partition,
            start: start(learnt, most_learnt).min(keep_from),
            keep_from,
            end,
        }
    }
}

/// A check of the ends of all partitions that the consumer has yet to reach.
struct Ends {
    asked_at: i64,
    ends: Vec<(Partition, i64)>,
}

impl Ends {
    fn is_beyond(&self, ends: &[(Partition, i64)]) -> bool {
        ends.iter().any(|&(at, end)| {
            self.ends
                .iter()
                .any(|&(other, other_end)| other == at && other_end > end)
        })
    }
}

pub struct HistoryFeed {
    pub log: Arc<RecentLog>,
    sent: Arc<SentMessages>,
    /// `RESUME_WINDOW`, in milliseconds.
    window_ms: i64,
    /// `DEDUP_WINDOW`, in milliseconds.
    pub dedup_ms: i64,
    /// Which log it is, and its partitions; `None` while it is not known.
    identity: Mutex<(Option<Arc<CursorKey>>, i32)>,
    /// Set by the monitor, taken by the consumer of messages.
    fills: Mutex<Vec<Fill>>,
    /// Whether the recent log is filled, and all partitions are read: the node is not ready before that.
    is_filled: AtomicBool,
    /// When the first partitions were.
    begun: OnceLock<Instant>,
    ends: Mutex<Option<Ends>>,
}

/// What stands for a topic's id where brokers have none: their cluster's id, which is as random, and the topic's name.
fn key_of_cluster(cluster: Option<String>, name: &str) -> Option<CursorKey> {
    let Some(cluster) = cluster else {
        tracing::warn!(
            "the brokers tell neither the topic's id nor their cluster's: cursors are good on this node only"
        );
        return CursorKey::of_this_process().ok();
    };
    Some(CursorKey::of_log(format!("{cluster}/{name}").as_bytes()))
}

impl HistoryFeed {
    pub fn new(log: Arc<RecentLog>, sent: Arc<SentMessages>, window: Duration, dedup: Duration) -> Self {
        // Configuration allows a day at most.
        let ms = |window: Duration| i64::try_from(window.as_millis()).unwrap_or(i64::MAX / 4);
        // What was written before this node started is none of its clients' business, and the topic may not exist yet.
        log.set_read_until(clock::unix_ms());
        Self {
            log,
            sent,
            window_ms: ms(window),
            dedup_ms: ms(dedup),
            identity: Mutex::default(),
            fills: Mutex::default(),
            is_filled: AtomicBool::new(false),
            begun: OnceLock::new(),
            ends: Mutex::default(),
        }
    }

    /// The messages topic, as a probe has found it. `cluster` is asked only where brokers are too old to have ids of
    /// topics.
    pub fn found(
        &self,
        id: TopicId,
        name: &str,
        cluster: impl FnOnce() -> Option<String>,
        partitions: usize,
    ) {
        let mut identity = self.identity.lock();
        identity.1 = i32::try_from(partitions).unwrap_or(i32::MAX);
        let key = match id {
            // An old broker among new ones: it is the log that is known.
            NO_ID if identity.0.is_some() => return,
            NO_ID => match key_of_cluster(cluster(), name) {
                Some(key) => key,
                None => return,
            },
            // Random, and the same for all nodes. Only who may describe the topic knows it, and reads messages anyway.
            (high, low) => CursorKey::of_log(&[high.to_be_bytes(), low.to_be_bytes()].concat()),
        };
        match &identity.0 {
            Some(known) if known.log() == key.log() => return,
            Some(_) => self.log.outdate(),
            None => {}
        }
        identity.0 = Some(Arc::new(key));
    }

    /// How many offsets of a partition are kept and learnt from at most.
    pub fn most_filled(&self, partitions: usize) -> [i64; 2] {
        let records = [self.log.limit() / LEAST_RECORD_BYTES, self.sent.capacity()];
        records.map(|records| i64::try_from(records / partitions.max(1)).unwrap_or(i64::MAX))
    }

    /// Since when records are kept and learnt from at a start. What precedes the kept ones by `DEDUP_WINDOW` tells which of
    /// them are repeats.
    pub fn filled_since(&self, now: i64) -> [i64; 2] {
        let kept = if self.log.keeps_records() {
            now - self.window_ms
        } else {
            now
        };
        [kept, kept - self.dedup_ms - CLOCK_SKEW_MS]
    }

    pub fn plan(&self, fills: Vec<Fill>) {
        *self.fills.lock() = fills;
    }

    /// How many partitions the messages topic has; 0 if that is not known.
    pub fn partitions(&self) -> i32 {
        self.identity.lock().1
    }

    /// `DEDUP_WINDOW`.
    pub fn dedup_window(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.dedup_ms).unwrap_or(0))
    }

    pub fn is_filled(&self) -> bool {
        // A partition without a leader may not get one for long.
        let is_late = || {
            self.begun
                .get()
                .is_some_and(|begun| begun.elapsed() >= FILL_TIMEOUT)
        };
        self.is_filled.load(Ordering::Relaxed) || is_late()
    }

    /// On the thread that appends, before it reads on from `next`.
    pub fn assigned(&self, next: &HashMap<Partition, i64>) {
        let (key, partitions) = self.identity.lock().clone();
        // Not before the log is known: the first greetings would have no cursor. But before anything is found in it: what
        // was read up to now is sent to nobody live.
        if key.is_some() && self.begun.get().is_none() {
            self.log.start_live();
            self.begun.get_or_init(Instant::now);
        }
        if let Some(key) = &key {
            self.log.set_log(key, partitions);
            self.sent.set_log(key.log());
        }
        for (&(_, partition), &offset) in next {
            self.log.continue_at(partition, offset);
        }
        if !self.log.has_start() && !next.is_empty() {
            // A topic that is read from its beginning is all here.
            let is_whole = next.values().all(|&offset| offset == 0);
            self.log
                .set_complete_since(if is_whole { i64::MIN } else { clock::unix_ms() });
        }
        if key.is_some() && next.len() >= usize::try_from(partitions).unwrap_or(usize::MAX) {
            self.is_filled.store(true, Ordering::Relaxed);
        }
    }

    /// Reads what was written lately, if that is to be done: `read` is called with each record, and whether it is kept.
    pub(super) fn fill(&self, shared: &Shared, mut read: impl FnMut(&BorrowedMessage<'_>, bool)) {
        if self.begun.get().is_none() {
            self.log.reserve();
        }
        let fills = std::mem::take(&mut *self.fills.lock());
        if !fills.is_empty() {
            let started = clock::unix_ms();
            // The recent log is not known before the end of this: nobody resumes from a part of it.
            let (key, partitions) = self.identity.lock().clone();
            self.sent.set_log(key.map_or(0, |key| key.log()));
            for fill in &fills {
                self.log.continue_at(fill.partition, fill.keep_from);
            }
            let filled = self.read(shared, &fills, &mut read);
            let is_whole = match filled {
                Ok(is_whole) => is_whole,
                Err(error) => {
                    tracing::warn!(%error, "what was written lately cannot be read: a message that is sent again may appear twice");
                    false
                }
            };
            let [most, _] = self.most_filled(fills.len());
            let is_capped = fills.iter().any(|fill| fill.end - fill.keep_from >= most);
            let since = match is_whole {
                _ if fills.len() < usize::try_from(partitions).unwrap_or(usize::MAX) => started,
                true if fills.iter().all(|fill| fill.keep_from == 0) => i64::MIN,
                true if !is_capped => started - self.window_ms,
                _ => started,
            };
            if self.log.keeps_records() {
                self.log.set_complete_since(since);
            }
        }
    }

    /// Reads the planned offsets; false if that took too long.
    fn read(
        &self,
        shared: &Shared,
        fills: &[Fill],
        read: &mut impl FnMut(&BorrowedMessage<'_>, bool),
    ) -> KafkaResult<bool> {
        let keep_from: HashMap<_, _> = fills
            .iter()
            .map(|fill| (fill.partition, fill.keep_from))
            .collect();
        let mut unread = Unread::new(fills.iter().map(|fill| (fill.partition, [fill.start, fill.end])));
        if unread.is_empty() {
            return Ok(true);
        }
        let consumer = connect(shared)?;
        unread.assign(shared, &consumer)?;
        let until = Instant::now() + FILL_TIMEOUT;
        while !unread.is_empty() && !shared.is_stopping() {
            if Instant::now() >= until {
                tracing::warn!(
                    seconds = FILL_TIMEOUT.as_secs(),
                    "not everything written lately was read in time: a message that is sent again may appear twice"
                );
                return Ok(false);
            }
            if let Some(message) = unread.poll(shared.topic_name(Topic::Messages), &consumer, POLL) {
                let is_kept = keep_from
                    .get(&message.partition())
                    .is_some_and(|&from| message.offset() >= from);
                read(&message, is_kept);
                // It keeps within its memory.
                self.log.delivered();
            }
            for (partition, end) in unread.take_ended() {
                self.log.reached(partition, end);
            }
        }
        Ok(unread.is_empty())
    }

    /// The ends of all partitions, asked for at `asked_at`, and how far the consumer has got.
    pub fn observe_ends(
        &self,
        asked_at: i64,
        ends: Vec<(Partition, i64)>,
        next: impl Fn(Partition) -> Option<i64>,
    ) {
        // One that can't be asked may have anything.
        if ends.len() < usize::try_from(self.partitions()).unwrap_or(usize::MAX) {
            return;
        }
        self.note_progress(&next);
        // Ends that are yet to be reached stay, since new ones never would be under load; but not those of a log that has
        // become shorter.
        let mut waiting = self.ends.lock();
        if waiting.as_ref().is_none_or(|waiting| waiting.is_beyond(&ends)) {
            *waiting = Some(Ends { asked_at, ends });
        }
        drop(waiting);
        self.note_progress(next);
    }

    /// How far the consumer has got.
    pub fn note_progress(&self, next: impl Fn(Partition) -> Option<i64>) {
        let mut waiting = self.ends.lock();
        let reached = waiting.take_if(|waiting| {
            let mut ends = waiting.ends.iter();
            ends.all(|&(at, end)| next(at).is_some_and(|next| next >= end))
        });
        if let Some(reached) = reached {
            self.log.set_read_until(reached.asked_at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fill_keeps_one_window_and_learns_from_the_other() {
        let fill = |kept, learnt, most| {
            let fill = Fill::new(0, [kept, learnt], 1_000, most);
            assert_eq!(fill.end, 1_000);
            (fill.start, fill.keep_from)
        };
        let most = [500, 800];
        assert_eq!(fill(700, 600, most), (600, 700));
        assert_eq!(fill(NO_RECORD, 600, most), (600, 1_000));
        assert_eq!(fill(NO_RECORD, NO_RECORD, most), (1_000, 1_000));
        assert_eq!(fill(100, 50, most), (200, 500), "no more than fit");
        assert_eq!(fill(100, 50, [5_000, 100]), (100, 100));
        assert_eq!(
            fill(900, 1_100, [0, 800]),
            (1_000, 1_000),
            "written since the end was asked for"
        );
    }

    fn number(feed: &HistoryFeed) -> Option<u64> {
        feed.identity.lock().0.as_ref().map(|key| key.log())
    }

    #[test]
    fn all_nodes_know_a_log_by_the_same_key() {
        let feed = || {
            let (log, sent) = (RecentLog::new(0), SentMessages::new(65_536, Duration::ZERO));
            HistoryFeed::new(Arc::new(log), Arc::new(sent), Duration::ZERO, Duration::ZERO)
        };
        let found = |id, cluster: Option<&str>, name: &str| {
            let feed = feed();
            feed.found(id, name, || cluster.map(str::to_owned), 1);
            number(&feed).expect("a log")
        };
        let by_id = found((1, 2), None, "a");
        assert_eq!(found((1, 2), Some("c"), "a"), by_id, "the cluster is not asked");
        assert_ne!(found((2, 1), None, "a"), by_id);
        // Brokers without ids: by cluster and name, or else each node by itself.
        let by_cluster = found(NO_ID, Some("c"), "a");
        assert_eq!(found(NO_ID, Some("c"), "a"), by_cluster);
        assert_ne!(found(NO_ID, Some("d"), "a"), by_cluster);
        assert_ne!(found(NO_ID, Some("c"), "b"), by_cluster);
        assert_ne!(found(NO_ID, None, "a"), found(NO_ID, None, "a"));
        // An old broker among new ones changes nothing; another id is another log.
        let feed = feed();
        feed.found((1, 2), "a", || None, 1);
        feed.found(NO_ID, "a", || panic!("it is known"), 1);
        assert_eq!(number(&feed), Some(by_id));
        feed.found((1, 3), "a", || None, 1);
        assert_ne!(number(&feed), Some(by_id));
    }

    #[test]
    fn a_node_learns_for_longer_than_it_keeps() {
        let feed = |bytes| {
            let window = Duration::from_millis(100);
            let (log, sent) = (RecentLog::new(bytes), SentMessages::new(65_536, window));
            HistoryFeed::new(Arc::new(log), Arc::new(sent), 10 * window, window)
        };
        let learnt = -100 - CLOCK_SKEW_MS;
        assert_eq!(feed(1 << 20).filled_since(0), [-1_000, learnt - 1_000]);
        assert_eq!(feed(0).filled_since(0), [0, learnt]);
    }
}
