//! Partitions that are read up to offsets which this node has read before, by a client of their own.
//!
//! The last offsets before such an end may be transaction markers, which are never delivered: then the end of the
//! partition tells that there is nothing more. But after a change of leader, a broker's high watermark and last stable
//! offset may be behind for a moment, and the partition seems to end too early. So its end counts only after the broker
//! has said that it lets clients read that far.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Message};

use super::Shared;
use super::reasons::Reasons;
use crate::protocol::record::Topic;

/// How long to wait for the broker's answer.
const ANSWER: Duration = Duration::from_millis(500);
/// How soon a partition that ended too early is read on.
const RETRY: Duration = Duration::from_millis(100);
/// How long to wait for what follows a seek.
const RESEEK: Duration = Duration::from_secs(1);

/// The client that reads them.
pub(super) type LogConsumer = BaseConsumer<Reasons>;

pub(super) fn connect(shared: &Shared) -> KafkaResult<LogConsumer> {
    shared
        .consumer_config()
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "10")
        .set("queued.max.messages.kbytes", "16384")
        .create_with_context(Reasons::default())
}

struct Partition {
    next: i64,
    end: i64,
    /// The broker lets clients read up to `end`: the partition's next end is the real one.
    is_readable: bool,
    /// When to read on from `next`, so that the client reports the partition's end once more.
    seek_at: Option<Instant>,
}

/// What is still to be read of the messages topic.
#[derive(Default)]
pub(super) struct Unread {
    partitions: HashMap<i32, Partition>,
    /// No partition has to be read on before this.
    next_seek: Option<Instant>,
    /// Partitions that have been read to their ends since they were asked for.
    ended: Vec<(i32, i64)>,
}

impl Unread {
    /// Of each partition, the offsets from the first to before the second.
    pub fn new(ranges: impl IntoIterator<Item = (i32, [i64; 2])>) -> Self {
        let partition = |(number, [next, end]): (i32, [i64; 2])| {
            let unread = Partition {
                next,
                end,
                is_readable: false,
                seek_at: None,
            };
            (next < end).then_some((number, unread))
        };
        Self {
            partitions: ranges.into_iter().filter_map(partition).collect(),
            next_seek: None,
            ended: Vec::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// Makes the consumer read what is unread, and nothing else.
    pub fn assign(&mut self, shared: &Shared, consumer: &LogConsumer) -> KafkaResult<()> {
        let next = self.partitions.iter_mut().map(|(&number, partition)| {
            partition.seek_at = None;
            ((Topic::Messages, number), Offset::Offset(partition.next))
        });
        consumer.assign(&shared.positions(next)?)
    }

    /// Waits for a record.
    pub fn poll<'a>(
        &mut self,
        topic: &str,
        consumer: &'a LogConsumer,
        wait: Duration,
    ) -> Option<BorrowedMessage<'a>> {
        for (partition, next) in self.seeks(Instant::now()) {
            if let Err(error) = consumer.seek(topic, partition, Offset::Offset(next), Duration::ZERO) {
                tracing::debug!(%error, partition, "Kafka consumer");
            }
        }
        match consumer.poll(wait)? {
            Ok(message) => self
                .read(message.partition(), message.offset())
                .then_some(message),
            Err(KafkaError::PartitionEOF(partition)) => {
                // For a client that reads committed records only, `high` is the last stable offset. While a new leader
                // does not know either, there is an error.
                let high = || {
                    consumer
                        .fetch_watermarks(topic, partition, ANSWER)
                        .map(|(_, high)| high)
                };
                self.ended_at(partition, high);
                None
            }
            Err(error) => {
                tracing::debug!(%error, "Kafka consumer");
                None
            }
        }
    }

    /// Partitions that have been read to their ends since the last call, and those ends.
    pub fn take_ended(&mut self) -> impl Iterator<Item = (i32, i64)> + use<'_> {
        self.ended.drain(..)
    }

    /// Whether a record is one that was unread.
    fn read(&mut self, number: i32, offset: i64) -> bool {
        let Some(partition) = self.partitions.get_mut(&number) else {
            return false;
        };
        let is_unread = (partition.next..partition.end).contains(&offset);
        partition.next = partition.next.max(offset + 1);
        partition.seek_at = None;
        if partition.next >= partition.end {
            self.end(number);
        }
        is_unread
    }

    /// The client has reported a partition's end; `high` asks the broker for it.
    fn ended_at(&mut self, number: i32, high: impl FnOnce() -> KafkaResult<i64>) {
        let Some(partition) = self.partitions.get_mut(&number) else {
            return;
        };
        if partition.is_readable {
            return self.end(number);
        }
        partition.is_readable = high().is_ok_and(|high| high >= partition.end);
        let wait = if partition.is_readable {
            Duration::ZERO
        } else {
            RETRY
        };
        let at = Instant::now() + wait;
        partition.seek_at = Some(at);
        self.next_seek = Some(self.next_seek.map_or(at, |next| next.min(at)));
    }

    fn end(&mut self, number: i32) {
        if let Some(partition) = self.partitions.remove(&number) {
            self.ended.push((number, partition.end));
        }
    }

    /// Where to read on.
    fn seeks(&mut self, now: Instant) -> Vec<(i32, i64)> {
        // This is called for every record.
        if self.next_seek.is_none_or(|next| next > now) {
            return Vec::new();
        }
        let mut due = Vec::new();
        for (&number, partition) in &mut self.partitions {
            if let Some(at) = &mut partition.seek_at
                && *at <= now
            {
                *at = now + RESEEK;
                due.push((number, partition.next));
            }
        }
        let next = self.partitions.values().filter_map(|partition| partition.seek_at);
        self.next_seek = next.min();
        due
    }
}

#[cfg(test)]
impl Unread {
    /// What is read next of each partition.
    pub fn next(&self) -> Vec<(i32, i64)> {
        let next = self.partitions.iter();
        next.map(|(&number, partition)| (number, partition.next))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unread(ranges: &[(i32, [i64; 2])]) -> Unread {
        Unread::new(ranges.iter().copied())
    }

    fn ended(unread: &mut Unread) -> Vec<(i32, i64)> {
        unread.take_ended().collect()
    }

    fn never() -> KafkaResult<i64> {
        panic!("the broker is not asked")
    }

    #[test]
    fn a_partition_ends_with_its_last_record() {
        let mut unread = unread(&[(0, [5, 8]), (1, [3, 3]), (2, [0, 1])]);
        assert!(unread.read(0, 5) && unread.read(2, 0));
        assert_eq!(ended(&mut unread), [(2, 1)]);
        assert!(!unread.read(2, 1) && !unread.read(1, 3), "it is all read");
        // Offsets have gaps.
        assert!(unread.read(0, 7));
        assert_eq!((ended(&mut unread), unread.is_empty()), (vec![(0, 8)], true));
    }

    #[test]
    fn what_was_written_since_is_not_wanted() {
        let mut unread = unread(&[(0, [5, 8])]);
        // Where the last offsets are markers, a later record tells.
        assert!(!unread.read(0, 9));
        assert_eq!(ended(&mut unread), [(0, 8)]);
    }

    #[test]
    fn a_partition_that_ends_too_early_is_read_on() {
        let mut unread = unread(&[(0, [5, 8])]);
        unread.ended_at(0, || Ok(7));
        assert!(!unread.is_empty(), "records are missing");
        let now = Instant::now();
        assert_eq!(unread.seeks(now), []);
        // The leader can't tell yet.
        assert_eq!(unread.seeks(now + RETRY), [(0, 5)]);
        unread.ended_at(0, || Err(KafkaError::Canceled));
        assert!(!unread.is_empty());
        for offset in 5..8 {
            assert!(unread.read(0, offset));
        }
        assert_eq!(ended(&mut unread), [(0, 8)]);
    }

    #[test]
    fn an_end_counts_only_after_the_broker_lets_clients_read_that_far() {
        let mut unread = unread(&[(0, [5, 8])]);
        assert!(unread.read(0, 5));
        unread.ended_at(0, || Ok(8));
        assert!(!unread.is_empty(), "this end may be of before the answer");
        // At once, and again if nothing comes of it.
        let now = Instant::now();
        assert_eq!(unread.seeks(now), [(0, 6)]);
        assert_eq!(unread.seeks(now), []);
        assert_eq!(unread.seeks(now + RESEEK), [(0, 6)]);
        // What was to come, if anything.
        assert!(unread.read(0, 6));
        unread.ended_at(0, never);
        assert_eq!((ended(&mut unread), unread.is_empty()), (vec![(0, 8)], true));
        unread.ended_at(0, never);
    }
}
