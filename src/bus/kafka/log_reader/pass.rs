//! One pass over all partitions of the log, for all queries of a group.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use uuid::Uuid;

use super::ends::Ends;
use super::{POLL, Waiter};
use crate::bus::kafka::Shared;
use crate::bus::kafka::consumer::incoming;
use crate::bus::kafka::unread::{LogConsumer, Unread};
use crate::history::query::frame_of;
use crate::history::recent_log::CLOCK_SKEW_MS;
use crate::history::sent::{Sent, SentMessages, SentRecord};
use crate::protocol::cursor::Mark;
use crate::protocol::ids::SessionId;
use crate::protocol::record::{Converter, Incoming, Topic};
use crate::protocol::resume::NotResumed;

/// The most bytes that are held for all clients until they have got them.
const MAX_BYTES: usize = 64 << 20;
/// How much of what was sent is remembered in a pass.
const MAX_SENT_BYTES: usize = 8 << 20;
/// How long to wait for the broker's answer.
const ANSWER: Duration = Duration::from_secs(1);

/// What the brokers say of a partition: where it begins, and its first record since the time that was asked for.
struct Start {
    partition: i32,
    begin: i64,
    start: Option<i64>,
}

pub(super) struct Pass {
    /// `None`: answered.
    waiters: Vec<Option<Waiter>>,
    /// How many are not answered.
    open: usize,
    of_session: HashMap<SessionId, Vec<usize>>,
    /// `None` until it is known where reading starts.
    unread: Option<Unread>,
    ends: Ends,
    /// The timestamp of the oldest record of each partition whose beginning is gone from the log; the largest number if
    /// all of it is.
    oldest: HashMap<i32, i64>,
    converter: Converter,
    /// Messages of these sessions that the pass has read, by which repeats are recognized.
    sent: SentMessages,
    held: Arc<AtomicUsize>,
    /// How long it has read.
    pub took: Duration,
}

impl Pass {
    pub fn new(waiters: Vec<Waiter>, dedup_window: Duration, held: &Arc<AtomicUsize>) -> Self {
        let mut of_session: HashMap<_, Vec<usize>> = HashMap::new();
        for (number, waiter) in waiters.iter().enumerate() {
            let session_id = waiter.collector.query().session_id.clone();
            of_session.entry(session_id).or_default().push(number);
        }
        Self {
            open: waiters.len(),
            waiters: waiters.into_iter().map(Some).collect(),
            of_session,
            unread: None,
            ends: Ends::default(),
            oldest: HashMap::new(),
            converter: Converter::default(),
            sent: SentMessages::new(MAX_SENT_BYTES, dedup_window),
            held: Arc::clone(held),
            took: Duration::ZERO,
        }
    }

    /// Whether all are answered.
    pub fn is_done(&self) -> bool {
        self.open == 0
    }

    /// Gives up on those whose time is over, and returns how many these are.
    pub fn expire(&mut self, now: Instant) -> usize {
        let open = self.open;
        for number in 0..self.waiters.len() {
            let waiter = self.waiters[number].as_ref();
            if waiter.is_some_and(|waiter| waiter.deadline() <= now) {
                self.refuse(number, NotResumed::Unavailable);
            }
        }
        open - self.open
    }

    fn refuse(&mut self, number: usize, why: NotResumed) {
        if let Some(waiter) = self.waiters[number].take() {
            self.open -= 1;
            waiter.refuse(why);
        }
    }

    /// Answers a query for which everything has been read.
    fn finish(&mut self, number: usize) {
        if let Some(mut waiter) = self.waiters[number].take() {
            self.open -= 1;
            if self.is_gone(&waiter) {
                waiter.collector.refuse(NotResumed::TooOld);
            }
            waiter.collector.finish();
        }
    }

    /// Whether the client's message was not found and is older than what the log still has of its session's partition.
    fn is_gone(&self, waiter: &Waiter) -> bool {
        let oldest = self.oldest.get(&waiter.partition);
        waiter
            .collector
            .unknown_since()
            .zip(oldest)
            .is_some_and(|(since, &oldest)| since < oldest)
    }

    /// Asks the brokers where reading starts, if that is not known.
    pub fn find_start(&mut self, shared: &Shared, consumer: &LogConsumer) -> KafkaResult<()> {
        let waiters = self.waiters.iter().flatten();
        let Some(since) = waiters.map(|waiter| waiter.since).min() else {
            return Ok(());
        };
        if self.unread.is_some() {
            return Ok(());
        }
        let partitions = shared.history.partitions();
        let list = |from: Offset| -> KafkaResult<Vec<Option<i64>>> {
            let asked = (0..partitions).map(|partition| ((Topic::Messages, partition), from));
            let found = consumer.offsets_for_times(shared.positions(asked)?, ANSWER)?;
            let name = shared.topic_name(Topic::Messages);
            let offset = |partition| match found.find_partition(name, partition) {
                Some(found) if found.error().is_ok() => {
                    Ok(found.offset().to_raw().filter(|&offset| offset >= 0))
                }
                _ => Err(KafkaError::OffsetFetch(RDKafkaErrorCode::LeaderNotAvailable)),
            };
            (0..partitions).map(offset).collect()
        };
        // What precedes the records by that much tells which of them are repeats.
        let starts = list(Offset::Offset(since - shared.history.dedup_ms - CLOCK_SKEW_MS))?;
        // As BrokerClient::list_offsets does: this "time" stands for the beginning.
        let begins = list(Offset::Beginning)?;
        if partitions == 0 {
            return Err(KafkaError::OffsetFetch(RDKafkaErrorCode::UnknownPartition));
        }
        let begins = begins.into_iter().map(Option::unwrap_or_default);
        let found = (0..partitions).zip(begins).zip(starts);
        let found = found.map(|((partition, begin), start)| Start {
            partition,
            begin,
            start,
        });
        self.start_at(found.collect());
        Ok(())
    }

    /// Settles what is read of each partition.
    fn start_at(&mut self, found: Vec<Start>) {
        let mut ranges = Vec::new();
        for Start {
            partition,
            begin,
            start,
        } in found
        {
            let mut end = 0;
            // Who knows exactly where he is may be further back than his time.
            let mut first = i64::MAX;
            for number in 0..self.waiters.len() {
                let Some(waiter) = &self.waiters[number] else {
                    continue;
                };
                let query = waiter.collector.query();
                match query.start_offset().filter(|&(own, _)| own == partition) {
                    Some((_, offset)) if offset < begin => {
                        self.refuse(number, NotResumed::TooOld);
                        continue;
                    }
                    Some((_, offset)) => first = first.min(offset),
                    None => {}
                }
                end = end.max(query.end(partition));
            }
            // Without a start, nothing has such a timestamp or a later one.
            let start = start.unwrap_or(end).min(first);
            if begin > 0 && start <= begin {
                self.oldest.insert(partition, i64::MAX);
            }
            ranges.push((partition, [start, end]));
        }
        for (number, waiter) in self.waiters.iter().enumerate() {
            if let Some(waiter) = waiter {
                let query = waiter.collector.query();
                let unread = ranges.iter().filter(|&&(at, [start, _])| start < query.end(at));
                self.ends.add(number, unread.map(|&(at, _)| (at, query.end(at))));
            }
        }
        self.ends.sort();
        for number in self.ends.complete() {
            self.finish(number);
        }
        self.unread = Some(Unread::new(ranges));
    }

    /// Makes the consumer read what is unread, and nothing else.
    pub fn assign(&mut self, shared: &Shared, consumer: &LogConsumer) -> KafkaResult<()> {
        match &mut self.unread {
            Some(unread) => unread.assign(shared, consumer),
            None => Ok(()),
        }
    }

    /// Reads until all are answered, or this time. Each is answered as soon as it can be.
    pub fn read(&mut self, shared: &Shared, consumer: &LogConsumer, until: Instant) {
        let Some(mut unread) = self.unread.take() else {
            return;
        };
        let topic = shared.topic_name(Topic::Messages);
        while !self.is_done() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let wait = POLL.min(left);
            if let Some(message) = unread.poll(topic, consumer, wait) {
                let record = incoming(Topic::Messages, &message);
                let (partition, next) = (record.partition, record.offset + 1);
                self.read_at(partition, record.time);
                self.add(shared, &record);
                self.reached(partition, next);
            }
            for (partition, end) in unread.take_ended() {
                self.reached(partition, end);
            }
        }
        self.unread = Some(unread);
    }

    /// A record with this timestamp has been read.
    fn read_at(&mut self, partition: i32, time: i64) {
        if let Some(oldest) = self.oldest.get_mut(&partition) {
            *oldest = time.min(*oldest);
        }
    }

    /// Everything before this offset of a partition has been read.
    fn reached(&mut self, partition: i32, next: i64) {
        while let Some(number) = self.ends.reached(partition, next) {
            if self.ends.is_complete(number) {
                self.finish(number);
            }
        }
    }

    fn add(&mut self, shared: &Shared, record: &Incoming<'_>) {
        let Ok(value) = record.checked_value(shared.max_record_bytes) else {
            return;
        };
        let of_session = &self.of_session;
        let wanted = |session_id: &str| of_session.contains_key(session_id);
        let found = frame_of(&mut self.converter, record.form, record.key, value, wanted);
        let Some((session_id, frame)) = found else {
            return;
        };
        if self.is_repeat(session_id.as_str(), record) {
            return;
        }
        let mark = Mark {
            time: record.time,
            partition: record.partition,
            offset: record.offset,
        };
        let mut refused = Vec::new();
        for &number in self.of_session.get(&session_id).into_iter().flatten() {
            let Some(Waiter { collector, .. }) = &mut self.waiters[number] else {
                continue;
            };
            collector.add(mark, || CountedFrame::of(&frame, &self.held));
            if self.held.load(Ordering::Relaxed) > MAX_BYTES {
                collector.refuse(NotResumed::Busy);
            }
            if collector.is_refused() {
                refused.push(number);
            }
        }
        refused.into_iter().for_each(|number| self.finish(number));
    }

    fn is_repeat(&self, session_id: &str, record: &Incoming<'_>) -> bool {
        let key = record
            .client_id
            .and_then(|id| self.sent.key_of_header(session_id, id));
        key.is_some_and(|key| {
            let record = SentRecord {
                key,
                partition: record.partition,
                time: record.time,
            };
            self.sent.read(record, || Sent::Node(Uuid::nil())).is_repeat
        })
    }
}

/// A frame that is counted until its client has got it.
struct CountedFrame {
    frame: Bytes,
    held: Arc<AtomicUsize>,
}

impl CountedFrame {
    fn of(frame: &Bytes, held: &Arc<AtomicUsize>) -> Bytes {
        held.fetch_add(frame.len(), Ordering::Relaxed);
        Bytes::from_owner(Self {
            frame: frame.clone(),
            held: Arc::clone(held),
        })
    }
}

impl AsRef<[u8]> for CountedFrame {
    fn as_ref(&self) -> &[u8] {
        &self.frame
    }
}

impl Drop for CountedFrame {
    fn drop(&mut self) {
        self.held.fetch_sub(self.frame.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{waiter, waiter_for};
    use super::*;
    use crate::protocol::cursor::{CursorKey, Position};
    use crate::protocol::resume::Resume;

    fn pass(waiters: Vec<Waiter>) -> Pass {
        Pass::new(waiters, Duration::from_secs(300), &Arc::default())
    }

    fn start(partition: i32, begin: i64, start: Option<i64>) -> Start {
        Start {
            partition,
            begin,
            start,
        }
    }

    /// One that the broker has nothing new of, and one that wants less than the others.
    #[test]
    fn each_query_is_answered_as_soon_as_what_it_wants_is_read() {
        let waiters = [&[10, 5][..], &[7, 3], &[10, 6], &[2, 3]].map(waiter);
        let (waiters, answers): (Vec<_>, Vec<_>) = waiters.into_iter().unzip();
        let mut pass = pass(waiters);
        pass.start_at(vec![start(0, 0, Some(2)), start(1, 0, Some(3))]);
        let answered = || {
            answers
                .iter()
                .map(|answer| answer.lock().is_some())
                .collect::<Vec<_>>()
        };
        assert_eq!(answered(), [false, false, false, true]);
        pass.reached(0, 6);
        assert_eq!(answered(), [false, false, false, true]);
        pass.reached(0, 8);
        assert_eq!(answered(), [false, true, false, true]);
        pass.reached(1, 5);
        pass.reached(0, 10);
        assert_eq!(
            (answered(), pass.is_done()),
            (vec![true, true, false, true], false)
        );
        pass.reached(1, 6);
        assert!(pass.is_done());
        assert_eq!(*answers[0].lock(), Some(Ok(0)));
    }

    #[test]
    fn who_knows_where_he_is_is_read_from_there_or_is_too_old() {
        let cursor = |offset| {
            let position = Position {
                partition: 0,
                offset,
                time: 0,
                passed: None,
            };
            let text = CursorKey::of_log(b"log").cursor("s", &position);
            waiter_for(Resume::since(text, None), &[10, 5])
        };
        let (gone, there) = (cursor(3), cursor(4));
        let mut pass = pass(vec![gone.0, there.0]);
        pass.start_at(vec![start(0, 4, Some(8)), start(1, 0, None)]);
        assert_eq!(*gone.1.lock(), Some(Err(NotResumed::TooOld)));
        let unread = pass.unread.as_ref().unwrap();
        assert_eq!(unread.next(), [(0, 4)]);
        pass.reached(0, 10);
        assert_eq!(*there.1.lock(), Some(Ok(0)));
    }

    #[test]
    fn a_message_that_is_not_found_is_too_old_if_the_log_begins_after_it() {
        let answer = |time, oldest: i64, found: Start| {
            let id = "m".to_owned();
            let (waiter, answer) = waiter_for(Resume::Message { id, time }, &[10]);
            let mut pass = pass(vec![waiter]);
            pass.start_at(vec![found]);
            pass.read_at(0, oldest);
            pass.reached(0, 10);
            answer.lock().take().unwrap().unwrap_err()
        };
        use NotResumed::{TooOld, UnknownMessage};
        let begins = || start(0, 5, Some(5));
        assert_eq!(answer(Some(7), 8, begins()), TooOld);
        assert_eq!(answer(Some(8), 8, begins()), UnknownMessage);
        assert_eq!(answer(None, 8, begins()), UnknownMessage);
        assert_eq!(
            answer(Some(7), 8, start(0, 0, Some(0))),
            UnknownMessage,
            "nothing is gone"
        );
        assert_eq!(
            answer(Some(7), 8, start(0, 5, Some(6))),
            UnknownMessage,
            "its time is still there"
        );
        assert_eq!(answer(Some(7), 8, start(0, 10, None)), TooOld, "all is gone");
    }
}
